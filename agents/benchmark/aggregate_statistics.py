"""Statistics over few runs, with their uncertainty.

After Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".

The scores of an agent are a list with one array for each task, its runs: a run, so a seed, is the unit.  Its score is a mean over texts,
and how texts differ is in how seeds differ; texts of several seeds are never pooled.  Percentiles of a bootstrap, which that paper takes,
hold the truth of 3 runs in 76 of 100 cases and of 5 in 84, so intervals here are Student's: the standard error is that of a bootstrap that
draws runs anew within each task, widened by sqrt(n / (n - 1)) for what a bootstrap of few runs leaves out (Efron 1982, "The Jackknife, the
Bootstrap and Other Resampling Plans", section 5.3); the degrees of freedom are those of Satterthwaite 1946 and Welch 1947.  Shares of
runs have Wilson's intervals.  Two agents are compared by the differences of their runs with the same seed.  Statistics reduce the last
axis of the arrays, and so take all bootstrap samples at once, as arrays of shape (R, n).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from rewards.utils.intervals import IntervalEstimate, wilson

Runs = Sequence[np.ndarray]  # for each task, the scores of its runs, shape (..., n)
RESAMPLES = 2000


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


def improvement_interval(ours: Runs, theirs: Runs) -> IntervalEstimate:
    """Return `improvement` with Wilson's interval for as many independent pairs as there are runs of the agent with fewer, task by task.

    A pair is one run of each; that all runs are compared with all makes the estimate better than such pairs alone would.
    """
    chance = float(improvement(ours, theirs))
    pairs = sum(min(len(a), len(b)) for a, b in zip(ours, theirs, strict=True))
    rate = wilson(chance * pairs, pairs)
    return IntervalEstimate(chance, rate.low, rate.high)


def interval(statistic: Callable[..., Any], runs: Runs, resamples: int = RESAMPLES, seed: int = 0) -> IntervalEstimate:
    """Return a statistic and its 95% interval; NaN for its ends where a task has a single run.

    Args:
        statistic: Given runs, a number.
        runs: Of an agent; tasks without any are left out.
        resamples: Bootstrap samples.
        seed: Of the bootstrap.
    """
    runs = [task for task in runs if len(task)]
    value = float(statistic(runs))
    if min(map(len, runs)) < 2:
        return IntervalEstimate(value, float("nan"), float("nan"))
    drawn = statistic(_samples(runs, resamples, seed))  # (R,)
    freedom = _freedom(np.array([len(task) * task.var(ddof=1) for task in runs]), runs)  # of the sum of all runs
    half = float(drawn.std()) * stats.t.ppf(0.975, freedom)
    return IntervalEstimate(value, value - half, value + half)


def differences(ours: Sequence[Mapping[int, float]], theirs: Sequence[Mapping[int, float]]) -> list[np.ndarray]:
    """Return ours - theirs of the seeds that both have, task by task; a task without any is an empty array.

    Args:
        ours: For each task, scores by seed.
        theirs: Likewise, of the same tasks.
    """
    return [np.array([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]) for a, b in zip(ours, theirs, strict=True)]


def difference_interval(ours: Sequence[Mapping[int, float]], theirs: Sequence[Mapping[int, float]]) -> IntervalEstimate:
    """Return the mean of `differences` and its 95% interval: each task counts the same, however many of its seeds are shared.

    That of a mean needs no bootstrap: its variance is the sum of those of the tasks' means, with Satterthwaite's degrees of freedom.

    Raises:
        ValueError: They share no seed of any task.
    """
    runs = [task for task in differences(ours, theirs) if len(task)]
    if not runs:
        raise ValueError("the two share no seed of any task: nothing can be compared seed by seed")
    value = float(np.mean([task.mean() for task in runs]))
    if min(map(len, runs)) < 2:
        return IntervalEstimate(value, float("nan"), float("nan"))
    parts = np.array([task.var(ddof=1) / len(task) for task in runs])
    half = float(np.sqrt(parts.sum()) / len(runs) * stats.t.ppf(0.975, _freedom(parts, runs)))
    return IntervalEstimate(value, value - half, value + half)


def _freedom(variances: np.ndarray, runs: Runs) -> float:
    """Return Welch and Satterthwaite's degrees of freedom of a sum over tasks, given the variance of each term, shape (n,)."""
    if not variances.any():
        return float(sum(len(task) - 1 for task in runs))
    return float(variances.sum() ** 2 / sum(own**2 / (len(task) - 1) for own, task in zip(variances, runs, strict=True)))


def profile_band(runs: Runs, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the pointwise 95% intervals of `profile`, shape (len(thresholds),) each."""
    num = sum(map(len, runs))
    rates = [wilson(share * num, num) for share in profile(runs, thresholds)]
    return np.array([rate.low for rate in rates]), np.array([rate.high for rate in rates])


def _all(runs: Runs) -> np.ndarray:
    return np.concatenate(list(runs), axis=-1)


def _samples(runs: Runs, resamples: int, seed: int) -> list[np.ndarray]:
    """Return the runs of each task in all bootstrap samples, shape (R, n), as far from their mean as unbiased variances ask for."""
    rng = np.random.default_rng(seed)
    drawn = []
    for task in runs:
        wide = task.mean() + (task - task.mean()) * np.sqrt(len(task) / (len(task) - 1))  # (n,)
        drawn.append(wide[rng.integers(len(task), size=(resamples, len(task)))])  # (R, n)
    return drawn
