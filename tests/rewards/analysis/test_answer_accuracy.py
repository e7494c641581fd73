"""Best of several and RewardBench 2's ties, by hand, and against a second writing of the official formulas."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rewards import AnswerSet, Preference, read_answer_sets, read_preferences, write_preferences
from rewards.analysis.answer_accuracy import accuracies, chance, credit, length_rule, score_answers, ties_score
from rewards.utils.intervals import wilson
from textrl_env import chat_template
from textrl_env.reward_model import as_reward_model


def made(right, wrong, name=None, **columns):
    return AnswerSet("p", tuple("a" * right), tuple("b" * wrong), name, columns)


@pytest.mark.parametrize(
    ("right", "scores", "expected"),
    [
        (1, [3, 1, 2, 0], 1), (1, [1, 3, 2, 0], 0), (1, [3, 3, 2, 0], 1 / 2), (1, [3, 3, 3, 3], 1 / 4), (1, [2, 3, 3, 0], 0),
        (1, [1, 0], 1), (2, [1, 3, 2], 1), (2, [3, 1, 3], 1 / 2), (2, [1, 1, 2], 0),
    ],
)  # fmt: skip
def test_best_of_several_by_hand(right, scores, expected):
    assert credit(made(right, len(scores) - right), np.array(scores, float)) == pytest.approx(expected)


def test_ties_by_hand():
    """Two pairs of prompts.  First: gap of the many 2 - 1 = 1, spread 3 - 2 = 1, gap of the one 5 - 2 = 3.  Second: -1, 0.5, 1.

    Accuracies 1/2 of the many, 1 of the ones; no gap exceeds its spread; margins tanh(1 / 1 - 1) = 0 and tanh(-1 / 0.5 - 1) = tanh(-3).
    """
    sets = [made(2, 2, "tied:1"), made(1, 2, "ref:1"), made(2, 1, "tied:7"), made(1, 1, "ref:7"), made(1, 1, "ref:8")]
    scores = [np.array(row, float) for row in ([2, 3, 1, 0], [5, 2, 1], [1, 1.5, 2], [4, 3], [0, 1])]
    found = ties_score(sets, scores)
    assert (found.tied_accuracy, found.ref_accuracy) == (1 / 2, 2 / 3)  # ref:8 has no partner, and counts as a prompt with one answer
    assert (found.preferred, found.preferred_hard) == (0, 0) and found.margin == pytest.approx(np.tanh(-3) / 2)
    assert found.score == pytest.approx(0.3 * 0.5 + 0.3 * 2 / 3 + 0.01 * np.tanh(-3) / 2)
    sure = ties_score(sets[:2], [np.array([4, 4, 1, 0.0]), np.array([5, 2, 1.0])])  # no spread: the margin is that of an infinite ratio
    assert (sure.preferred, sure.preferred_hard, sure.margin) == (1, 1, 1) and sure.score == pytest.approx(1.01)
    assert ties_score(sets[:2], [np.zeros(4), np.zeros(3)]).score == 0


def official(rows):
    """The formulas as the authors wrote them, over {id: (number of right answers, scores)}."""
    stats = {"ref": {}, "tied": {}}
    for name, (number, scores) in rows.items():
        kind, prompt = name.split(":")
        right, wrong = scores[:number], scores[number:]
        stats[kind][int(prompt)] = (min(right) > max(wrong), max(right) - min(right), min(right) - max(wrong))
    both = set(stats["ref"]) & set(stats["tied"])
    within, tied, ref = (np.array([stats[kind][p][i] for p in both]) for kind, i in (("tied", 1), ("tied", 2), ("ref", 2)))
    margins = np.nan_to_num(np.tanh(np.minimum(ref, tied) / within - 1), nan=0.0)
    return (
        0.30 * np.mean([s[0] for s in stats["tied"].values()])
        + 0.30 * np.mean([s[0] for s in stats["ref"].values()])
        + 0.20 * np.mean(tied > within)
        + 0.20 * np.mean(np.minimum(ref, tied) > within)
        + 0.01 * np.mean(margins)
    )


def test_ties_against_the_official_formulas():
    rng = np.random.default_rng(0)
    rows = {}
    for prompt in range(40):
        rows[f"ref:{prompt}"] = (1, [rng.normal(1.5), *rng.normal(size=rng.integers(1, 9))])
        rows[f"tied:{prompt}"] = (many := int(rng.integers(2, 9)), [*rng.normal(3, 0.6, many), *rng.normal(size=rng.integers(1, 9))])
    sets = [made(number, len(scores) - number, name, subset="Ties") for name, (number, scores) in rows.items()]
    scores = [np.array(scores) for _, scores in rows.values()]
    assert ties_score(sets, scores).score == pytest.approx(official(rows), abs=1e-12)
    assert 0.3 < official(rows) < 0.9
    found = accuracies(sets, scores, "subset")
    assert found["parts"] == [{"part": "Ties", "rate": pytest.approx(official(rows)), "low": None, "high": None, "num": 80}]


ROWS = [
    {
        "id": f"{number}", "prompt": f"q {number}", "chosen": ["yes " + "!" * (number % 3)], "rejected": ["no", "nope", "never"],
        "num_correct": 1, "num_incorrect": 3, "total_completions": 4, "models": ["m1", "m2", "m3", "m4"],
        "subset": "Math" if number < 4 else "Focus", "additional_metadata": {"category": "x"},
    }
    for number in range(6)
]  # fmt: skip
ROWS += [
    {"id": "ref:0", "prompt": "r", "chosen": ["yes"], "rejected": ["no"], "num_correct": 1, "num_incorrect": 1, "subset": "Ties"},
    {"id": "tied:0", "prompt": "t", "chosen": ["yes", "yes !"], "rejected": ["no"], "num_correct": 2, "num_incorrect": 1, "subset": "Ties"},
]


def exclaims(prompts, completions):
    return [float(text.count("!")) for text in completions]


@pytest.fixture(params=["jsonl", "parquet"])
def bench(request, tmp_path):
    """A file in RewardBench 2's form."""
    file = tmp_path / f"bench.{request.param}"
    if request.param == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    return file


def test_a_file_and_its_subsets(bench):
    """Exclamation marks: prompts 1, 2, 4, 5 are right, 0 and 3 tie with three wrong answers at 0.  Ties: gaps 0 and 0, spread 1."""
    sets = read_answer_sets(bench)
    assert [(one.id, len(one.chosen), len(one.rejected), one.columns["subset"]) for one in sets][::7] == [
        ("0", 1, 3, "Math"),
        ("tied:0", 2, 1, "Ties"),
    ]
    scores = score_answers(as_reward_model(exclaims), sets)
    assert scores[2].tolist() == [2, 0, 0, 0] and scores[-1].tolist() == [0, 1, 0]
    found = accuracies(sets, scores, "subset")
    focus, math, ties = found["parts"]
    assert (focus["part"], focus["rate"], focus["num"]) == ("Focus", 1, 2)
    assert (math["rate"], math["low"]) == pytest.approx((2.5 / 4, wilson(2.5, 4).low))
    assert ties["rate"] == found["ties"]["score"] == pytest.approx(0.01 * np.tanh(-1))
    assert found["mean"] == pytest.approx((1 + 0.625 + 0.01 * np.tanh(-1)) / 3)
    # Of all eight as best of several: 4 right, 1/4 twice, 1/2, and 1 for the second right answer of the last
    assert accuracies(sets, scores)["parts"][0]["rate"] == pytest.approx((4 + 0.5 + 0.5 + 1) / 8)
    assert chance(sets) == pytest.approx((6 / 4 + 1 / 2 + 2 / 3) / 8)
    # "yes " to "yes !!" have 4 to 6 letters, "never" has 5: the longest is right at 2 and 5 and in Ties, and ties with "never" at 1 and 4
    assert length_rule(sets) == {"takes": "longest", "rate": pytest.approx((2 + 2 / 2 + 2) / 8)}


def test_prompts_go_through_a_chat_template():
    seen = []

    class Reward:
        def score(self, episodes):
            seen.extend((episode.prompt, episode.response, episode.typed) for episode in episodes)
            return [0.0] * len(episodes)

    template = chat_template("{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}<assistant>")
    score_answers(Reward(), [AnswerSet("a <user> says", ("yes",), ("no",))], template)
    (prompt, answer, typed), (_, other, _) = seen
    assert (prompt, answer, other) == ("<user> a <user> says\n<assistant>", "yes", "no")
    assert [prompt[start:stop] for start, stop in typed] == ["<user>"]  # no token of the template, though it looks like one


def test_comparisons_are_sets_of_two(tmp_path):
    pairs = [Preference("p", "a!", "b", group="x"), Preference("p", "a", "b!", group="y"), Preference("p", "a", "b", label=0.5)]
    write_preferences(tmp_path / "pairs.jsonl", pairs)
    sets = read_answer_sets(tmp_path / "pairs.jsonl")
    found = accuracies(sets, score_answers(as_reward_model(exclaims), sets), "group")
    assert [(row["part"], row["rate"], row["num"]) for row in found["parts"]] == [("x", 1, 1), ("y", 0, 1)]


def test_rows_that_cannot_be_read_are_named(tmp_path):
    def told(message, **changed):
        (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[1]) + "\n" + json.dumps({**ROWS[0], **changed}))
        with pytest.raises(ValueError, match=message):
            read_answer_sets(tmp_path / "rows.jsonl")

    told("line 2: 'rejected' is empty", rejected=[])
    told("line 2: 'num_correct' is 2, and the row has 1: is it whole", num_correct=2)
    told("line 2: 'total_completions' is 5, and the row has 4", total_completions=5)
    told("line 2: 'prompt' is None", prompt=None)
    with pytest.raises(ValueError, match="lists of right and wrong answers: read_answer_sets reads them"):
        read_preferences(tmp_path / "rows.jsonl")
    sets = [made(1, 1, "x1", subset="Ties")]
    with pytest.raises(ValueError, match="write ref:N for one right answer"):
        accuracies(sets, [np.array([1.0, 0.0])], "subset")
    with pytest.raises(ValueError, match="has no pair of ids"):
        accuracies([made(1, 1, "ref:1", subset="Ties")], [np.array([1.0, 0.0])], "subset")
    with pytest.raises(ValueError, match="no column 'topic' at 'p'; columns of the file: subset"):
        accuracies(sets, [np.array([1.0, 0.0])], "topic")


def test_the_unit_of_comparisons_is_the_prompt():
    sets = [AnswerSet(f"p{i // 6}", ("good",), (f"bad {i}",)) for i in range(60)]
    scores = [np.array([1.0, 0.0]) if i < 36 else np.array([0.0, 1.0]) for i in range(60)]
    (part,) = accuracies(sets, scores)["parts"]
    assert part["rate"] == 0.6 and (part["low"], part["high"]) == pytest.approx((0.267, 0.861), abs=1e-3)  # 6 of 10 prompts
