"""Proportions and means, and how sure they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

_Z = 1.959963984540054  # the 97.5% point of the standard normal


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
    rate, square = successes / num, _Z * _Z
    centre = (rate + square / (2 * num)) / (1 + square / num)
    half = _Z * math.sqrt(rate * (1 - rate) / num + square / (4 * num * num)) / (1 + square / num)
    return Rate(rate, max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half)), num)


def least_fall(before: Rate, after: Rate) -> float:
    """Return the lower end of the 95% interval of `before - after`, two shares of different cases (Newcombe 1998, method 10)."""
    return before.rate - after.rate - math.hypot(before.rate - before.low, after.high - after.rate)


def win_rate(ours: np.ndarray, theirs: np.ndarray) -> Rate:
    """Return the share of texts on which our score is the higher one, a tie counting one half, with its interval.

    Args:
        ours: Scores, shape (N,).
        theirs: Scores of the same texts by another, shape (N,).

    Raises:
        ValueError: The arrays differ in shape or are empty.
    """
    if ours.shape != theirs.shape or not len(ours):
        raise ValueError(f"cannot compare {ours.shape} with {theirs.shape} scores pair by pair")
    return wilson(float(((ours > theirs) + 0.5 * (ours == theirs)).sum()), len(ours))


class IntervalEstimate(NamedTuple):
    """A statistic and the ends of its 95% interval, NaN where there are too few runs for one."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]" if np.isfinite(self.low) else f"{self.value:.2f} (one run)"


def mean_interval(values: np.ndarray) -> IntervalEstimate:
    """Return the mean of independent values, shape (n,), and Student's 95% interval; NaN for its ends if there is one value."""
    x = np.asarray(values, float)
    if len(x) < 2:
        return IntervalEstimate(float(x.mean()), float("nan"), float("nan"))
    half = float(stdtrit(len(x) - 1, 0.975) * x.std(ddof=1) / np.sqrt(len(x)))
    return IntervalEstimate(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half)
