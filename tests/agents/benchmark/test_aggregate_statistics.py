"""Statistics of the benchmark against scipy, loops, hand-worked numbers and a known distribution."""

import itertools

import numpy as np
import pytest
from scipy import stats

from agents.benchmark import aggregate_statistics as ours

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


def test_interval_is_the_quantiles_of_all_equally_likely_samples():
    """With two tasks of two runs each there are 16 samples: the bootstrap must find their distribution."""
    runs = [np.array([0.0, 1.0]), np.array([10.0, 30.0])]
    means = [np.mean([*one, *two]) for one in itertools.product(runs[0], repeat=2) for two in itertools.product(runs[1], repeat=2)]
    found = ours.interval(ours.mean, runs, resamples=20_000)
    assert found.value == np.mean([0, 1, 10, 30])
    assert (found.low, found.high) == (min(means), max(means))  # the extremes have chance 1/16 each, beyond 2.5%
    inner = [ours.interval(ours.mean, runs, resamples=1, seed=s).low for s in range(4000)]
    for value in set(means):
        assert np.mean(np.isclose(inner, value)) == pytest.approx(np.mean(np.isclose(means, value)), abs=0.03)


def test_resampling_keeps_to_the_task():
    runs = [np.zeros(5), np.ones(5)]
    assert ours.interval(ours.mean, runs) == (0.5, 0.5, 0.5)  # drawn across tasks it would spread


def test_interval_of_a_comparison_draws_both_agents():
    found = ours.interval(ours.improvement, A, B)
    assert found.low <= found.value <= found.high
    rng = np.random.default_rng(1)
    loop = []
    for _ in range(1000):
        ones, twos = ([rng.choice(task, len(task)) for task in runs] for runs in (A, B))
        loop.append(np.mean([np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b]) for a, b in zip(ones, twos, strict=True)]))
    np.testing.assert_allclose(found[1:], np.quantile(loop, [0.025, 0.975]), atol=0.03)


def test_interval_covers_the_truth():
    rng, hits = np.random.default_rng(2), 0
    for _ in range(200):
        runs = [rng.normal(task, 1, 20) for task in range(3)]
        found = ours.interval(ours.mean, runs, resamples=200)
        hits += found.low <= 1 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_profile_band_holds_the_profile():
    thresholds = np.linspace(0, 1, 11)
    low, high = ours.profile_band(A, thresholds, resamples=500)
    assert (low <= ours.profile(A, thresholds)).all() and (ours.profile(A, thresholds) <= high).all()
    assert (high - low).max() > 0.1


@pytest.mark.parametrize(("statistic", "agents"), [("iqm", 1), ("optimality_gap", 1), ("mean", 1), ("improvement", 2)])
def test_all_samples_at_once_are_the_samples_one_by_one(statistic, agents):
    statistic, agents = getattr(ours, statistic), [A, B][:agents]
    drawn, rng = [], np.random.default_rng(0)
    samples = [[task[rng.integers(len(task), size=(300, len(task)))] for task in runs] for runs in agents]
    for i in range(300):
        drawn.append(statistic(*([task[i] for task in runs] for runs in samples)))
    expected = (statistic(*agents), *np.quantile(drawn, [0.025, 0.975]))
    assert ours.interval(statistic, *agents, resamples=300) == pytest.approx(expected)
