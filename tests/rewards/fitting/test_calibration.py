import math

import numpy as np
import pytest
from scipy import optimize, stats

from rewards.fitting.calibration import fit_scales, fit_temperature, reliability
from rewards.utils.intervals import clustered, clustered_by, least_fall, prompt_units, wilson


@pytest.mark.parametrize(("successes", "num"), [(0, 1), (7, 10), (10, 10), (512, 1000), (3.5, 8)])
def test_wilson_against_its_definition(successes, num):
    # the interval's ends are the shares that a z-test at 5% just does not reject
    rate = wilson(successes, num)
    z = stats.norm.ppf(0.975)
    for end in (rate.low, rate.high):
        assert abs(rate.rate - end) == pytest.approx(z * math.sqrt(end * (1 - end) / num), abs=1e-6)
    assert rate.low <= rate.rate == successes / num <= rate.high
    if successes == int(successes):
        expected = stats.binomtest(int(successes), num).proportion_ci(method="wilson")
        assert (rate.low, rate.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_wilson_of_nothing_and_of_nonsense():
    nothing = wilson(0, 0)
    assert math.isnan(nothing.rate) and (nothing.low, nothing.high) == (0, 1)
    with pytest.raises(ValueError, match="successes=3 must be in"):
        wilson(3, 2)
    assert str(wilson(512, 1000)) == "51.2% [48.1%, 54.3%]"


def test_cases_that_come_in_clusters():
    """Of two clusters, the variance of the ratio is 2 / 1 (1 + 1) / 4^2 = .25 and that of 4 independent cases .0625: they count as one."""
    z, t = stats.norm.ppf(0.975), stats.t.ppf(0.975, 1)
    independent = (z / t) ** 2
    found = clustered(np.array([2, 0]), np.array([2, 2]))
    centre, half = 0.5, z * math.sqrt(0.25 / independent + z**2 / (4 * independent**2)) / (1 + z**2 / independent)
    assert (found.rate, found.low, found.high, found.num) == pytest.approx((0.5, centre - half, centre + half, 4))
    # all right: a cluster counts as one case, of 3
    found, independent = clustered(np.array([4, 2, 6]), np.array([4, 2, 6])), 3 * (z / stats.t.ppf(0.975, 2)) ** 2
    assert (found.low, found.high) == pytest.approx((1 / (1 + z**2 / independent), 1))
    assert clustered(np.array([3]), np.array([4])) == type(found)(0.75, 0, 1, 4)
    assert clustered(np.array([1, 0, 1, 0.5]), np.ones(4)) == wilson(2.5, 4)
    assert clustered(np.array([]), np.array([])).low == 0
    by_hand = clustered_by(np.array([1, 0.5, 0, 1, 1]), ["a", "b", "a", "c", "b"])
    assert by_hand == clustered(np.array([1, 1.5, 1]), np.array([2, 2, 1])) and by_hand.num == 5
    assert list(prompt_units(["x", "x"])) == [0, 1] and prompt_units(["x", "y", "x"]) == ["x", "y", "x"]
    for wrong in (([1], [1, 1]), ([2], [1]), ([-1], [1]), ([0], [0]), ([math.nan], [1])):
        with pytest.raises(ValueError, match=r"one number is needed|at least 1 case"):
            clustered(*map(np.array, wrong))


@pytest.mark.parametrize("clusters", [10, 40])
@pytest.mark.parametrize("even", [False, True])
def test_intervals_of_clusters_hold_the_truth(clusters, even):
    """Items of which each has its own share of equal answers, .7 in the mean, and six or 1 to 11 of them."""
    random, held = np.random.default_rng(0), np.zeros(2)
    for _ in range(2000):
        cases = np.full(clusters, 6) if even else random.integers(1, 12, clusters)
        successes = random.binomial(cases, random.beta(2.1, 0.9, clusters))
        for which, rate in enumerate((clustered(successes, cases), wilson(successes.sum(), cases.sum()))):
            held[which] += rate.low <= 0.7 <= rate.high
    assert 0.925 < held[0] / 2000 < 0.975 and held[1] / 2000 < 0.85


def test_the_fall_of_a_share_by_the_published_example():
    assert least_fall(wilson(56, 70), wilson(48, 80)) == pytest.approx(0.0524, abs=5e-5)  # Newcombe 1998, table II, example (a)
    assert -least_fall(wilson(48, 80), wilson(56, 70)) == pytest.approx(0.3339, abs=5e-5)


def test_calibration_error_by_hand():
    # confidences 0.75 (twice: right, wrong) and 0.9 (a tie): |0.75 - 0.5| * 2/3 + |0.9 - 0.5| * 1/3
    margins = np.array([math.log(3), -math.log(3), math.log(9)])
    table = reliability(margins, np.array([1.0, 1.0, 0.5]), bins=4)
    assert table.count.tolist() == [0, 0, 2, 1]
    assert table.confidence[2:] == pytest.approx([0.75, 0.9]) and table.frequency[2:] == pytest.approx([0.5, 0.5])
    assert table.error == pytest.approx(0.25 * 2 / 3 + 0.4 / 3)


def test_calibration_error_by_brute_force():
    rng = np.random.default_rng(0)
    margins, labels = rng.normal(0, 3, 400), rng.choice([0.5, 1.0, 0.8], 400)
    margins[:3] = 0.0, 800.0, -800.0
    sure = [1 / (1 + math.exp(-min(abs(m), 500))) for m in margins]
    right = [0.5 if m == 0 else y if m > 0 else 1 - y for m, y in zip(margins, labels, strict=True)]
    total = 0.0
    for k in range(10):
        low, high = 0.5 + 0.05 * k, 0.55 + 0.05 * k
        inside = [i for i, p in enumerate(sure) if low <= p < high or (k == 9 and p >= low)]
        total += abs(sum(sure[i] for i in inside) - sum(right[i] for i in inside)) / 400
    assert reliability(margins, labels).error == pytest.approx(total)


def loss(margins, labels, temperature):
    d = margins / temperature
    return np.mean(np.logaddexp(0, -d) + (1 - labels) * d)


def test_temperature_against_a_general_optimiser():
    rng = np.random.default_rng(1)
    truth = rng.normal(0, 1.5, 600)
    labels = np.where(rng.random(600) < 0.1, 0.5, 1.0)
    margins = 4 * np.where(rng.random(600) < 1 / (1 + np.exp(-truth)), truth, -truth)  # four times too sure
    found = fit_temperature(margins, labels)
    best = optimize.minimize_scalar(lambda t: loss(margins, labels, t), bounds=(0.1, 50), method="bounded", options={"xatol": 1e-7})
    assert found == pytest.approx(best.x, rel=1e-4)
    sure, calibrated = (reliability(margins / t, labels).error for t in (1.0, found))
    assert calibrated < sure


def test_temperature_stays_finite():
    assert fit_temperature(np.ones(5), np.ones(5)) == pytest.approx(0.01)  # all right: as sure as can be
    assert fit_temperature(-np.ones(5), np.ones(5)) == pytest.approx(100)  # all wrong: as unsure as can be
    assert fit_temperature(np.array([math.log(3)]), np.array([0.75])) == pytest.approx(1.0)


def test_scales_are_recovered():
    rng = np.random.default_rng(2)
    group = rng.integers(0, 3, 6000)
    truth = rng.normal(0, 1, 6000)
    inverse = np.array([0.25, 1.0, 4.0])[group]
    margins = np.where(rng.random(6000) < 1 / (1 + np.exp(-inverse * truth)), truth, -truth)
    scales = fit_scales(7 * margins, np.ones(6000), group, 4)  # the unit of the score must not matter
    assert np.prod(scales) == pytest.approx(1)
    ratios = np.array(scales[:3]) / scales[1]
    assert ratios == pytest.approx([0.25, 1.0, 4.0], rel=0.2)


@pytest.mark.parametrize("function", [reliability, fit_temperature])
def test_shapes_are_checked(function):
    for shapes in (((2,), (3,)), ((0,), (0,)), ((2, 1), (2, 1))):
        with pytest.raises(ValueError, match=r"shape \(N,\)"):
            function(*map(np.zeros, shapes))
