"""How often intervals hold the truth when runs are few: 95 of 100 times, by simulation with a fixed generator."""

from itertools import combinations

import numpy as np
import pytest

from agents.benchmark import aggregate_statistics as ours
from rewards.utils.intervals import mean_interval, wilson
from tests.slow_cases import slow_but

COVERAGE = pytest.mark.reports("95% intervals over 3, 5 or 10 runs hold the truth in at least 90 of 100 simulated cases.")
TRIALS = 200  # the standard error of a share of 0.95 is 0.015


def covered(make, truth, trials=TRIALS):
    """The share of intervals that hold a value."""
    rng = np.random.default_rng(0)
    found = [make(rng) for _ in range(trials)]
    return np.mean([one.low <= truth <= one.high for one in found])


@COVERAGE
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_means_of_runs(seeds):
    assert 0.93 <= covered(lambda rng: mean_interval(rng.normal(0.6, 0.2, seeds)), 0.6, 2000) <= 0.97


def drawn(rng, centres, spreads, seeds, alike=0.0):
    """Runs of shape (T, S); of their variance a share is what a seed's runs have in common on all tasks."""
    noise = np.sqrt(1 - alike) * rng.normal(size=(len(centres), seeds)) + np.sqrt(alike) * rng.normal(size=seeds)
    return centres[:, None] + spreads[:, None] * noise


@COVERAGE
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("tasks", [1, 2, 8])
@pytest.mark.parametrize("statistic", ["mean", "iqm", "optimality_gap"])
def test_statistics_over_tasks(seeds, tasks, statistic):
    """Tasks differ in their means and, tenfold, in their spread; the truth is what very many runs of each come to."""
    centres, spreads = np.linspace(0.2, 0.8, tasks), np.geomspace(0.02, 0.2, tasks)
    many = drawn(np.random.default_rng(1), centres, spreads, 100_000)
    truth, statistic = float(getattr(ours, statistic)(many)), getattr(ours, statistic)
    share = covered(lambda rng: ours.interval(statistic, drawn(rng, centres, spreads, seeds), 200), truth)
    assert share >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize(("tasks", "unlike"), [(1, 1), (2, 1), (8, 1), (8, 10), (23, 1), (23, 10)])
@pytest.mark.parametrize("alike", [0.0, 0.5])
@pytest.mark.parametrize("statistic", ["mean", "iqm", "optimality_gap"])
def test_statistics_over_tasks_within_two_of_a_hundred(seeds, tasks, unlike, statistic, alike):
    """The same with many trials, and with seeds that are good or bad on all tasks at once.

    Of two tasks of unlike means and spreads, the interquartile mean holds the truth in 90 of 100.
    """
    centres, spreads = np.linspace(0.6 - 0.02 * unlike, 0.6 + 0.02 * unlike, tasks), np.geomspace(0.2 / unlike, 0.2, tasks)
    many = drawn(np.random.default_rng(1), centres, spreads, 100_000)
    truth, statistic = float(getattr(ours, statistic)(many)), getattr(ours, statistic)
    share = covered(lambda rng: ours.interval(statistic, drawn(rng, centres, spreads, seeds, alike), 400), truth, 2000)
    assert 0.93 <= share <= (0.985 if (statistic, tasks) == ("iqm", 1) else 0.975)  # of one task it is cautious


@pytest.mark.parametrize("seeds", [5, 10])
def test_differences_of_paired_seeds(seeds):
    """Agents whose runs share what their seed drew, on three tasks of unlike spread, one of them ahead by 0.1 on average."""
    spreads = np.array([0.02, 0.1, 0.2])[:, None]

    def make(rng):
        shared = rng.normal(0, 0.3, (3, seeds))
        one, two = (shared + rng.normal(mean, spreads, (3, seeds)) for mean in (0.6, 0.5))
        return ours.difference_interval(one - two)

    assert 0.93 <= covered(make, 0.1, 2000) <= 0.97


@pytest.mark.parametrize("seeds", [5, 10])
def test_a_run_is_one_case_however_many_texts_it_wrote(seeds):
    """Runs differ by 0.05, their 100 texts by 0.4 besides: by runs the truth is held, by pooled texts it is not."""

    def pooled(rng):
        return mean_interval((rng.normal(0.7, 0.05, (seeds, 1)) + rng.normal(0, 0.4, (seeds, 100))).ravel())

    def by_run(rng):
        return mean_interval((rng.normal(0.7, 0.05, (seeds, 1)) + rng.normal(0, 0.4, (seeds, 100))).mean(1))

    assert 0.93 <= covered(by_run, 0.7, 2000) <= 0.97
    assert covered(pooled, 0.7, 400) < 0.85


@COVERAGE
@pytest.mark.parametrize("num", [20, 100, 500])
@pytest.mark.parametrize("truth", [0.35, 0.5, 0.874])
def test_win_rates(num, truth):
    assert 0.92 <= covered(lambda rng: wilson(float(rng.binomial(num, truth)), num), truth, 4000) <= 0.98


@pytest.mark.parametrize("seeds", slow_but([10], [5, 10]))
def test_how_often_equal_agents_are_told_apart(seeds):
    """Of nine equal agents on 18 tasks: by Holm's adjustment some pair in at most 5 of 100 reports."""
    told = []
    for trial in range(TRIALS):
        scores = np.random.default_rng(trial).normal(0.6, 0.1, (9, 18, seeds))
        told.append(min(ours.holm([ours.difference_p(scores[a] - scores[b]) for a, b in combinations(range(9), 2)])) < ours.LEVEL)
    assert np.mean(told) <= 0.08  # 0.05 and two standard errors


@pytest.mark.reports("A single run of a task has no interval, and the report says so.")
def test_a_single_run_has_no_interval():
    assert str(mean_interval(np.array([0.5]))) == "0.50 (one seed)"
    assert np.isnan(ours.interval(ours.iqm, np.array([[0.5, np.nan], [0.6, 0.7]])).low)
