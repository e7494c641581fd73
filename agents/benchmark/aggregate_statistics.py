"""Statistics over few runs, with their uncertainty.

After Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".

The scores of an agent are a list with one array for each task, its runs.  Intervals are percentiles of a stratified bootstrap: runs are
drawn anew with replacement within each task, so that tasks keep their weight.  Statistics reduce the last axis of the arrays, and so take
all bootstrap samples at once, as arrays of shape (R, n).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

Runs = Sequence[np.ndarray]  # for each task, the scores of its runs, shape (..., n)
RESAMPLES = 2000


class IntervalEstimate(NamedTuple):
    """A statistic and the ends of its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def iqm(runs: Runs) -> Any:
    """Return the interquartile mean: the mean of the middle half of all runs of all tasks."""
    return stats.trim_mean(_all(runs), 0.25, axis=-1)


def optimality_gap(runs: Runs, target: float = 1.0) -> Any:
    """Return how far runs fall short of `target`, on average; what lies above it does not make up for what lies below."""
    return np.maximum(target - _all(runs), 0).mean(-1)


def mean(runs: Runs) -> Any:
    """Return the mean of all runs."""
    return _all(runs).mean(-1)


def profile(runs: Runs, thresholds: np.ndarray) -> np.ndarray:
    """Return the share of runs that score above each threshold, shape (..., len(thresholds))."""
    return (_all(runs)[..., None] > thresholds).mean(-2)


def improvement(ours: Runs, theirs: Runs) -> Any:
    """Return the probability that a run of ours scores above one of theirs on the same task, averaged over tasks; ties count one half.

    That is Mann and Whitney's U over the number of pairs.  Tasks that only one of the two has played are left out.

    Raises:
        ValueError: They share no task.
    """
    shares = [
        (above + 0.5 * equal).mean((-2, -1))
        for a, b in zip(ours, theirs, strict=True)
        if a.shape[-1] and b.shape[-1]
        for above, equal in [(a[..., None] > b[..., None, :], a[..., None] == b[..., None, :])]
    ]
    if not shares:
        raise ValueError("the two agents share no task: nothing can be compared")
    return np.mean(shares, 0)


def interval(statistic: Callable[..., Any], *agents: Runs, resamples: int = RESAMPLES, seed: int = 0) -> IntervalEstimate:
    """Return a statistic of one agent, or of several, and its 95% interval by stratified bootstrap.

    Args:
        statistic: Given the runs of each agent, a number.
        *agents: Their runs.
        resamples: Bootstrap samples.
        seed: Of the bootstrap.
    """
    drawn = statistic(*_samples(agents, resamples, seed))  # (R,)
    return IntervalEstimate(float(statistic(*agents)), *np.quantile(drawn, [0.025, 0.975]).tolist())


def profile_band(runs: Runs, thresholds: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the pointwise 95% intervals of `profile`, shape (len(thresholds),) each."""
    drawn = profile(_samples([runs], resamples, seed)[0], thresholds)  # (R, len(thresholds))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return low, high


def mean_interval(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> IntervalEstimate:
    """Return the mean of a few values and its 95% interval by bootstrap."""
    return interval(mean, [np.asarray(values, float)], resamples=resamples, seed=seed)


def _all(runs: Runs) -> np.ndarray:
    return np.concatenate(list(runs), axis=-1)


def _samples(agents: Sequence[Runs], resamples: int, seed: int) -> list[list[np.ndarray]]:
    """Return the runs of each agent on each task in all bootstrap samples, shape (R, n)."""
    rng = np.random.default_rng(seed)
    return [
        [task[rng.integers(len(task), size=(resamples, len(task)))] if len(task) else np.zeros((resamples, 0)) for task in runs]
        for runs in agents
    ]
