"""Mean scores by group with intervals, and the gap between the groups with the highest and the lowest mean."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from ..utils.intervals import mean_interval, unit_means


@dataclass(frozen=True)
class GroupMean:
    """A group's mean.

    Attributes:
        group: Name.
        mean: Of its scores.
        low: Lower end of the 95% interval.
        high: Upper end.
        num: Scores.
    """

    group: str
    mean: float
    low: float
    high: float
    num: int


@dataclass(frozen=True)
class Groups:
    """Means by group.

    Attributes:
        means: The worst first.
        gap: Best mean less worst.
        gap_low: Lower end of its 95% interval.
        gap_high: Upper end.
    """

    means: tuple[GroupMean, ...]
    gap: float
    gap_low: float
    gap_high: float


def by_group(scores: Sequence[float] | np.ndarray, groups: Sequence[Hashable], units: Sequence[Hashable] | None = None) -> Groups:
    """Return the mean score of each group with Student's interval over its units; NaN for the ends of a group of one.

    The gap's interval (Welch 1947) is of the difference between the two groups that are best and worst in the data; with many small groups
    some pair always looks far apart, so read it beside their sizes.

    Args:
        scores: One for each text, shape (n,).
        groups: Whom each text is for, n values.
        units: What each text answers, n values: texts to one prompt are alike, and count once, by their mean.  None: each is a unit.

    Raises:
        ValueError: The numbers differ, or there are no scores.
    """
    values = np.asarray(scores, float)
    if values.shape != (len(groups),) or not len(values):
        raise ValueError(f"{values.shape} scores for {len(groups)} groups: give one group for each score, and at least one")
    whose = range(len(values)) if units is None else units
    rows = {}
    for name in sorted({str(g) for g in groups}):
        own = [i for i, g in enumerate(groups) if str(g) == name]
        rows[name] = (unit_means(values[own], [whose[i] for i in own]), len(own))
    means = [GroupMean(name, *mean_interval(own), number) for name, (own, number) in rows.items()]
    means.sort(key=lambda m: m.mean)
    worst, best = means[0], means[-1]
    low, high = _welch(*(rows[m.group][0] for m in (best, worst)))
    return Groups(tuple(means), best.mean - worst.mean, low, high)


def _welch(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return the 95% interval of the difference of two means, of values whose variances may differ; NaN where one has a single value."""
    if one is other or min(len(one), len(other)) < 2:
        return (0.0, 0.0) if one is other else (math.nan, math.nan)
    errors = [x.var(ddof=1) / len(x) for x in (one, other)]
    difference, total = one.mean() - other.mean(), sum(errors)
    if total == 0:
        return float(difference), float(difference)
    degrees = total**2 / sum(e**2 / (len(x) - 1) for e, x in zip(errors, (one, other), strict=True))
    half = float(stdtrit(degrees, 0.975) * np.sqrt(total))
    return float(difference - half), float(difference + half)
