"""Statistics over few runs, with their uncertainty.

After Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".

The scores of an agent are a list with one array for each task, its runs.  Intervals are percentiles of a stratified bootstrap: runs are
drawn anew with replacement within each task, so that tasks keep their weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

Runs = Sequence[np.ndarray]  # for each task, the scores of its runs
RESAMPLES = 2000


class IntervalEstimate(NamedTuple):
    """A statistic and the ends of its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def iqm(runs: Runs) -> float:
    """Return the interquartile mean: the mean of the middle half of all runs of all tasks."""
    return float(stats.trim_mean(np.concatenate(list(runs)), 0.25))


def optimality_gap(runs: Runs, target: float = 1.0) -> float:
    """Return how far runs fall short of `target`, on average; what lies above it does not make up for what lies below."""
    return float(np.maximum(target - np.concatenate(list(runs)), 0).mean())


def mean(runs: Runs) -> float:
    """Return the mean of all runs."""
    return float(np.concatenate(list(runs)).mean())


def profile(runs: Runs, thresholds: np.ndarray) -> np.ndarray:
    """Return the share of runs that score above each threshold, shape (len(thresholds),)."""
    return (np.concatenate(list(runs))[:, None] > thresholds).mean(0)


def improvement(ours: Runs, theirs: Runs) -> float:
    """Return the probability that a run of ours scores above one of theirs on the same task, averaged over tasks; ties count one half.

    That is Mann and Whitney's U over the number of pairs.  Tasks that only one of the two has played are left out.

    Raises:
        ValueError: They share no task.
    """
    shares = [((a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean()) for a, b in zip(ours, theirs, strict=True) if len(a) and len(b)]
    if not shares:
        raise ValueError("the two agents share no task: nothing can be compared")
    return float(np.mean(shares))


def interval(statistic: Callable[..., float], *agents: Runs, resamples: int = RESAMPLES, seed: int = 0) -> IntervalEstimate:
    """Return a statistic of one agent, or of several, and its 95% interval by stratified bootstrap.

    Args:
        statistic: Given the runs of each agent, a number.
        *agents: Their runs.
        resamples: Bootstrap samples.
        seed: Of the bootstrap.
    """
    drawn = [statistic(*sample) for sample in _samples(agents, resamples, seed)]
    return IntervalEstimate(statistic(*agents), *np.quantile(drawn, [0.025, 0.975]).tolist())


def improvement_interval(ours: Runs, theirs: Runs, resamples: int = RESAMPLES, seed: int = 0) -> IntervalEstimate:
    """Return `interval(improvement, ours, theirs)`, all samples at once."""
    first, second = (columns for columns in _columns([ours, theirs], resamples, np.random.default_rng(seed)))
    shares = []
    for a, b in zip(first, second, strict=True):
        if a is not None and b is not None:
            above, equal = a[:, :, None] > b[:, None, :], a[:, :, None] == b[:, None, :]
            shares.append((above + 0.5 * equal).mean((1, 2)))
    return IntervalEstimate(improvement(ours, theirs), *np.quantile(np.mean(shares, 0), [0.025, 0.975]).tolist())


def profile_band(runs: Runs, thresholds: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the pointwise 95% intervals of `profile`, shape (len(thresholds),) each."""
    drawn = np.array([profile(sample[0], thresholds) for sample in _samples([runs], resamples, seed)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return low, high


def mean_interval(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> IntervalEstimate:
    """Return the mean of a few values and its 95% interval by bootstrap."""
    return interval(mean, [np.asarray(values, float)], resamples=resamples, seed=seed)


Columns = list[list[np.ndarray | None]]  # of each agent and task, the runs of every bootstrap sample, shape (resamples, n)


def _columns(agents: Sequence[Runs], resamples: int, rng: np.random.Generator) -> Columns:
    return [[task[rng.integers(len(task), size=(resamples, len(task)))] if len(task) else None for task in runs] for runs in agents]


def _samples(agents: Sequence[Runs], resamples: int, seed: int) -> list[list[list[np.ndarray]]]:
    """Draw bootstrap samples: for each, the runs of every agent."""
    columns = _columns(agents, resamples, np.random.default_rng(seed))
    return [[[np.zeros(0) if c is None else c[i] for c in own] for own in columns] for i in range(resamples)]
