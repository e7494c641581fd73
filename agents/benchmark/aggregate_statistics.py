"""Statistics over few runs, with their uncertainty.

After Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".

The scores of an agent are an array of shape (T, S), a row for each task and a column for each seed, NaN where there is no run.  A seed is
the unit: its runs on all tasks are drawn together, since what it starts from may be alike on all of them.  The score of a run is a mean
over texts, and how texts differ is in how seeds differ; texts of several seeds are never pooled.  Percentiles of a bootstrap, which that
paper takes, hold the truth of 3 runs in 76 of 100 cases and of 5 in 84, so intervals here are Student's with S - 1 degrees of freedom: the
standard error is that of a bootstrap that draws seeds anew, widened by sqrt(n / (n - 1)) for what a bootstrap of few runs leaves out
(Efron 1982, "The Jackknife, the Bootstrap and Other Resampling Plans", section 5.3).  Two agents are compared by the differences of their
runs with the same seed.  Statistics reduce the last two axes, and so take all bootstrap samples at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from rewards.utils.intervals import IntervalEstimate, clustered

Runs = np.ndarray  # shape (..., T, S), NaN where there is no run
RESAMPLES = 2000
MIN_SEEDS = 3  # with fewer, nothing is said of who is ahead
LEVEL = 0.05  # of a family of comparisons


def iqm(runs: Runs) -> Any:
    """Return the interquartile mean: the mean of the middle half of all runs of all tasks."""
    ordered = np.sort(_all(runs), axis=-1)  # NaN last
    num = np.isfinite(ordered).sum(-1, keepdims=True)
    rank, cut = np.arange(ordered.shape[-1]), num // 4
    return np.mean(ordered, -1, where=(rank >= cut) & (rank < num - cut))


def optimality_gap(runs: Runs, target: float = 1.0) -> Any:
    """Return how far runs fall short of `target`, on average; what lies above it does not make up for what lies below."""
    return np.nanmean(np.maximum(target - _all(runs), 0), -1)


def mean(runs: Runs) -> Any:
    """Return the mean of all runs."""
    return np.nanmean(_all(runs), -1)


def profile(runs: Runs, thresholds: np.ndarray) -> np.ndarray:
    """Return the share of runs that score above each threshold, shape (..., len(thresholds))."""
    values = _all(runs)[..., None]
    return np.mean(values > thresholds, -2, where=np.isfinite(values))


def improvement(ours: Runs, theirs: Runs) -> float:
    """Return the probability that a run of ours scores above one of theirs on the same task, averaged over tasks; ties count one half.

    That is Mann and Whitney's U over the number of pairs, which need not have a seed in common.  Tasks that only one of the two has played
    are left out.

    Raises:
        ValueError: They share no task.
    """
    pairs = [(a[np.isfinite(a), None], b[None, np.isfinite(b)]) for a, b in zip(ours, theirs, strict=True)]
    shares = [((a > b) + 0.5 * (a == b)).mean() for a, b in pairs if a.size and b.size]
    if not shares:
        raise ValueError("the two agents share no task: nothing can be compared")
    return float(np.mean(shares))


def interval(statistic: Callable[..., Any], runs: Runs, resamples: int = RESAMPLES, seed: int = 0) -> IntervalEstimate:
    """Return a statistic and its 95% interval; NaN for its ends where a task has a single run.

    Args:
        statistic: Given runs, a number.
        runs: Of an agent, shape (T, S); tasks without any are left out.
        resamples: Bootstrap samples.
        seed: Of the bootstrap.
    """
    runs = _played(runs)
    value = float(statistic(runs))
    num = np.isfinite(runs).sum(1, keepdims=True)
    if num.min() < 2:
        return IntervalEstimate(value, float("nan"), float("nan"))
    centre, seeds = np.nanmean(runs, 1, keepdims=True), runs.shape[1]
    wide = centre + (runs - centre) * np.sqrt(num / (num - 1))  # as far from their mean as unbiased variances ask for
    drawn = np.random.default_rng(seed).integers(seeds, size=(resamples, seeds))
    half = float(np.std(statistic(wide[:, drawn].swapaxes(0, 1)))) * stats.t.ppf(0.975, seeds - 1)
    return IntervalEstimate(value, value - half, value + half)


def difference_interval(differences: Runs) -> IntervalEstimate:
    """Return the mean of ours - theirs and its 95% interval: each task counts the same, however many of its seeds are shared.

    That of a mean needs no bootstrap: with all runs there it is Student's, of each seed's mean over the tasks.  A seed moves the mean by
    what its runs deviate from their tasks' means; where runs are missing, the variance is S / (S - 1) times the sum of those squares.

    Args:
        differences: Shape (T, S), NaN where either has no run; tasks without any are left out.

    Raises:
        ValueError: No run is shared.
    """
    value, half = _difference(differences)
    return IntervalEstimate(value, value - half, value + half)


def difference_p(differences: Runs) -> float:
    """Return the p-value of a mean difference of 0 as `difference_interval` has it; NaN where a task shares a single seed."""
    value, half = _difference(differences)
    seeds = _played(differences).shape[1]
    if half <= 1e-12 * abs(value):  # the test divides by zero
        return 1.0 if value == 0 else 0.0 if seeds >= MIN_SEEDS else float("nan")
    return float(2 * stats.t.sf(abs(value) / half * stats.t.ppf(0.975, seeds - 1), seeds - 1))


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, so that the chance of one false alarm among all stays below the level (Holm 1979)."""
    values = np.asarray(p, float)
    adjusted = np.full(len(values), np.nan)
    known = np.flatnonzero(np.isfinite(values))
    largest = 0.0
    for rank, index in enumerate(known[np.argsort(values[known], kind="stable")]):
        largest = max(largest, min(1.0, (len(known) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted.tolist()


def _difference(differences: Runs) -> tuple[float, float]:
    """Return the mean difference, and half of its interval; NaN where a task shares a single seed."""
    runs = _played(differences)
    if not runs.size:
        raise ValueError("the two share no seed of any task: nothing can be compared seed by seed")
    num, centre, seeds = np.isfinite(runs).sum(1, keepdims=True), np.nanmean(runs, 1, keepdims=True), runs.shape[1]
    value = float(centre.mean())
    if num.min() < 2:
        return value, float("nan")
    moved = np.nansum((runs - centre) / num, 0) / len(runs)  # the mean, by each seed
    error = np.sqrt(seeds / (seeds - 1) * (moved**2).sum())
    return value, float(error * stats.t.ppf(0.975, seeds - 1))


def profile_band(runs: Runs, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the pointwise 95% intervals of `profile`, shape (len(thresholds),) each, with the runs of a seed as a cluster."""
    runs = _played(runs)
    cases = np.isfinite(runs).sum(0)
    rates = [clustered((runs > threshold).sum(0), cases) for threshold in thresholds]
    return np.array([rate.low for rate in rates]), np.array([rate.high for rate in rates])


def _all(runs: Runs) -> np.ndarray:
    return runs.reshape(*runs.shape[:-2], -1)


def _played(runs: Runs) -> np.ndarray:
    """Return the tasks and the seeds that have a run."""
    there = np.isfinite(runs)
    return runs[there.any(1)][:, there.any(0)]
