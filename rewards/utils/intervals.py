"""Proportions and means, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
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
    rate = successes / num
    return Rate(rate, *_wilson_ends(rate, num), num)


def _wilson_ends(rate: float, num: float) -> tuple[float, float]:
    """Return the ends of Wilson's interval of a share of as many independent cases, or of others that say as much as so many."""
    square = _Z * _Z
    centre = (rate + square / (2 * num)) / (1 + square / num)
    half = _Z * math.sqrt(rate * (1 - rate) / num + square / (4 * num * num)) / (1 + square / num)
    return max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))


def clustered(successes: np.ndarray, cases: np.ndarray) -> Rate:
    """Return the share of successes among cases that come in clusters, as comparisons of one prompt or answers to one item do.

    Cases of a cluster are alike, so there is less to learn from them than from as many of different ones: Wilson's interval is that of
    fewer cases, divided by the design effect (the variance of a ratio between clusters over that of independent cases, at least 1), and
    by (t / z)^2 for the number of clusters (Korn and Graubard 1998, with Wilson's interval in the place of Clopper and Pearson's).  If
    all or no cases are successes, there is no variance to be seen, and a cluster counts as one case.  With a cluster for each case this
    is `wilson`.

    Args:
        successes: Of each cluster, in [0, cases], shape (K,); a tie may count one half.
        cases: Of each cluster, >= 1, shape (K,).

    Raises:
        ValueError: The shapes differ, a cluster has no case, or more successes than cases.
    """
    won, each = np.asarray(successes, float), np.asarray(cases, float)
    if won.shape != each.shape or won.ndim != 1:
        raise ValueError(f"successes {won.shape} and cases {each.shape}: one number is needed for each cluster")
    if not ((each >= 1) & (won >= 0) & (won <= each)).all():
        raise ValueError("each cluster must have at least 1 case, and successes in [0, cases]")
    k, n = len(each), each.sum()
    if k == n:
        return wilson(float(won.sum()), k)
    rate = float(won.sum() / n)
    if k == 1:
        return Rate(rate, 0.0, 1.0, int(n))
    binomial = rate * (1 - rate) / n
    effect = max(1.0, k / (k - 1) * float(((won - rate * each) ** 2).sum()) / n**2 / binomial) if 0 < rate < 1 else n / k
    independent = float(n / effect * (_Z / stdtrit(k - 1, 0.975)) ** 2)
    return Rate(rate, *_wilson_ends(rate, independent), int(n))


def clustered_by(values: np.ndarray, units: Sequence[Hashable]) -> Rate:
    """Return `clustered` of cases each of which has a value in [0, 1], shape (N,), and belongs to a unit, length N."""
    return clustered(*_sums(values, units))


def unit_means(values: np.ndarray, units: Sequence[Hashable]) -> np.ndarray:
    """Return the mean over the cases of each unit, shape (K,): independent values, of which `mean_interval` can be taken.

    Args:
        values: One for each case, shape (N,).
        units: What each case belongs to, length N.
    """
    sums, cases = _sums(values, units)
    return sums / cases


def _sums(values: np.ndarray, units: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of each unit's values, and how many they are."""
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    index = [numbers[unit] for unit in units]
    return np.bincount(index, values, len(numbers)), np.bincount(index, minlength=len(numbers))


def wins(margins: np.ndarray) -> np.ndarray:
    """Return 1 where a margin is positive, one half where it is 0, else 0."""
    return (margins > 0) + 0.5 * (margins == 0)


def prompt_units(prompts: Sequence[str]) -> Sequence[Hashable]:
    """Return the clusters of cases with these prompts: the prompts; where there is only one, each case by itself.

    An interval says how sure a share is for other prompts like these; of a single prompt it can only speak of that one.
    """
    return prompts if len(set(prompts)) > 1 else range(len(prompts))


def least_fall(before: Rate, after: Rate) -> float:
    """Return the lower end of the 95% interval of `before - after`, two shares of different cases (Newcombe 1998, method 10)."""
    return before.rate - after.rate - math.hypot(before.rate - before.low, after.high - after.rate)


def win_rate(ours: np.ndarray, theirs: np.ndarray, prompts: Sequence[str] | None = None) -> Rate:
    """Return the share of pairs in which our score is the higher one, a tie counting one half, with its interval.

    Args:
        ours: Scores, shape (N,).
        theirs: Those that they are compared with, one by one, shape (N,).
        prompts: What the texts of each pair answer, N in all: texts to one prompt are alike, and count as its cluster. None: pairs are
            independent.

    Raises:
        ValueError: The arrays differ in shape or are empty.
    """
    if ours.shape != theirs.shape or not len(ours):
        raise ValueError(f"cannot compare {ours.shape} with {theirs.shape} scores pair by pair")
    return clustered_by(wins(ours - theirs), range(len(ours)) if prompts is None else prompt_units(prompts))


class IntervalEstimate(NamedTuple):
    """A statistic and the ends of its 95% interval, NaN where there are too few runs for one."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return self.rounded(2)

    def rounded(self, digits: int) -> str:
        """Return it with as many digits after the point."""
        value, low, high = (f"{round(x, digits) + 0.0:.{digits}f}" for x in self)  # without the sign of -0.00
        return f"{value} [{low}, {high}]" if np.isfinite(self.low) else f"{value} (one seed)"


def mean_interval(values: np.ndarray) -> IntervalEstimate:
    """Return the mean of independent values, shape (n,), and Student's 95% interval; NaN for its ends if there is one value."""
    x = np.asarray(values, float)
    if len(x) < 2:
        return IntervalEstimate(float(x.mean()), float("nan"), float("nan"))
    half = float(stdtrit(len(x) - 1, 0.975) * x.std(ddof=1) / np.sqrt(len(x)))
    return IntervalEstimate(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half)
