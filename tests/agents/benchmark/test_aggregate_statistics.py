"""Statistics of the benchmark against scipy, loops, hand-worked numbers and a known distribution."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from agents.benchmark import aggregate_statistics as ours
from rewards.utils.intervals import mean_interval

RNG = np.random.default_rng(0)
A = [RNG.normal(0.6, 0.2, 5) for _ in range(4)]
B = [RNG.normal(0.4, 0.2, 5) for _ in range(4)]
RAGGED = [np.array([0.1, 0.5, 0.9]), np.array([1.2]), np.array([])]


def test_iqm_by_hand_and_by_scipy():
    assert ours.iqm([np.array([0.0, 1.0, 2.0, 100.0])]) == 1.5
    assert ours.iqm([np.array([0.0, 100.0]), np.array([1.0, 2.0])]) == 1.5
    assert ours.iqm(A) == pytest.approx(stats.trim_mean(np.array(A), 0.25, axis=None))
    flat = np.sort(np.concatenate(A))
    assert ours.iqm(A) == pytest.approx(flat[5:15].mean())


def test_gap_and_mean_by_hand():
    assert ours.optimality_gap(RAGGED) == pytest.approx((0.9 + 0.5 + 0.1 + 0) / 4)
    assert ours.mean(RAGGED) == pytest.approx(2.7 / 4)


def test_profile_is_a_counted_share():
    thresholds = np.array([0.0, 0.5, 1.0])
    assert ours.profile(RAGGED, thresholds).tolist() == [1.0, 0.5, 0.25]


def test_improvement_is_mann_whitneys_u():
    expected = np.mean([stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in zip(A, B, strict=True)])
    assert ours.improvement(A, B) == pytest.approx(expected)
    tied = [np.array([1.0, 2.0])], [np.array([1.0, 3.0])]
    pairs = [(1, 1), (1, 3), (2, 1), (2, 3)]
    assert ours.improvement(*tied) == sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / 4
    assert ours.improvement(A, B) + ours.improvement(B, A) == pytest.approx(1)


def test_improvement_leaves_out_tasks_that_only_one_played():
    assert ours.improvement([np.array([2.0]), np.array([])], [np.array([1.0]), np.array([9.0])]) == 1
    with pytest.raises(ValueError, match="share no task"):
        ours.improvement([np.array([])], [np.array([1.0])])


def test_interval_of_a_mean_is_welchs():
    """For the mean, the bootstrap's standard error is the stratified one, and the interval Student's with Welch's degrees of freedom."""
    runs = [np.array([0.0, 1.0, 0.5]), np.array([10.0, 30.0, 25.0, 11.0])]
    variances = [len(task) * task.var(ddof=1) / 49 for task in runs]  # of each task's part of the mean of all 7
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 3)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(sum(variances))
    found = ours.interval(ours.mean, runs, resamples=40_000)
    assert found.value == pytest.approx(np.mean([0, 1, 0.5, 10, 30, 25, 11]))
    assert (found.value - found.low, found.high - found.value) == pytest.approx((half, half), rel=0.02)
    one = ours.interval(ours.mean, runs[1:], resamples=40_000)
    assert tuple(one) == pytest.approx(tuple(mean_interval(runs[1])), rel=0.05)


def test_mean_interval_is_students():
    low, high = stats.t.interval(0.95, 4, A[0].mean(), stats.sem(A[0]))
    assert tuple(mean_interval(A[0])) == pytest.approx((A[0].mean(), low, high))


def test_resampling_keeps_to_the_task():
    runs = [np.zeros(5), np.ones(5)]
    assert ours.interval(ours.mean, runs) == (0.5, 0.5, 0.5)  # drawn across tasks it would spread


def test_improvement_interval_is_wilsons_for_as_many_pairs():
    chance = ours.improvement(A, B)
    rate = stats.binomtest(20, 20).proportion_ci(method="wilson")
    assert ours.improvement_interval([a + 9 for a in A], B)[1:] == pytest.approx((rate.low, rate.high))
    found = ours.improvement_interval(A, B)
    assert found.low < chance == found.value < found.high
    ragged = ours.improvement_interval([np.array([2.0, 3.0]), np.array([])], [np.array([1.0]), np.array([9.0])])
    assert ragged.low == pytest.approx(stats.binomtest(1, 1).proportion_ci(method="wilson").low)  # a single pair


def test_profile_band_is_wilsons():
    thresholds = np.linspace(0, 1, 11)
    low, high = ours.profile_band(A, thresholds)
    for threshold, at, to in zip(thresholds, low, high, strict=True):
        rate = stats.binomtest(int((np.concatenate(A) > threshold).sum()), 20).proportion_ci(method="wilson")
        assert (at, to) == pytest.approx((rate.low, rate.high))


@pytest.mark.parametrize("statistic", ["iqm", "mean", "optimality_gap"])
def test_the_standard_error_is_that_of_all_stratified_resamples(statistic):
    """As rliable's bootstrap draws: within each task, with replacement; here every sample that can be drawn, one by one."""
    runs = [np.array([0.1, 0.5, 0.9]), np.array([0.3, 1.2, 0.4, 0.8])]
    wide = [x.mean() + (x - x.mean()) * np.sqrt(len(x) / (len(x) - 1)) for x in runs]
    f = {
        "iqm": lambda x: np.mean(sorted(x)[1:-1]), "mean": np.mean, "optimality_gap": lambda x: np.mean([max(0.0, 1 - one) for one in x])
    }[statistic]  # fmt: skip
    all_samples = [f([*one, *two]) for one in product(wide[0], repeat=3) for two in product(wide[1], repeat=4)]
    spread = [len(x) * x.var(ddof=1) for x in runs]
    freedom = sum(spread) ** 2 / (spread[0] ** 2 / 2 + spread[1] ** 2 / 3)
    found = ours.interval(getattr(ours, statistic), runs, resamples=20_000)
    assert found.value == pytest.approx(f(np.concatenate(runs)))
    assert found.high - found.value == pytest.approx(np.std(all_samples) * stats.t.ppf(0.975, freedom), rel=0.02)


def test_differences_are_of_the_same_seeds():
    one, two = [{0: 1.0, 1: 2.0, 2: 4.0}, {5: 1.0}], [{1: 1.0, 2: 1.5, 3: 9.0}, {}]
    found = ours.differences(one, two)
    assert found[0].tolist() == [1.0, 2.5] and not len(found[1])
    assert tuple(ours.difference_interval(one, two)) == pytest.approx(tuple(mean_interval(np.array([1.0, 2.5]))))
    with pytest.raises(ValueError, match="share no seed"):
        ours.difference_interval([{0: 1.0}], [{1: 1.0}])


def test_difference_interval_is_a_paired_t_test_on_each_task_put_together():
    a, b = RNG.normal(0, 1, (2, 3, 5))
    shared = RNG.normal(0, 10, (3, 5))  # what a seed has in common does not widen the interval
    seeds = [[dict(enumerate(row)) for row in shared + x] for x in (a, b)]
    alone = ours.difference_interval(seeds[0][:1], seeds[1][:1])
    low, high = stats.ttest_rel(a[0], b[0]).confidence_interval(0.95)
    assert tuple(alone) == pytest.approx(((a[0] - b[0]).mean(), low, high))
    parts = (a - b).var(1, ddof=1) / 5
    half = stats.t.ppf(0.975, sum(parts) ** 2 / (sum(parts**2) / 4)) * np.sqrt(sum(parts)) / 3
    assert tuple(ours.difference_interval(*seeds)) == pytest.approx(((a - b).mean(), (a - b).mean() - half, (a - b).mean() + half))
