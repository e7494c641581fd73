"""What a report says of annotators whose habits are known."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from rewards import read_preferences
from rewards.feedback.import_export import (
    answer_rows,
    answers_of,
    consensus_of,
    from_label_studio,
    items_of,
    preference_rows,
    samples_of,
    to_label_studio,
)
from rewards.feedback.items import Answer, Item
from rewards.feedback.pair_selection import Sample, choose_pairs, disagreement
from rewards.feedback.quality_report import labels_of, quality_report
from rewards.feedback.study import Study
from rewards.preferences import agreement
from rewards.preferences.policy_ranking import games_of, tournament
from rewards.preferences.row_formats import preferences_of
from rewards.utils.intervals import clustered
from textrl_env.reward_model import as_reward_model

PAIR = Item("the film", (" was good", " was bad"), ("new", "old"), "x")


def answered(item_id, who, value, item=PAIR, turn=0, order=(0, 1), words=None, at=0.0, seconds=9.0):
    return Answer(item_id, item, who, turn, order, value, words or {}, at, seconds)


def study_of(items=200, seed=0):
    """Five people: careful, biased to the first place, careless, hasty and sound, and one who changes their mind."""
    rng = random.Random(seed)
    found = []
    for i in range(items):
        item = Item(f"p{i}", ("x", "y"), ("new", "old"), gold="a" if i % 10 == 0 else None)
        truth = "a" if i % 10 == 0 else rng.choice("ab")
        other = "b" if truth == "a" else "a"
        for who in ("careful", "first", "careless", "hasty", "fickle"):
            order = rng.choice([(0, 1), (1, 0)])
            choice = truth if rng.random() < 0.95 else other
            if who == "first" and rng.random() < 0.6:
                choice = "ab"[order[0]]
            if who == "careless":
                choice = rng.choice("ab")
            found.append(answered(i, who, {"choice": choice}, item, order=order, at=i, seconds=1.0 if who == "hasty" else 9.0))
            if who in ("careful", "fickle") and i % 4 == 0:
                again = choice if who == "careful" else rng.choice("ab")
                found.append(answered(i, who, {"choice": again}, item, 1, order[::-1], at=i + 0.5))
    return found


def test_habits_are_found():
    trust = quality_report(study_of(), Study())
    people = {p.name: p for p in trust.people}
    assert trust.answers == 1000 and trust.items == 200 and 0.2 < trust.alpha < 0.7
    assert people["careful"].accuracy == pytest.approx(0.95, abs=0.04) and people["careless"].accuracy == pytest.approx(0.5, abs=0.08)
    assert people["careful"].doubts == () and people["careful"].consistency.rate == 1 and people["careful"].consistency.num == 50
    assert any("gold" in d for d in people["careless"].doubts) and any("accuracy" in d for d in people["careless"].doubts)
    assert any("shown first" in d for d in people["first"].doubts) and people["first"].first_shown.rate > 0.7
    assert any("median time 1.0 s" in d for d in people["hasty"].doubts)
    assert any("repeated" in d for d in people["fickle"].doubts)
    assert len(people["careful"].curve) == 8 and np.mean(people["careful"].curve) > 0.8
    assert trust.contested and all(0.1 < bits <= 1.59 for *_, bits in trust.contested)
    assert all(len(responses) == 2 and count > 1 for _, responses, count, _ in trust.contested)


@pytest.mark.reports("Annotators whose answers came without times are not doubted for their haste")
def test_no_time_is_no_doubt():
    tasks = [
        {
            "data": {"prompt": f"p{i}", "response_a": "x", "response_b": "y"},
            "annotations": [{"completed_by": 7, "result": [{"type": "pairwise", "value": {"selected": "left" if i % 2 else "right"}}]}],
        }
        for i in range(30)
    ]
    imported = [replace(a, item_id=i) for i, a in enumerate(from_label_studio(tasks)[1])]
    (person,) = quality_report(imported, Study()).people
    assert person.answers == 30 and math.isnan(person.seconds) and person.doubts == ()
    assert all("seconds" not in row and "time" not in row for row in preference_rows(imported, Study()))
    rows = [{**row, "seconds": None, "answered_at": None} for row in answer_rows(imported)]
    assert {(a.seconds, a.answered_at) for a in answers_of(rows)} == {(0.0, 0.0)}
    hasty = [answered(90 + i, "7", {"choice": "ab"[i % 2]}, seconds=1.0) for i in range(3)]  # what was measured counts
    assert quality_report([*imported, *hasty], Study()).people[0].doubts == ("median time 1.0 s",)
    assert to_label_studio(imported, [(0, imported[0].item)])[0]["annotations"][0]["lead_time"] is None


def test_one_voice_has_no_agreement():
    trust = quality_report([answered(i, "sole", {"choice": "a"}) for i in range(3)] + [answered(9, "sole", {"skip": True})], Study())
    assert math.isnan(trust.alpha) and trust.agreement is None and math.isnan(trust.people[0].accuracy) and trust.people[0].skipped == 1


def test_agreement_takes_items_as_the_unit():
    """Three people rank three responses: two items alike, the third so that one person turns all around; 3 pairs of people, 3 of texts."""
    orders = {1: ("abc", "abc", "abc"), 2: ("cab", "cab", "cab"), 3: ("abc", "cba", "abc")}
    item = Item("p", ("a", "b", "c"))
    answers = [
        replace(answered(number, who, {"ranking": ["abc".index(text) for text in order]}), item=replace(item, prompt=f"p{number}"))
        for number, given in orders.items()
        for who, order in zip("xyz", given, strict=True)
    ]
    found = quality_report(answers, Study(kind="ranking")).agreement
    assert found == clustered(np.array([9, 9, 3]), np.array([9, 9, 9])) and found.num == 27


def turned(answer):
    """The same answer to the same item, written the other way round."""
    item, value = answer.item, dict(answer.value)
    flip = {"a": "b", "b": "a"}
    if "ranking" in value:
        value["ranking"] = [len(item.responses) - 1 - i for i in value["ranking"]]
    if "choice" in value:
        value["choice"] = flip.get(value["choice"], value["choice"])
    other = replace(item, responses=item.responses[::-1], sources=item.sources[::-1], gold=flip.get(item.gold, item.gold))
    return replace(answer, item=other, value=value, order=tuple(len(item.responses) - 1 - i for i in answer.order))


@pytest.mark.reports(
    "Items written with the better response first: alpha below 0 for annotators who agree, and a bot that clicks `a` rated best"
)
def test_the_column_of_a_response_does_not_count():
    # ann and bob take the better response nine times in ten and err on different items
    wrong = {("ann", 0), ("bob", 1)}
    given = [
        answered(i, who, {"choice": "b" if (who, i) in wrong else "a"}, Item(f"p{i}", (f"good{i}", f"bad{i}")), at=1.0 + i)
        for i in range(10)
        for who in ("ann", "bob")
    ]
    report = quality_report(given, Study())
    read = [p for row in preference_rows(given, Study()) for p in preferences_of(row)]
    # 20 answers, of which the hash numbers n one way: 1 - 19 * 4 / (2 * n * (20 - n)); by column n is 18, and alpha is -.056
    ones = sum(label for *_, label in labels_of(given, Study())[0])
    assert (
        report.alpha
        == pytest.approx(1 - 19 * 4 / (2 * ones * (20 - ones)))
        == pytest.approx(agreement(read))
        == pytest.approx(0.604, abs=5e-4)
    )
    bot = [answered(i, "bot", {"choice": "a"}, Item(f"p{i}", (f"good{i}", f"bad{i}")), at=1.0 + i) for i in range(10)]
    for answers in ([*given, *bot], study_of(60)):
        mixed = [turned(a) if a.item_id % 3 else a for a in answers]
        assert replace(quality_report(mixed, Study()), contested=()) == replace(quality_report(answers, Study()), contested=())


def test_rankings_do_not_know_columns_either():
    items = [Item(f"p{i}", (f"best{i}", f"middle{i}", f"worst{i}")) for i in range(30)]
    said = {"ann": [0, 1, 2], "bob": [0, 2, 1]}  # they agree on two of three pairs
    given = [answered(i, who, {"ranking": ranking}, item) for i, item in enumerate(items) for who, ranking in said.items()]
    study = Study(kind="ranking")
    alpha = quality_report(
        given, study
    ).alpha  # by column -.193: 150 of 180 labels are equal; half of them would give 1 - 179 / 180 * 2 / 3
    assert (
        alpha == pytest.approx(1 / 3, abs=0.03) and quality_report([turned(a) if a.item_id % 2 else a for a in given], study).alpha == alpha
    )


def test_labels_of_every_kind():
    rank = answered(1, "w", {"ranking": [2, 0, 1]}, Item("p", ("a", "b", "c")))
    better = {frozenset((i, j)): (j if label else i) for (_, i, j), _, label in labels_of([rank], Study(kind="ranking"))[0]}
    assert better == {frozenset((0, 1)): 0, frozenset((0, 2)): 2, frozenset((1, 2)): 2}
    rate = answered(1, "w", {"rating": 4}, Item("p", ("a",)))
    assert labels_of([rate], Study(kind="rating")) == ([(1, "w", 3)], 5, "ordinal")
    span = answered(1, "w", {"spans": [{"flag": "rude", "start": 4, "end": 7}]}, Item("p", ("the bad dog",)))
    assert [label for *_, label in labels_of([span], Study(kind="spans"))[0]] == [0, 1, 0]
    wrote = answered(1, "w", {"written": True}, Item("p", ()), words={"text": "x"})
    assert labels_of([wrote], Study(kind="demonstration"))[0] == []
    for answer, kind in ((rank, "ranking"), (rate, "rating"), (span, "spans"), (wrote, "demonstration")):
        assert quality_report([answer], Study(kind=kind)).answers == 1


def test_criteria_have_an_alpha_of_their_own():
    given = [answered(i, w, {"choice": "a", "ratings": {"fluent": [1 + i % 5, None]}}) for i in range(10) for w in "xy"]
    assert quality_report(given, Study(criteria=("fluent", "true"))).criteria["fluent"] == 1


def test_preferences_of_answers(tmp_path):
    given = [
        answered(1, "ann", {"choice": "b", "ratings": {"fluent": [1, 5]}}, order=(1, 0), words={"reason": "dull"}, at=86400.0),
        answered(2, "bob", {"choice": "tie"}),
        answered(3, "bob", {"choice": "bad"}),
        answered(4, "bob", {"skip": True}),
        answered(5, "bob", {"choice": "a"}, turn=1),
        answered(6, "bob", {"choice": "a"}, Item("g", ("x", "y"), gold="a")),
    ]
    rows = preference_rows(given, Study())
    assert rows[0] == {
        "prompt": "the film", "chosen": " was bad", "rejected": " was good", "annotator": "ann", "group": "x",
        "time": "1970-01-02T00:00:00+00:00", "seconds": 9.0, "order": [1, 0], "sources": ["new", "old"],
        "ratings_by_criterion": {"fluent": [1, 5]}, "reason": "dull",
    }  # fmt: skip
    assert [row.get("label") for row in rows] == [None, 0.5, 0.5] and rows[2]["choice"] == "bad"
    import json

    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_preferences(tmp_path / "p.jsonl")
    assert [(p.chosen, p.label, p.annotator, p.group) for p in read] == [
        (" was bad", 1, "ann", "x"), (" was good", 0.5, "bob", "x"), (" was good", 0.5, "bob", "x"),
    ]  # fmt: skip
    ratings = [answered(i, "ann", {"rating": 1 + i}, Item("p", (f"r{i}",))) for i in range(3)] + [
        answered(7, "bob", {"rating": 2}, Item("p", ("z",)))
    ]
    assert preference_rows(ratings, Study(kind="rating")) == [
        {"prompt": "p", "responses": ["r0", "r1", "r2"], "ratings": [1, 2, 3], "annotator": "ann"}
    ]
    (ranked,) = preference_rows([answered(1, "a", {"ranking": [1, 0]})], Study(kind="ranking"))
    assert ranked["responses"] == [" was bad", " was good"]
    demo = answered(1, "a", {"written": True}, Item("p", ("draft",)), words={"text": "better"})
    (wrote,) = preference_rows([demo], Study(kind="demonstration"))
    assert (wrote["chosen"], wrote["rejected"]) == ("better", "draft")
    with pytest.raises(ValueError, match="no preferences"):
        preference_rows([], Study(kind="spans"))


def test_answers_and_label_studio_come_back():
    given = study_of(6)
    assert [(a.item, a.annotator, a.value, a.order, a.turn) for a in answers_of(list(answer_rows(given)))] == [
        (a.item, a.annotator, a.value, a.order, a.turn) for a in given
    ]
    with pytest.raises(ValueError, match="row 1"):
        answers_of([{"item": {}}])
    said = [{"choice": "a"}, {"choice": "b"}, {"choice": "tie"}, {"choice": "bad"}, {"skip": True}]
    given = [answered(1, f"w{i}", value, at=1e9 + i, words={"reason": "so"} if i == 1 else {}) for i, value in enumerate(said)]
    tasks = to_label_studio(given, [(1, PAIR)])
    assert tasks[0]["annotations"][0]["result"] == [
        {"from_name": "pw", "to_name": "response_a,response_b", "type": "pairwise", "value": {"selected": "left"}}
    ]
    items, back = from_label_studio(tasks)
    assert items[0].responses == PAIR.responses and [a.value for a in back] == said and back[1].words == {"reason": "so"}
    assert [a.answered_at for a in back] == [1e9 + i for i in range(5)] and [a.annotator for a in back] == [f"w{i}" for i in range(5)]
    with pytest.raises(ValueError, match="task 1"):
        from_label_studio([{"data": {"text": "x"}}])


def test_items_and_samples_of_rows():
    rows = [
        {"prompt": "p", "responses": ["a", "b"], "sources": ["s", "t"], "gold": "b", "group": 3, "topic": "x"},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "response": "a"},
        {"prompt": "p"},
    ]
    items = items_of(rows)
    assert items[0] == Item("p", ("a", "b"), ("s", "t"), "3", "b", {"topic": "x"})
    assert [item.responses for item in items[1:]] == [("a", "b"), ("a",), ()]
    for wrong in ({"responses": ["a"]}, {"prompt": 3}, {"prompt": "p", "responses": "ab"}, {"prompt": "p", "response": None}):
        with pytest.raises(ValueError, match="row 1"):
            items_of([wrong])
    assert samples_of([{"prompt": "p", "response": "r"}], "s") == [Sample("p", "r", "s")]
    with pytest.raises(ValueError, match="row 1 of the samples of 's'"):
        samples_of([{"prompt": "p"}], "s")
    for read in (items_of, lambda rows: samples_of(rows, "s")):
        with pytest.raises(ValueError, match="row 1 has a picture"):
            read([{"prompt": "p", "response": "r", "image": "data:image/png;base64,"}])


def test_pairs_are_chosen_as_asked():
    samples = [Sample(f"p{i % 3}", f"r{i}", "new" if i % 2 else "old") for i in range(30)]
    found = choose_pairs(samples, 1000)
    assert len(found) == 3 * 45 and len({(f.prompt, frozenset(f.responses)) for f in found}) == 135
    across = [f.sources[0] != f.sources[1] for f in found]
    assert all(across[:75]) and not any(across[75:])  # 25 pairs of different sources for each prompt
    assert found == choose_pairs(samples, 1000) != choose_pairs(samples, 1000, seed=1)
    balanced = choose_pairs(samples, 30, "balanced")
    assert [sum(f.prompt == f"p{i}" for f in balanced) for i in range(3)] == [10, 10, 10]
    assert choose_pairs([Sample("p", "r"), Sample("p", "r"), Sample("q", "s")], 5) == []
    with pytest.raises(ValueError, match="at least 2"):
        choose_pairs(samples, 5, "uncertain")
    with pytest.raises(ValueError, match="best"):
        choose_pairs(samples, 5, "best")


def test_uncertain_pairs_come_first():
    long, short = (
        as_reward_model(lambda prompts, completions, sign=sign, **_: [sign * len(c) for c in completions]) for sign in (1.0, -1.0)
    )
    samples = [Sample("p", "a"), Sample("p", "bbb"), Sample("p", "cccc")]
    found = choose_pairs(samples, 3, "uncertain", [long, short])
    # margins of 3, 2 and 1: probabilities sigmoid(+-m), whose deviation is tanh(m / 2) / 2
    assert [abs(len(f.responses[0]) - len(f.responses[1])) for f in found] == [3, 2, 1]
    pairs = [(samples[0], samples[1])]
    assert disagreement(pairs, [long, short]) == pytest.approx([math.tanh(1.0) / 2])


def test_strengths_are_those_of_a_general_optimiser():
    rng = random.Random(0)
    true = {"a": 1.0, "b": 0.0, "c": -1.0}
    games = []
    for _ in range(300):
        x, y = rng.sample("abc", 2)
        games.append((x, y, rng.choice([0.5, float(rng.random() < 1 / (1 + math.exp(true[y] - true[x])))])))
    found = tournament(games, samples=200)
    assert [s.player for s in found] == ["a", "b", "c"] and all(s.low < s.strength < s.high for s in found)
    assert sum(s.strength for s in found) == pytest.approx(0, abs=1e-9) and sum(s.games for s in found) == 600

    def loss(x):
        strength = dict(zip("abc", x, strict=True))
        nll = sum(
            o * math.log1p(math.exp(strength[q] - strength[p])) + (1 - o) * math.log1p(math.exp(strength[p] - strength[q]))
            for p, q, o in games
        )
        return nll + 0.05 * sum(v * v for v in x)

    best = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 5000}).x
    assert [s.strength for s in found] == pytest.approx(list(best - best.mean()), abs=1e-4)
    said = [(("n", "o"), {"choice": "b"}), (("n", "o"), {"choice": "bad"}), (("n", "n"), {"choice": "a"}), ((), {"choice": "a"})]
    given = [(number, *one) for number, one in enumerate(said)]
    assert games_of(given) == [("n", "o", 0.0, 0), ("n", "o", 0.5, 1)]
    more = [(0, ("n", "o"), {"choice": "tie"}), (0, ("n", "o"), {"choice": "a"}), (0, ("n", "o"), {"skip": True})]
    assert games_of([*given, *more]) == [("n", "o", 0.5, 0), ("n", "o", 0.5, 1)]  # the mean of 0, 1/2 and 1
    with pytest.raises(ValueError, match="at least two"):
        tournament([])
    assert all(math.isfinite(s.strength) for s in tournament([("a", "b", 1.0)] * 50, samples=20))


def test_more_people_who_say_the_same_do_not_make_a_ranking_surer():
    said = [(i, ("A", "B"), {"choice": "a" if i < 36 else "b"}) for i in range(60)]
    once, thrice = (tournament(games_of(said * times), samples=1000) for times in (1, 3))
    width = 1.96 / math.sqrt(60 * 0.6 * 0.4)  # of half the log-odds of 36 wins in 60
    assert once == thrice and once[0].games == 60 and once[0].high - once[0].low == pytest.approx(width, abs=0.04)


@pytest.mark.reports("A text that three sources wrote is one pair of a ranking, not three")
def test_texts_of_several_sources_are_one_pair():
    said = [(i, (("p", "q", "r"), "s"), {"choice": "a" if i < 8 else "b"}) for i in range(12)]
    joined = {s.player: s for s in tournament(games_of(said))}
    assert joined["s"].games == 12 and joined["p"].games == 12
    alone = {s.player: s for s in tournament([("p", "s", float(i < 8), i) for i in range(12)])}
    width = alone["p"].high - alone["p"].low  # of half the log-odds of 8 wins in 12; s is a quarter of four players, and of two a half
    assert joined["s"].high - joined["s"].low == pytest.approx(1.5 * width, rel=0.15) and joined["s"].high > 0


@pytest.mark.reports("Uncertain pairs are of different sources first, and ties of one text stay among them")
def test_uncertain_pairs_of_one_source_come_last():
    samples = [Sample(f"same {i}", " t", source) for i in range(4) for source in ("x", "y")]
    samples += [Sample(f"own {i}", f" {source * (n + i)}", source) for i in range(4) for source in ("x", "y") for n in (1, 5)]
    models = [as_reward_model(lambda prompts, completions: [float(len(c)) for c in completions])]
    models.append(as_reward_model(lambda prompts, completions: [-float(len(c)) for c in completions]))
    found = choose_pairs(samples, 8, "uncertain", models)
    asked = [item for item in found if item.gold is None]
    assert len(asked) == 8 and all(len({*item.sources}) == 2 for item in asked)
    drawn = choose_pairs(samples, 8, "random")
    assert sum(item.gold is not None for item in found) == sum(item.gold is not None for item in drawn) > 0


@pytest.mark.reports("feedback export --consensus weighs by gold questions too, and leaves them out")
def test_a_consensus_of_single_answers_goes_by_gold_questions():
    gold = [replace(PAIR, prompt=f"gold {i}", gold="a") for i in range(20)]
    answers = [answered(i, who, {"choice": said}, item) for i, item in enumerate(gold) for who, said in (("A", "a"), ("B", "b"))]
    for i in range(30):
        who = "AB"[i % 2]
        answers.append(answered(100 + i, who, {"choice": "a"}, replace(PAIR, prompt=f"{who} {i}")))
    merged = consensus_of(answers, Study("pair"))
    assert len(merged) == 30 and not any(one.prompt.startswith("gold") for one in merged)
    for one in merged:  # of 20 gold questions A has all right and B none; the other half of each table is the smoothing's
        assert one.chosen == (" was good" if one.prompt[0] == "A" else " was bad") and one.label > 0.75
