"""Mean scores by group with intervals, and the gap between the groups with the highest and the lowest mean."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


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


def by_group(scores: Sequence[float] | np.ndarray, groups: Sequence[Hashable], samples: int = 2000, seed: int = 0) -> Groups:
    """Return the mean score of each group with percentiles of the bootstrap within groups.

    The gap's interval is of the difference between the two groups that are best and worst in the data; with many small groups some pair
    always looks far apart, so read it beside their sizes.

    Args:
        scores: One for each text, shape (n,).
        groups: Whom each text is for, n values.
        samples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: The numbers differ, or there are no scores.
    """
    values = np.asarray(scores, float)
    if values.shape != (len(groups),) or not len(values):
        raise ValueError(f"{values.shape} scores for {len(groups)} groups: give one group for each score, and at least one")
    rng = np.random.default_rng(seed)
    rows = {}
    for name in sorted({str(g) for g in groups}):
        own = values[[str(g) == name for g in groups]]
        rows[name] = (own, own[rng.integers(len(own), size=(samples, len(own)))].mean(1))
    means = []
    for name, (own, draws) in rows.items():
        low, high = np.percentile(draws, [2.5, 97.5]).tolist()
        means.append(GroupMean(name, float(own.mean()), low, high, len(own)))
    means.sort(key=lambda m: m.mean)
    worst, best = means[0], means[-1]
    low, high = np.percentile(rows[best.group][1] - rows[worst.group][1], [2.5, 97.5]).tolist()
    return Groups(tuple(means), best.mean - worst.mean, low, high)
