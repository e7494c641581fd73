"""Agreement and annotators' accuracy against published numbers, brute force, and loops."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from rewards import Preference
from rewards.preferences.label_consensus import agreement, consensus, warn_of_disagreement
from rewards.preferences.rater_agreement import dawid_skene, krippendorff_alpha, rating_matrix, raw_agreement
from textrl_env.reward_warnings import RewardWarning

N = math.nan
# the example in Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": four observers, twelve units
OBSERVERS = np.array([
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
])  # fmt: skip


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_the_published_example(level, alpha):
    assert krippendorff_alpha(OBSERVERS, level) == pytest.approx(alpha, abs=5e-4)


def alpha_by_pairs(ratings, level):
    """1 - D_o / D_e, pair of ratings by pair of ratings."""
    units = [[v for v in column if not math.isnan(v)] for column in ratings.T]
    units = [unit for unit in units if len(unit) > 1]
    values = [v for unit in units for v in unit]
    count = Counter(values)

    def delta(a, b):
        if level == "nominal":
            return float(a != b)
        if level == "interval":
            return (a - b) ** 2
        low, high = min(a, b), max(a, b)
        return (sum(n for v, n in count.items() if low <= v <= high) - (count[a] + count[b]) / 2) ** 2 if a != b else 0.0

    observed = sum(delta(a, b) / (len(unit) - 1) for unit in units for a, b in itertools.permutations(unit, 2)) / len(values)
    expected = sum(delta(a, b) for a, b in itertools.permutations(values, 2)) / (len(values) * (len(values) - 1))
    return 1 - observed / expected


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("seed", range(5))
def test_alpha_by_brute_force(level, seed):
    rng = np.random.default_rng(seed)
    ratings = np.where(rng.random((5, 30)) < 0.4, N, rng.integers(1, 6, (5, 30)).astype(float))
    assert krippendorff_alpha(ratings, level) == pytest.approx(alpha_by_pairs(ratings, level), abs=1e-12)


def test_alpha_at_the_edges():
    assert krippendorff_alpha(np.array([[1.0, 2, 3], [1, 2, 3]])) == 1
    assert math.isnan(krippendorff_alpha(np.array([[1.0, N], [N, 2]])))
    assert math.isnan(krippendorff_alpha(np.ones((2, 3))))
    assert krippendorff_alpha(np.array([[0.0, 1], [1, 0]])) == pytest.approx(-0.5)  # 1 - 3 * 4 / (2 * 2 * 2)
    with pytest.raises(ValueError, match="raters, units"):
        krippendorff_alpha(np.ones(3))
    with pytest.raises(ValueError, match="ordinary"):
        krippendorff_alpha(OBSERVERS, "ordinary")


def test_raw_agreement_by_hand():
    answers = [(1, "x", 0), (1, "y", 0), (1, "z", 1), (2, "x", 1), (2, "y", 1), (3, "x", 0)]
    assert raw_agreement(answers) == {1: (1, 3), 2: (1, 1)}
    assert rating_matrix(answers)[:, 0].tolist() == [0, 0, 1] and np.isnan(rating_matrix(answers)[2, 1:]).all()


def simulate(accuracies, items, labels, seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(labels, size=items)
    answers = []
    for number, accuracy in enumerate(accuracies):
        wrong = (truth + rng.integers(1, labels, size=items)) % labels
        said = np.where(rng.random(items) < accuracy, truth, wrong)
        answers += [(item, f"w{number}", int(label)) for item, label in enumerate(said)]
    return truth, answers


def em_by_loops(answers, labels, smoothing=1.0, rounds=500):
    """Dawid and Skene's steps (2.3) to (2.5), one number at a time."""
    items, people = sorted({a[0] for a in answers}), sorted({a[1] for a in answers})
    chance = {i: [sum(a[0] == i and a[2] == k for a in answers) / sum(a[0] == i for a in answers) for k in range(labels)] for i in items}
    of = {i: [a for a in answers if a[0] == i] for i in items}
    shared = [i for i in items if len({a[1] for a in of[i]}) > 1]
    for _ in range(rounds):
        prior = [(sum(chance[i][k] for i in shared) + smoothing) / (len(shared) + labels * smoothing) for k in range(labels)]
        table = {w: [[smoothing * (1 if j == k else 1 / (labels - 1)) for j in range(labels)] for k in range(labels)] for w in people}
        for item, who, label in answers:
            for k in range(labels if item in shared else 0):
                table[who][k][label] += chance[item][k]
        rate = {w: [[c / sum(row) for c in row] for row in rows] for w, rows in table.items()}
        for i in items:
            weight = [prior[k] * math.prod(rate[w][k][label] for _, w, label in of[i]) for k in range(labels)]
            chance[i] = [x / sum(weight) for x in weight]
    return chance, {w: sum(prior[k] * rate[w][k][k] for k in range(labels)) for w in people}


@pytest.mark.parametrize("labels", [2, 3])
def test_dawid_skene_equals_loops(labels):
    rng = np.random.default_rng(labels)
    answers = [a for a in simulate((0.9, 0.7, 0.6), 40, labels, 1)[1] if rng.random() < 0.8]
    found = dawid_skene(answers, labels)
    chance, accuracy = em_by_loops(answers, labels)
    for item, expected in chance.items():
        assert found.posterior[item] == pytest.approx(expected, abs=1e-5)
    assert {w: pytest.approx(a, abs=1e-5) for w, a in accuracy.items()} == found.accuracy


def test_accuracies_are_recovered():
    true = (0.95, 0.85, 0.70, 0.55)
    errors = []
    for seed in range(20):
        found = dawid_skene(simulate(true, 500, 2, seed)[1], 2)
        errors += [abs(found.accuracy[f"w{i}"] - accuracy) for i, accuracy in enumerate(true)]
    assert np.mean(errors) <= 0.03


def test_gold_questions_decide():
    answers = [(i, "sole", i % 2) for i in range(40)]
    known = {i: 1 - i % 2 for i in range(40)}
    assert dawid_skene(answers, 2, known).accuracy["sole"] == pytest.approx(1 / 22, abs=1e-9)  # one added to 0 of 20, and to 20 of 20


@pytest.mark.reports("Answers that one person alone gave keep their direction in a consensus, or are refused")
def test_answers_of_one_person_alone():
    alone = [Preference(f"p{i}", *(("good", "bad") if i % 2 else ("bad", "good")), annotator="sole") for i in range(30)]
    with pytest.raises(ValueError, match="each of 30 pairs has the answers of one person, and none is a gold question"):
        consensus(alone)
    truth, answers = simulate((0.95, 0.75), 300, 2, 0)
    merged = {p.prompt: p for p in consensus([*compare(truth, answers), *(replace(p, prompt=f"own {p.prompt}") for p in alone)])}
    own = [merged[f"own p{i}"] for i in range(30)]
    assert [p.chosen for p in own] == [p.chosen for p in alone]
    assert all(p.label == pytest.approx(0.85, abs=0.06) for p in own)  # as reliable as the others are in the mean
    shared = dawid_skene(answers, 2)
    more = dawid_skene([*answers, *((f"own {i}", "w0", 1) for i in range(500))], 2)  # what nobody else answered teaches nothing
    assert more.accuracy == pytest.approx(shared.accuracy) and more.prior == pytest.approx(shared.prior)


def test_bad_input():
    with pytest.raises(ValueError, match="at least one answer"):
        dawid_skene([], 2)
    with pytest.raises(ValueError, match=r"0 \.\. 1"):
        dawid_skene([(0, "w", 2)], 2)


def compare(truth, answers):
    return [Preference(f"p{i}", *(("good", "bad") if label == truth[i] else ("bad", "good")), annotator=w) for i, w, label in answers]


def test_consensus_counts_or_weighs():
    pairs = [Preference("p", "x", "y", annotator=w) for w in "ab"] + [Preference("p", "y", "x", annotator="c")]
    (counted,) = consensus(pairs, weigh=False)
    assert (counted.chosen, counted.rejected, counted.label) == ("x", "y", pytest.approx(2 / 3))
    (even,) = consensus([Preference("p", "x", "y", 0.5), Preference("p", "x", "y")], weigh=False)
    assert even.label == 0.75
    truth, answers = simulate((0.97, 0.6, 0.6), 300, 2, 0)
    given = compare(truth, answers)
    right = {weigh: np.mean([p.chosen == "good" for p in consensus(given, weigh)]) for weigh in (False, True)}
    assert right[True] > right[False] + 0.04  # the reliable one outweighs two who are not
    assert agreement(given) == pytest.approx(krippendorff_alpha(rating_matrix(answers)), abs=0.03)


@pytest.mark.reports("A consensus takes labels that are probabilities as such, or refuses them")
def test_consensus_of_soft_labels():
    given = [Preference("p", "x", "y", 0.8, annotator="a"), Preference("p", "y", "x", 0.9, annotator="b")]
    (mean,) = consensus(given, weigh=False)
    assert (mean.chosen, mean.label) == ("y", pytest.approx((0.2 + 0.9) / 2))
    with pytest.raises(ValueError, match=r"label=0\.8 is a probability"):
        consensus(given)


@pytest.mark.parametrize("weigh", [False, True])
@pytest.mark.parametrize(
    ("given", "margin"),
    [
        ([("x", 2.0), ("x", 2.0)], 2.0),
        ([("x", 2.0), ("x", 1.0), ("y", 5.0), ("x", 0.0)], 1.0),  # (2 + 1 + 0) / 3, the other side in the label alone
        ([("x", 2.0), ("x", 1.0), ("tie", 4.0)], 1.5),
        ([("tie", 2.0), ("tie", 2.0)], 0.0),
    ],
)
def test_a_consensus_has_the_margin_of_those_who_agree_with_it(given, margin, weigh):
    said = {"x": ("x", "y", 1.0), "y": ("y", "x", 1.0), "tie": ("x", "y", 0.5)}
    answers = [Preference("p", *said[side], by, annotator=str(i)) for i, (side, by) in enumerate(given)]
    more = [Preference(f"p{i}", *said["xy"[i % 2]], annotator=str(who)) for i in range(20) for who in range(len(given))]  # all agree
    merged, *others = consensus([*answers, *more], weigh)
    assert merged.margin == margin and {other.margin for other in others} == {0.0}
    (tie,) = consensus([Preference("p", *said[side], 2.0) for side in "xy"], weigh=False)
    assert tie.is_tie and tie.margin == 0


@pytest.mark.reports("Annotators agree on one pair, however its texts are spaced and capitalised")
def test_agreement_on_texts_that_are_nearly_equal():
    given = [Preference(f"p{i}", *(("Fine", "poor") if i % 3 else ("poor", "Fine")), annotator="a") for i in range(30)]
    again = [Preference(p.prompt.upper(), f" {p.chosen.upper()} ", p.rejected, annotator="b") for p in given]
    assert agreement([*given, *again]) == 1
    merged = consensus([*given, *again])
    assert len(merged) == 30 and {(m.chosen, m.rejected) for m in merged} == {("Fine", "poor"), ("poor", "Fine")}
    cases = [Preference("p", "Fine", "fine", annotator=who) for who in "ab"] + [Preference("p", "fine", "Fine", annotator="c")]
    (merged,) = consensus(cases, weigh=False)
    assert (merged.chosen, merged.label) == ("Fine", pytest.approx(2 / 3))


def test_disagreement_warns():
    truth, answers = simulate((0.52, 0.5), 300, 2, 0)
    with pytest.warns(RewardWarning, match="agree little"):
        warn_of_disagreement(compare(truth, answers))
    truth, answers = simulate((0.9, 0.9), 300, 2, 0)
    warn_of_disagreement(compare(truth, answers))  # warnings are errors here
    warn_of_disagreement([Preference("p", "x", "y")])
