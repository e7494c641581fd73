"""Which item is asked next: the counts that are kept against a look at everything, and how much is looked at."""

import json
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from scipy.stats import binomtest

from rewards.feedback import database
from rewards.feedback.assignments import GOLD, REPEAT_AFTER, RESERVED, _draw_item, items_left
from rewards.feedback.database import annotator_id, open_engine, writing
from rewards.feedback.encryption import Keys
from rewards.feedback.items import Answer, Item
from rewards.feedback.load_test import Load, _check, run_load
from rewards.feedback.schema import item_row
from rewards.feedback.store import FeedbackStore
from rewards.feedback.study import Study, key_file
from tests.slow_cases import slow_but

from .conftest import pairs


class Seen:
    """The rule, from all showings and answers and the clock."""

    def __init__(self, store):
        with store.engine.connect() as db:
            self.gold = {row.id: row.gold is not None for row in db.execute(sa.text("SELECT id, gold FROM items ORDER BY id"))}
            self.rows = db.execute(
                sa.text(
                    "SELECT item_id, pseudonym, turn, shown_at, value, answered_at FROM showings JOIN annotators a ON a.id = annotator_id"
                    " LEFT JOIN answers ON showing_id = showings.id ORDER BY answered_at, showings.id"
                )
            ).all()
            self.kept = {row.id: (row.counted, row.place) for row in db.execute(sa.text("SELECT id, counted, place FROM items"))}
            self.tallies = {
                (row.pseudonym, row.counted): row.size
                for row in db.execute(
                    sa.text("SELECT pseudonym, counted, size FROM tallies LEFT JOIN annotators ON id = annotator_id WHERE size <> 0")
                )
            }
        self.study = store.study

    def count(self, item):
        """Answers that are given or will soon be, when whoever looked too long has been given up."""
        return sum(
            row.item_id == item
            and row.turn == 0
            and (row.shown_at > time.time() - RESERVED if row.value is None else "skip" not in json.loads(row.value))
            for row in self.rows
        )

    def own(self, who):
        return {row.item_id for row in self.rows if row.pseudonym == who}

    def wanted(self, who):
        counts = {item: self.count(item) for item, gold in self.gold.items() if not gold and item not in self.own(who)}
        return {item: count for item, count in counts.items() if count < self.study.overlap}

    def may_come(self, who):
        """Return the items of which one must be chosen, and the turn."""
        given = [row for row in self.rows if row.pseudonym == who and row.value is not None]
        draw = random.Random(f"{self.study.seed} {who} {len(given)}")
        lot = draw.random()
        again = {row.item_id for row in given if row.turn == 1}
        old = [row.item_id for row in given[:-REPEAT_AFTER] if row.item_id not in again and "skip" not in json.loads(row.value)]
        if lot < self.study.repeat_share and old:
            return {draw.choice(old)}, 1
        gold = {item for item, is_gold in self.gold.items() if is_gold} - {row.item_id for row in given}
        if self.study.repeat_share <= lot < self.study.repeat_share + self.study.gold_share and gold:
            return gold, 0
        wanted = self.wanted(who)
        return {item for item, count in wanted.items() if count == min(wanted.values())}, 0

    def progress(self, who):
        mine = [row.value is None for row in self.rows if row.pseudonym == who]
        return mine.count(False), len(self.wanted(who)) + mine.count(True)

    def check(self):
        """Compare with what is kept; to be called when nothing has expired since the last question."""
        assert {item: counted for item, (counted, _) in self.kept.items()} == {
            item: GOLD if gold else self.count(item) for item, gold in self.gold.items()
        }
        sizes = Counter(counted for counted, _ in self.kept.values())
        assert sorted(self.kept.values()) == sorted((counted, place) for counted, size in sizes.items() for place in range(size))
        people = {row.pseudonym for row in self.rows}
        own = Counter((who, self.kept[item][0]) for who in people for item in self.own(who))
        assert self.tallies == {**{(None, counted): size for counted, size in sizes.items()}, **own}


@pytest.mark.parametrize("seed", slow_but([0], [0, 1]))
def test_choices_are_those_of_a_look_at_everything(make_store, monkeypatch, seed):
    now = 1e9
    monkeypatch.setattr(time, "time", lambda: now)
    draw = random.Random(seed)
    items = [*pairs(draw.randint(8, 20)), *(Item(f"gold {i}", ("x", "y"), gold="a") for i in range(4))]
    store = make_store(items, name=str(seed), overlap=draw.randint(1, 3), repeat_share=0.2, gold_share=0.15, seed=seed)
    people = {store.enter(f"person {i}"): f"person {i}" for i in range(5)}
    asked = Counter()
    for step in range(160):
        now += draw.choice([1, 5, 60, 2000.0 if draw.random() < 0.2 else 2])
        who = draw.choice(list(people))
        shown = store.shown(who)
        if draw.random() < 0.05:
            store.undo(who)
        elif shown is not None and draw.random() < 0.85:
            assert store.answer(who, shown.ticket, {"skip": True} if draw.random() < 0.2 else {"choice": "a"})
        elif shown is None:
            allowed, turn = Seen(store).may_come(who)
            shown = store.ask(who)
            found = [row for row in Seen(store).rows if row.pseudonym == who and row.value is None]
            assert (found[0].item_id in allowed and found[0].turn == turn and len(found) == 1) if allowed else shown is None
            asked["repeat" if turn else "gold" if shown and shown.item.gold else "new" if shown else "nothing"] += 1
        if step == 60:
            store.add_items([Item("more", ("x", "y")), Item("more gold", ("x", "y"), gold="b")])
        elif step == 90:
            other = Answer(0, items[0], "p-000000000000", 0, (0, 1), {"choice": "b"}, {}, now, 3.0)
            skipped = replace(other, item=items[1], value={"skip": True})
            assert store.add_answers([other, skipped, replace(other, turn=1), replace(other, item=items[-1])]) == (4, 0)
        elif step == 120:
            store.forget(who)
            store.enter(people[who])
        progress = store.progress(who)  # releases what has expired
        seen = Seen(store)
        assert progress == seen.progress(who)
        seen.check()
    assert asked["new"] > 1 and sum(asked[kind] > 0 for kind in ("repeat", "gold", "nothing")) >= 2  # pseudonyms differ from run to run


@pytest.mark.parametrize("own", [2, 60])
def test_equals_have_the_same_probability(make_store, own):
    """With 2 of 64 one's own a place is found at once; with 60 all that are left are listed in (60 / 64)^16 = 36% of the draws."""
    store = make_store(pairs(64), overlap=2, repeat_share=0.0)
    ann, bob = store.enter("ann"), store.enter("bob")
    for who, most in ((bob, 64 - own), (ann, own)):
        for _ in range(most):
            store.answer(who, store.ask(who).ticket, {"choice": "a"})
    least = Seen(store).may_come(ann)[0]
    assert len(least) == 64 - own
    draws = 2000
    with store.engine.connect() as db:
        me = annotator_id(db, ann)
        ((counted, (size, left)),) = items_left(db, store.study, me).items()
        assert (counted, size, left) == (1, 64, 64 - own)
        counts = Counter(_draw_item(db, me, counted, size, random.Random(seed)).id for seed in range(draws))
    assert counts.keys() == least
    worst = min(binomtest(number, draws, 1 / len(least)).pvalue for number in counts.values())
    assert worst * len(least) > 0.01  # Bonferroni


def page_and_answer(store, who):
    """Do what the web page does between two clicks."""
    shown = store.shown(who)
    store.answer(who, shown.ticket, {"choice": "a"})
    store.page(who)


def steps_of(store, who):
    """Return how many instructions of SQLite's virtual machine a page and an answer take, in hundreds."""
    steps = 0

    def count():
        nonlocal steps
        steps += 1

    def listen(connection, *_):
        connection.set_progress_handler(count, 100)

    store.engine.dispose()
    sa.event.listen(store.engine, "checkout", listen)
    for _ in range(3):
        page_and_answer(store, who)
    sa.event.remove(store.engine, "checkout", listen)
    store.engine.dispose()
    return steps / 3


def test_no_question_looks_at_all_items_or_all_answers(make_store):
    steps = {}
    for number in (100, 3000):
        store = make_store(pairs(number), name=str(number), overlap=2)
        people = [store.enter(f"person {i}") for i in range(4)]
        asked = pairs(number // 2)
        store.add_answers([Answer(0, item, people[i % 3], 0, (0, 1), {"choice": "a"}, {}, 1.0, 1.0) for i, item in enumerate(asked)])
        for who in people:
            store.page(who)
        page_and_answer(store, people[0])
        steps[number] = steps_of(store, people[0])  # who has given a sixth of the answers
    assert steps[100] > 3 and steps[3000] < 1.5 * steps[100]  # 30 times the items and answers

    seen = set()
    sa.event.listen(store.engine, "before_cursor_execute", lambda *call: seen.add((call[2], tuple(call[3]) if not call[5] else call[3][0])))
    for _ in range(3):
        page_and_answer(store, people[1])
    with store.engine.connect() as db:
        queries = {(text, values) for text, values in seen if text.split()[0] in ("SELECT", "UPDATE", "DELETE", "INSERT")}
        plans = [row.detail for text, values in queries for row in db.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values)]
    tables = ("items", "showings", "answers", "annotators", "tallies", "open_showings", "log")
    assert len(queries) > 12 and any(detail.startswith("SEARCH items") for detail in plans)
    assert not [detail for detail in plans if detail.startswith(tuple(f"SCAN {table}" for table in tables))]


def test_a_study_of_the_first_version_keeps_its_answers_and_goes_on(tmp_path):
    folder, keys, now = tmp_path / "study", Keys.new(), time.time()
    Study(overlap=2, repeat_share=0.0, gold_share=0.0).save(folder)
    keys.save(key_file(folder))
    engine = open_engine(f"sqlite:///{folder.resolve() / 'feedback.db'}")
    items = [*pairs(6), Item("gold", ("x", "y"), gold="a")]
    # item, annotator, turn, seconds since it was shown, answer
    shown = [
        (1, 1, 0, 900, '{"choice": "a"}'), (1, 2, 0, 900, '{"choice": "b"}'), (2, 1, 0, 800, '{"skip": true}'),
        (3, 1, 0, 700, '{"choice": "b"}'), (3, 1, 1, 600, '{"choice": "a"}'), (4, 1, 0, 500, None), (5, 2, 0, 2000, None),
        (7, 3, 0, 400, '{"choice": "a"}'), (6, 3, 0, 300, '{"choice": "tie"}'),
    ]  # fmt: skip
    with writing(engine) as db:
        config = Config()
        config.set_main_option("script_location", str(Path(database.__file__).with_name("migrations")))
        config.attributes["connection"] = db
        command.upgrade(config, "0001")
        for item in items:
            row = {**item_row(item, keys), "created_at": now}
            names = ", ".join(f'"{name}"' for name in row)
            db.execute(sa.text(f"INSERT INTO items ({names}) VALUES (:{', :'.join(row)})"), row)
        for name in ("ann", "bob", "cem"):
            db.execute(sa.text("INSERT INTO annotators (pseudonym, created_at) VALUES (:who, 0)"), {"who": keys.name(name)})
        for number, (item, who, turn, ago, value) in enumerate(shown, 1):
            row = {"n": number, "item": item, "who": who, "turn": turn, "ticket": f"ticket {number}", "at": now - ago, "value": value}
            db.execute(sa.text("INSERT INTO showings VALUES (:n, :item, :who, :turn, '[0, 1]', :ticket, :at)"), row)
            if value is not None:
                db.execute(sa.text("INSERT INTO answers VALUES (:n, :value, NULL, :at)"), row)
    engine.dispose()
    store = FeedbackStore(folder)
    seen = Seen(store)
    assert [seen.count(item) for item in range(1, 8)] == [2, 0, 1, 1, 0, 1, 1]
    seen.check()
    assert [(a.item.prompt, a.turn, dict(a.value)) for a in store.answers()] == [
        (items[item - 1].prompt, turn, json.loads(value)) for item, _, turn, _, value in shown if value is not None
    ]
    ann, bob, cem = map(keys.name, ("ann", "bob", "cem"))
    assert [store.progress(who) for who in (ann, bob, cem)] == [(4, 3), (1, 5), (2, 4)]
    assert store.shown(ann).ticket == "ticket 6" and store.shown(bob).ticket == "ticket 7" and store.shown(cem) is None
    assert store.answer(bob, "ticket 7", {"choice": "a"})  # long after its reservation was over
    assert store.ask(cem).item == items[1]  # the only one without an answer
    Seen(store).check()
    store.close()


def test_a_server_that_is_killed_loses_nothing_that_it_acknowledged(tmp_path):
    load = Load(items=60, annotators=3, seconds=1.0, words=3)
    result = run_load(load, tmp_path / "study")
    assert len(result.acknowledged) >= len(result.waits) > 2 and (result.missing, result.excess) == (0, 0)
    assert f"{len(result.acknowledged)} answers acknowledged, 0 of them lost" in result.describe()
    store = FeedbackStore(tmp_path / "study")
    Seen(store).check()
    with writing(store.engine) as db:  # what the check would say if one were gone, and if an item were asked too often
        db.execute(sa.text("DELETE FROM answers WHERE showing_id = (SELECT min(showing_id) FROM answers)"))
    store.close()
    _check(replace(load, overlap=0), tmp_path / "study", result)
    assert result.missing == 1 and result.excess > 0
