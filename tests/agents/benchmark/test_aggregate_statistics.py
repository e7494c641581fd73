"""Statistics of the benchmark against scipy, loops, hand-worked numbers and a known distribution."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from agents.benchmark import aggregate_statistics as ours
from rewards.utils.intervals import mean_interval

RNG = np.random.default_rng(0)
A = RNG.normal(0.6, 0.2, (4, 5))
B = RNG.normal(0.4, 0.2, (4, 5))
NAN = np.nan
RAGGED = np.array([[0.1, 0.5, 0.9], [NAN, 1.2, NAN], [NAN] * 3])


def test_iqm_by_hand_and_by_scipy():
    assert ours.iqm(np.array([[0.0, 1.0, 2.0, 100.0]])) == 1.5
    assert ours.iqm(np.array([[0.0, NAN, 100.0], [1.0, 2.0, NAN]])) == 1.5
    assert ours.iqm(A) == pytest.approx(stats.trim_mean(A, 0.25, axis=None))
    for missing in range(1, 8):
        some = A.copy()
        some.flat[:missing] = NAN
        assert ours.iqm(some) == pytest.approx(stats.trim_mean(A.ravel()[missing:], 0.25))
    flat = np.sort(A.ravel())
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
    tied = np.array([[1.0, 2.0]]), np.array([[1.0, 3.0]])
    pairs = [(1, 1), (1, 3), (2, 1), (2, 3)]
    assert ours.improvement(*tied) == sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / 4
    assert ours.improvement(A, B) + ours.improvement(B, A) == pytest.approx(1)


def test_improvement_leaves_out_tasks_that_only_one_played():
    assert ours.improvement(np.array([[2.0, NAN], [NAN, NAN]]), np.array([[NAN, 1.0], [9.0, 9.0]])) == 1
    with pytest.raises(ValueError, match="share no task"):
        ours.improvement(np.array([[NAN]]), np.array([[1.0]]))


def test_interval_of_a_mean_is_students_of_the_seeds_means():
    """With every run there, the seed is a single case, whatever its runs on different tasks have in common."""
    together = A + RNG.normal(0, 0.3, 5)
    expected = mean_interval(together.mean(0))
    assert tuple(ours.interval(ours.mean, together, resamples=40_000)) == pytest.approx(tuple(expected), rel=0.02)
    assert tuple(ours.difference_interval(together)) == pytest.approx(tuple(expected))


def test_mean_interval_is_students():
    low, high = stats.t.interval(0.95, 4, A[0].mean(), stats.sem(A[0]))
    assert tuple(mean_interval(A[0])) == pytest.approx((A[0].mean(), low, high))


def test_resampling_keeps_to_the_task():
    runs = np.array([[0.0] * 5, [1.0] * 5])
    assert ours.interval(ours.mean, runs) == (0.5, 0.5, 0.5)  # drawn across tasks it would spread


def test_profile_band_is_wilsons_for_fewer_cases():
    """A seed's runs are a cluster: at most as sure as as many independent runs, and with one task Wilson's interval itself."""
    thresholds = np.linspace(0, 1, 11)
    low, high = ours.profile_band(A, thresholds)
    alone = ours.profile_band(A[:1], thresholds)
    for i, threshold in enumerate(thresholds):
        rate, one = (stats.binomtest(int((x > threshold).sum()), x.size).proportion_ci(method="wilson") for x in (A, A[:1]))
        assert low[i] <= rate.low + 1e-9 and rate.high - 1e-9 <= high[i]
        assert (alone[0][i], alone[1][i]) == pytest.approx((one.low, one.high))


@pytest.mark.parametrize("statistic", ["iqm", "mean", "optimality_gap"])
def test_the_standard_error_is_that_of_all_resamples_of_seeds(statistic):
    """A bootstrap as rliable's, of whole seeds: every sample that can be drawn, one by one; a run is missing."""
    runs = np.array([[0.1, 0.5, 0.9, 0.7], [0.3, 1.2, NAN, 0.8]])
    wide = [[m + (x - m) * np.sqrt(k / (k - 1)) for x in row] for row, m, k in zip(runs, np.nanmean(runs, 1), (4, 3), strict=True)]
    f = {
        "iqm": lambda x: stats.trim_mean(x, 0.25), "mean": np.mean, "optimality_gap": lambda x: np.mean([max(0.0, 1 - one) for one in x])
    }[statistic]  # fmt: skip
    samples = []
    for seeds in product(range(4), repeat=4):
        drawn = [row[seed] for row in wide for seed in seeds]
        samples.append(f([x for x in drawn if not np.isnan(x)]))
    found = ours.interval(getattr(ours, statistic), runs, resamples=20_000)
    assert found.value == pytest.approx(f(runs[np.isfinite(runs)]))
    assert found.high - found.value == pytest.approx(np.std(samples) * stats.t.ppf(0.975, 3), rel=0.02)


def test_differences_are_of_the_same_seeds():
    one, two = np.array([[1.0, 2.0, 4.0, NAN], [1.0, NAN, NAN, NAN]]), np.array([[NAN, 1.0, 1.5, 9.0], [NAN] * 4])
    assert tuple(ours.difference_interval(one - two)) == pytest.approx(tuple(mean_interval(np.array([1.0, 2.5]))))
    with pytest.raises(ValueError, match="share no seed"):
        ours.difference_interval(np.array([[NAN]]))
    single = ours.difference_interval(np.array([[1.0, 2.0], [3.0, NAN]]))
    assert single.value == 2.25 and np.isnan(single.low)


def test_difference_interval_is_a_paired_t_test_of_the_seeds_means():
    a, b = RNG.normal(0, 1, (2, 3, 5))
    shared = RNG.normal(0, 10, (3, 5))  # what a seed has in common does not widen the interval
    by = (shared + a) - (shared + b)
    found = stats.ttest_rel((shared + a).mean(0), (shared + b).mean(0))
    low, high = found.confidence_interval(0.95)
    assert tuple(ours.difference_interval(by)) == pytest.approx(((a - b).mean(), low, high))
    assert ours.difference_p(by) == pytest.approx(found.pvalue)


def test_a_missing_run_by_hand():
    """Two tasks, three seeds, one run missing: means .5 and .3; what the seeds move is (-.4/3 - .1/2)/2, (0 + .1/2)/2 and (.4/3)/2."""
    by = np.array([[0.1, 0.5, 0.9], [0.2, 0.4, NAN]])
    moved = [(-0.4 / 3 - 0.05) / 2, 0.05 / 2, 0.4 / 3 / 2]
    half = stats.t.ppf(0.975, 2) * np.sqrt(3 / 2 * sum(x * x for x in moved))
    assert tuple(ours.difference_interval(by)) == pytest.approx((0.4, 0.4 - half, 0.4 + half))


def test_differences_that_are_all_the_same():
    """Two seeds that agree say nothing of a third; three that do, from agents that draw nothing, are a difference."""
    assert np.isnan(ours.difference_p(np.full((1, 2), 0.1))) and ours.difference_p(np.full((1, 3), 0.1)) == 0
    assert ours.difference_p(np.zeros((2, 2))) == 1 and np.isnan(ours.difference_p(np.array([[0.3]])))


def test_holm_by_hand():
    # sorted .01 .02 .03 .04: times 4, 3, 2, 1, made monotone
    assert ours.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert np.isnan(ours.holm([0.5, float("nan")])[1])
