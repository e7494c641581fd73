"""Answers as files: what an item's own columns said before does not override what people answered."""

import json
import math

import pytest

from rewards import Preference, read_preferences, write_preferences
from rewards.feedback.import_export import answer_rows, answers_of, items_of, preference_rows, rating_rows, to_label_studio
from rewards.feedback.items import EQUAL, Answer, Item
from rewards.feedback.manage_study import export_answers, import_answers
from rewards.feedback.pair_selection import Sample, choose_pairs
from rewards.feedback.study import Study
from rewards.preferences.policy_ranking import games_of, tournament
from textrl_env.utils.files import write_jsonl


def answered(row, value, **more):
    (item,) = items_of([row])
    return Answer(0, item, "ann", 0, tuple(range(len(item.responses))), value, {}, 0.0, 0.0, **more)


@pytest.mark.parametrize("said", [{"label": 0.2, "margin": 3.0}, {"label": 0.5}, {"preference": "rejected"}])
def test_an_answer_stands_above_the_columns_of_its_item(tmp_path, said):
    """A file of preferences that is judged anew reads back as people judged it."""
    row = {"prompt": "p", "chosen": " good", "rejected": " bad", "place": "here", **said}
    write_jsonl(tmp_path / "out.jsonl", preference_rows([answered(row, {"choice": "a"})], Study()))
    (read,) = read_preferences(tmp_path / "out.jsonl")
    assert (read.prompt, read.chosen, read.rejected, read.label, read.margin) == ("p", " good", " bad", 1.0, 0.0)
    assert isinstance(read, Preference) and read.metadata["place"] == "here"


def test_a_ranking_stands_above_earlier_ratings(tmp_path):
    row = {"prompt": "p", "responses": [" x", " y", " z"], "ratings": [3, 1, 2]}
    write_jsonl(tmp_path / "out.jsonl", preference_rows([answered(row, {"ranking": [2, 0, 1]})], Study(kind="ranking")))
    read = read_preferences(tmp_path / "out.jsonl")
    assert {(pair.chosen, pair.rejected) for pair in read} == {(" z", " x"), (" z", " y"), (" x", " y")}


def test_ratings_of_a_response_are_those_of_this_study():
    row = {"prompt": "p", "response": " x", "label": 0.1, "ratings": [1, 1]}
    (made,) = rating_rows([answered(row, {"rating": 5})], Study(kind="rating"))
    assert made["ratings"] == [5] and "label" not in made


def test_what_nobody_said_of_an_answer_is_not_taken_from_its_item():
    odd = {"choice": "tie", "reason": "none", "time": "now", "seconds": 3, "ratings_by_criterion": {}, "annotators": ["x"]}
    (made,) = preference_rows([answered({"prompt": "p", "responses": [" x", " y"], **odd}, {"choice": "b"})], Study())
    assert made == {"prompt": "p", "chosen": " y", "rejected": " x", "annotator": "ann", "order": [0, 1]}


def test_metadata_of_a_comparison_does_not_say_its_label(tmp_path):
    odd = Preference("p", " good", " bad", metadata={"label": 0.2, "margin": 3.0, "annotator": "x", "topic": "y"})
    write_preferences(tmp_path / "p.jsonl", [odd])
    assert read_preferences(tmp_path / "p.jsonl") == [Preference("p", " good", " bad", metadata={"topic": "y"})]


def test_pairs_that_are_there_are_not_asked_again_when_samples_are_added(make_store):
    samples = [Sample(f"p{i}", f" {source}{i}", source) for i in range(25) for source in ("A", "B")]
    store = make_store(choose_pairs(samples[:40], 100))
    assert store.add_items(choose_pairs(samples, 100, seed=1))[:2] == (5, 20)
    first = [item.sources[0] for _, item in store.items()]
    assert 5 <= first.count("A") <= 20  # of 25: the place of a text tells nothing of its source


def test_an_item_written_the_other_way_round_is_the_same_and_its_answers_are_turned(make_store):
    item = Item("p", (" x", " y"), ("A", "B"), "film", "a")
    other = Item("p", (" y", " x"), ("B", "A"), "film", "b")
    store = make_store([item, Item("q", (" x", " y"))])
    assert store.add_items([other, Item("p", (" y", " x"), ("B", "A"), "film", "a")])[:2] == (1, 1)  # the second has another right answer
    value = {"choice": "b", "ratings": {"fluent": [1, 5]}}
    given = [Answer(0, other, "p-0123456789ab", 0, (1, 0), value, {}, 9.0, 2.0)]
    given += [Answer(0, Item("q", (" y", " x")), "p-0123456789ab", 0, (0, 1), {"choice": "tie"}, {}, 9.5, 2.0)]
    assert store.add_answers(given) == (2, 0) and store.add_answers(given) == (0, 2)
    turned, tie = store.answers()
    assert (turned.item, turned.order) == (item, (0, 1)) and turned.value == {"choice": "a", "ratings": {"fluent": [5, 1]}}
    assert (tie.item_id, tie.order, tie.value) == (2, (1, 0), {"choice": "tie"}) and len(store.items()) == 3


def without_meta(task):
    return {key: value for key, value in task.items() if key != "meta"}


def other_way_round(task):
    data = {**task["data"], "response_a": task["data"]["response_b"], "response_b": task["data"]["response_a"]}
    turned = json.dumps(task["annotations"]).replace("left", "?").replace("right", "left").replace("?", "right")
    return {"data": data, "annotations": json.loads(turned)}


@pytest.mark.parametrize("change", [dict, without_meta, other_way_round])
def test_ones_own_label_studio_export_adds_nothing(make_store, tmp_path, change):
    given = [Item(f"p{i}", (" x", " y"), ("A", "B"), "film", metadata={"topic": "z"}) for i in range(2)]
    given += [Item("g", (" r", " w"), gold="a"), Item("p0", (" x", " z"))]
    store = make_store(given)
    store.add_answers([Answer(0, item, store.keys.name("ann"), 0, (0, 1), {"choice": "a"}, {}, 9.0, 2.0) for item in given])
    export_answers(store.folder, tmp_path / "own.json", "label-studio")
    tasks = [change(task) for task in json.loads((tmp_path / "own.json").read_text())]
    (tmp_path / "own.json").write_text(json.dumps(tasks))
    before = store.answers()
    assert len(before) == 4 and import_answers(store.folder, tmp_path / "own.json") == (0, 4)
    assert store.answers() == before and [item for _, item in store.items()] == given
    other = make_store(name="other")
    assert import_answers(other.folder, tmp_path / "own.json") == (4, 0)
    kept = [item for _, item in other.items()]
    assert kept == given if change is dict else {item.group for item in kept} == {None}


def test_a_label_studio_file_of_texts_as_they_were_before_personal_data_went(make_store, tmp_path):
    store = make_store([Item("mail ann@doe.example", (" x", " y"), group="film")])
    data = {"prompt": "mail ann@doe.example", "response_a": " x", "response_b": " y"}
    result = [{"type": "pairwise", "value": {"selected": "left"}}]
    (tmp_path / "in.json").write_text(json.dumps([{"data": data, "annotations": [{"completed_by": 7, "result": result}]}]))
    assert import_answers(store.folder, tmp_path / "in.json") == (1, 0)
    ((_, item),) = store.items()
    assert item.group == "film"


def test_personal_data_go_from_all_that_is_kept_of_an_item(make_store, tmp_path):
    pages = {"https://doe.example/jane": [{"by": "jane@doe.example"}, 4], "topic": None}
    row = {"prompt": "p", "responses": [" x", " y"], "group": "jane@doe.example", "sources": ["+44 20 7946 0958", "b"], "pages": pages}
    (item,) = items_of([row])
    store = make_store()
    added, known, scrubbed = store.add_items([item])
    assert (added, known, scrubbed) == (1, 0, {"e-mail": 2, "URL": 1, "phone": 1})
    clean = Item("p", (" x", " y"), ("[phone]", "b"), "[e-mail]", metadata={"pages": {"[URL]": [{"by": "[e-mail]"}, 4], "topic": None}})
    assert [item for _, item in store.items()] == [clean]
    assert store.add_items([item, clean])[:2] == (0, 2)
    assert store.add_answers([Answer(0, item, "p-0123456789ab", 0, (0, 1), {"choice": "a"}, {}, 9.0, 2.0)]) == (1, 0)
    export_answers(store.folder, tmp_path / "out.jsonl")
    written = (tmp_path / "out.jsonl").read_bytes() + b"".join(path.read_bytes() for path in store.folder.iterdir())
    assert b"doe.example" not in written and b"7946" not in written
    kept = make_store([item], name="kept", scrub=False)
    assert [item for _, item in kept.items()] == [item]


WORTH = {" good": 2, " fair": 1, " bad": 0}


def judged(store):
    """The games of a study that a perfect judge has answered."""
    who = store.enter("judge")
    while (shown := store.ask(who)) is not None:
        x, y = (WORTH[response] for response in shown.item.responses)
        assert x != y
        store.answer(who, shown.ticket, {"choice": "a" if x > y else "b"})
    given = [(a.item_id, a.item.sources, a.value) for a in store.answers()]
    return games_of([*given, *((number, item.sources, {"choice": "tie"}) for number, item in store.items() if item.gold == EQUAL)])


@pytest.mark.parametrize("first", ["A", "B"])
def test_a_text_of_two_policies_counts_for_both(make_store, first):
    wrote = {"A": (" good", " bad"), "B": (" good", " fair")}
    samples = [Sample(f"p{i}", text, who) for who in sorted(wrote, reverse=first == "B") for i in range(50) for text in wrote[who]]
    store = make_store(choose_pairs(samples, 1000), gold_share=0.5)
    games = judged(store)
    assert len(store.answers()) == 150 and len(games) == 200 and {game[:2] for game in games} == {("A", "B")}
    assert sum(game[2] for game in games) / 200 == 0.375  # (good, good), (good, fair), (bad, good), (bad, fair): 1/2, 1, 0, 0
    worse, better = sorted(tournament(games, samples=20), key=lambda s: s.player)
    assert worse.strength - better.strength == pytest.approx(math.log(0.375 / 0.625), abs=0.01)
    assert {item.sources for _, item in store.items() if item.gold == EQUAL} == {((first, "AB"["BA".index(first)]),) * 2}
    store.add_answers([Answer(0, Item("q", (" x", " y")), "p-0123456789ab", 0, (0, 1), {"choice": "a"}, {}, 9.0, 2.0)])  # counts anew
    assert store.progress(store.enter("judge")) == (150, 0) and store.ask(store.enter("other")) is None


def test_a_policy_that_comes_later_is_credited_for_texts_that_are_there(make_store):
    samples = [Sample("p", text, who) for who, texts in {"A": (" x", " y"), "B": (" y", " z")}.items() for text in texts]
    store = make_store(choose_pairs(samples, 10))
    later = choose_pairs([*samples, *(Sample("p", text, "C") for text in (" x", " y", " w"))], 10)
    turned = [Item(i.prompt, i.responses[::-1], i.sources[::-1], None, i.gold) for i in later]
    assert store.add_items(turned)[:2] == (4, 4)  # " w" with three others, " x" of A and C with itself
    credited, wanted = (
        {frozenset(zip(i.responses, i.sources, strict=True)) for i in one} for one in ([i for _, i in store.items()], later)
    )
    assert credited == wanted
    assert store.add_items([Item("q", (" x", " y")), Item("q", (" y", " x"), ("A", "B")), Item("q", (" x", " y"))])[:2] == (1, 2)
    assert store.items()[-1][1].sources == ("B", "A")


def test_equal_texts_are_ties_and_do_not_use_up_questions(make_store):
    wrote = {"A": [" good"] * 10 + [" fair"] * 90, "B": [" bad"] * 10 + [" fair"] * 90}
    samples = [Sample(f"p{i}", text, who) for who, texts in wrote.items() for i, text in enumerate(texts)]
    games = judged(make_store(choose_pairs(samples, 10)))
    assert len(games) == 100 and sum(game[2] for game in games) == pytest.approx(10 + 90 / 2)
    few = choose_pairs(samples, 2)
    assert sum(item.gold is None for item in few) == 2 and 3 < len(few) < 80  # ties as often as they are drawn
    assert [task["data"] for task in to_label_studio([], [(i, item) for i, item in enumerate(few)])] == [
        {"prompt": item.prompt, "response_a": item.responses[0], "response_b": item.responses[1]} for item in few if item.gold is None
    ]


def test_names_of_several_who_wrote_a_text_come_back(make_store, tmp_path):
    item = Item("p", (" x", " y"), (("A", "B"), "A"))
    store = make_store([item])
    assert items_of([{"prompt": "p", "responses": [" x", " y"], "sources": [["A", "B"], "A"]}]) == [item]
    given = [Answer(1, item, store.keys.name("ann"), 0, (0, 1), {"choice": "a"}, {}, 9.0, 2.0)]
    assert answers_of(json.loads(json.dumps(list(answer_rows(given)))))[0].item == item
    assert store.add_answers(given) == (1, 0) and store.answers()[0].item == item
    export_answers(store.folder, tmp_path / "out.json", "label-studio")
    assert import_answers(make_store(name="other").folder, tmp_path / "out.json") == (1, 0)
    ((_, read),) = make_store(name="other").items()
    assert read == item
