"""Texts before and after training, compared by hand, by scipy and by brute force."""

import itertools

import numpy as np
import pytest
from scipy import stats

from agents.evaluation.text_comparison import compare, decimals, measures, signed
from rewards.utils.intervals import IntervalEstimate


def row(prompt, response, score, **more):
    given = {"return": score, "length": len(response.split()), "finish_reason": "eos", "kl": 0.0, "nats": 2.0, "tokens": 2} | more
    return {"prompt": prompt, "response": response, "score": score, **given}


def rows(scores, prompts=None, **more):
    prompts = prompts or [f"p{i}" for i in range(len(scores))]
    return [row(p, f"a b c {i}", s, **more) for i, (p, s) in enumerate(zip(prompts, scores, strict=True))]


def test_measures_by_hand():
    found = measures(
        [
            row("p", "a b a", 1.0, kl=0.5, nats=3.0, tokens=4, gold=2.0),
            row("q", "a b", 3.0, kl=1.5, nats=6.0, tokens=2, gold=4.0, finish_reason="length"),
            row("r", "a b", 2.0, kl=1.0, nats=0.0, tokens=3, gold=0.0, finish_reason="stop"),
        ]
    )
    assert found["score"] == 2 and found["gold"] == 2 and found["score_std"] == pytest.approx(np.sqrt(2 / 3))
    assert found["kl_per_sequence"] == 1 and found["perplexity"] == pytest.approx(np.exp(9 / 9))
    assert found["distinct_2"] == 2 / 4  # a-b, b-a, a-b, a-b
    assert found["length"] == pytest.approx(7 / 3) and found["ended"] == pytest.approx(2 / 3) and found["repeated"] == pytest.approx(1 / 3)
    assert (found["finished_by_eos"], found["finished_by_length"], found["finished_by_stop"]) == pytest.approx((1 / 3,) * 3)


def test_the_interval_is_students_of_pairs_and_close_to_a_bootstrap():
    rng = np.random.default_rng(0)
    before, after = rng.normal(0, 1, 60), rng.normal(0.4, 1, 60)
    after += 3 * (shared := rng.normal(0, 1, 60))  # what prompts share must not widen it
    before += 3 * shared
    change = compare(rows(before), rows(after)).change["score"]
    low, high = stats.ttest_rel(after, before).confidence_interval()
    assert tuple(change) == pytest.approx(((after - before).mean(), low, high))
    drawn = rng.choice(after - before, (4000, 60)).mean(1)
    assert [change.low, change.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.06)


def test_prompts_are_the_cases_where_they_repeat():
    """Every prompt three times: the same as its mean once; with fewer than ten prompts the texts are the cases."""
    rng = np.random.default_rng(1)
    before, after = rng.normal(size=36), rng.normal(1, 1, size=36)
    prompts = [f"p{i % 12}" for i in range(36)]
    difference = np.array([np.mean([after[i] - before[i] for i in range(k, 36, 12)]) for k in range(12)])
    expected = stats.ttest_1samp(difference, 0).confidence_interval()
    change = compare(rows(before, prompts), rows(after, prompts)).change["score"]
    assert (change.low, change.high) == pytest.approx(tuple(expected))
    few = [f"p{i % 3}" for i in range(36)]
    change = compare(rows(before, few), rows(after, few)).change["score"]
    assert (change.low, change.high) == pytest.approx(tuple(stats.ttest_rel(after, before).confidence_interval()))


def test_an_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    seen = [compare(rows(rng.exponential(1, 40)), rows(rng.exponential(1, 40))).change["score"] for _ in range(400)]
    assert 0.92 <= np.mean([low <= 0 <= high for _, low, high in seen]) <= 0.98


def test_verdicts_and_shares():
    zero, one = [0.0] * 8, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 0.0]
    found = compare(rows(zero), rows(one, kl=7.02))
    assert found.verdict.startswith("The reward rose from 0.0 to 1.0 (+1.0 [+0.6, +1.4]) at 7.0 nats of KL")
    assert (found.better.rate, found.equal.rate, found.worse.rate) == (7 / 8, 1 / 8, 0)
    assert compare(rows(one), rows(zero)).verdict.startswith("The reward fell from 1.0 to 0.0 (-1.0 [-1.4, -0.6])")
    assert compare(rows(zero), rows([1.0, -1.0] * 4)).verdict.startswith("No change beyond noise: the reward went from")
    same = compare(rows(one), rows(one))
    assert same.verdict.startswith("No change beyond noise") and same.equal.rate == 1
    alone = compare(None, rows(one))
    assert "no policy before it" in alone.verdict and alone.before is None and alone.after["score"] == 1
    one_text = compare(rows([0.0]), rows([1.0])).verdict
    assert one_text == "The reward went from 0.00 to 1.00 (+1.00) at 0.0 nats of KL per text; one prompt says nothing about chance."
    with pytest.raises(ValueError, match="same prompts"):
        compare(rows(one), rows(one, ["x"] * 8))
    with pytest.raises(ValueError, match="no texts"):
        compare(None, [])


def test_a_student_is_judged_by_its_distance_from_the_teacher():
    """Of ten prompts, KL falls by 3 with standard deviation 1: Student's half width is 2.262 / sqrt(10) = 0.715."""
    fall = np.array([-1.0, 1.0] * 5) * np.sqrt(9 / 10) - 3.0
    before = rows([0.0] * 10, kl=4.0)
    after = [{**row, "kl": 4.0 + change, "score": 5.0, "response": "x"} for row, change in zip(before, fall, strict=True)]
    found = compare(before, after, "kl")
    assert found.verdict == "The KL to the teacher fell from 4.0 to 1.0 (-3.0 [-3.7, -2.3]) nats per text."
    assert tuple(found.change["kl"]) == pytest.approx((-3.0, -3.715, -2.285), abs=1e-3)
    assert found.warnings == () and compare(before, after).warnings  # texts became short and alike, as the teacher's are
    assert "kl" not in compare(before, after).change and compare(before, after).verdict.startswith("The reward rose from 0.0")


def warned(before, after):
    return compare(before, after).warnings


def test_texts_that_degenerate_are_named():
    words = [" ".join(pair) for pair in itertools.permutations("abcdefg", 2)]
    varied = [row(f"p{i}", f"{w} x {w[::-1]}", 0.0) for i, w in enumerate(words)]
    assert warned(varied, varied) == ()
    same = [row(f"p{i}", "a b c d e", 1.0) for i in range(len(words))]
    (repetition,) = warned(varied, same)
    assert "distinct-2 fell from" in repetition
    (short,) = warned([{**r, "length": 9} for r in varied], [{**r, "length": 3} for r in varied])
    assert short.startswith("responses went from 9 to 3 tokens")
    cut = [{**r, "finish_reason": "length"} if i % 3 == 0 else r for i, r in enumerate(varied)]
    (ends,) = warned(varied, cut)
    assert "fewer texts come to an end: 100.0%" in ends
    one = [{**r, "finish_reason": "length"} if i == 0 else r for i, r in enumerate(varied)]
    assert warned(varied, one) == ()  # one of 42 is within the interval


def test_a_held_out_reward_that_falls_is_told():
    before = [{**r, "held_out": float(i % 2)} for i, r in enumerate(rows([0.0] * 20))]
    after = [{**r, "held_out": float(i % 2) - 1} for i, r in enumerate(rows([1.0, 0.5] * 10))]
    (message,) = warned(before, after)
    assert message.startswith("the held-out reward fell by -1.00 [-1.00, -1.00] while the reward rose")
    assert warned(after, before) == ()  # both the other way round


def test_numbers_have_the_digits_that_their_interval_asks_for():
    for half, shown in ((0.05, "0.63"), (0.25, "0.63"), (0.35, "0.6"), (0.004, "0.634"), (40, "1"), (0, "0.63")):
        assert decimals(0.634, IntervalEstimate(0.634, 0.634 - half, 0.634 + half)) == shown
    assert signed(IntervalEstimate(-0.5, -0.61, 0.3)) == "-0.5 [-0.6, +0.3]"
