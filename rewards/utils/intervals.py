"""A proportion and how sure it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class WinRate:
    """Share of comparisons won, ties counting one half, with its 95% interval.

    Attributes:
        rate: In [0, 1].
        low: Lower end.
        high: Upper end.
        num: Comparisons.
    """

    rate: float
    low: float
    high: float
    num: int

    def __str__(self) -> str:
        return f"{self.rate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def win_rate(ours: np.ndarray, theirs: np.ndarray) -> WinRate:
    """Compare scores pair by pair; the interval is Wilson's.

    Raises:
        ValueError: The arrays differ in shape or are empty.
    """
    if ours.shape != theirs.shape or not len(ours):
        raise ValueError(f"cannot compare {ours.shape} with {theirs.shape} scores pair by pair")
    wins = (ours > theirs) + 0.5 * (ours == theirs)
    n, rate, z = len(wins), float(wins.mean()), float(stats.norm.ppf(0.975))
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return WinRate(rate, float(centre - half), float(centre + half), n)


_Z = 1.959964  # the 97.5% point of the standard normal


@dataclass(frozen=True, slots=True)
class Rate:
    """A share and its 95% interval (Wilson 1927), which holds for few cases and for shares near 0 or 1 too.

    Attributes:
        rate: In [0, 1]; NaN if there are no cases.
        low: Lower end.
        high: Upper end.
        num: Cases.
    """

    rate: float
    low: float
    high: float
    num: int

    def __str__(self) -> str:
        return f"{self.rate:.1%} [{self.low:.1%}, {self.high:.1%}]"


def wilson(successes: float, num: int) -> Rate:
    """Return the share of successes with its interval; without any case, NaN in [0, 1].

    Args:
        successes: In [0, num]; a tie may count one half.
        num: Cases, >= 0.

    Raises:
        ValueError: `successes` is not in [0, num].
    """
    if not 0 <= successes <= num:
        raise ValueError(f"successes={successes} must be in [0, {num}], the number of cases")
    if not num:
        return Rate(math.nan, 0.0, 1.0, 0)
    rate, spread = successes / num, _Z * _Z / num
    centre = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (rate * (1 - rate) + spread / 4)) / (1 + spread)
    return Rate(rate, max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half)), num)
