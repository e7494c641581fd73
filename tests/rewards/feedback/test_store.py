"""Studies: who is asked what, and what is kept of the answers."""

import json
import multiprocessing
import os
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
import sqlalchemy as sa

from rewards.feedback.database import migrate, open_engine
from rewards.feedback.encryption import Keys, WrongKeyError
from rewards.feedback.items import Answer, Item
from rewards.feedback.schema import metadata, reseal
from rewards.feedback.store import FeedbackStore, StaleTicketError
from rewards.feedback.study import Study, key_file

from .conftest import pairs

SECRET = "ziegenkäse"


def answer_all(store, name, choose=lambda item: "a", most=1000):
    who = store.enter(name)
    given = []
    while len(given) < most and (shown := store.ask(who)) is not None:
        assert store.answer(who, shown.ticket, {"choice": choose(shown.item)})
        given.append(shown)
    return given


def test_each_item_is_asked_as_often_as_wanted(make_store):
    store = make_store(pairs(10), overlap=2)
    counts = Counter(shown.item.prompt for name in ("ann", "bob", "cem") for shown in answer_all(store, name))
    assert set(counts.values()) == {2} and len(counts) == 10
    assert store.ask(store.enter("dan")) is None and store.progress(store.enter("dan")) == (0, 0)
    answers = store.answers()
    assert len({(a.item_id, a.annotator) for a in answers}) == 20 and all(a.seconds >= 0 for a in answers)


def test_least_answered_first_and_nobody_gets_what_another_sees(make_store):
    store = make_store(pairs(6))
    people = [store.enter(name) for name in ("ann", "bob", "cem")]
    assert len({store.ask(who).item.prompt for who in people}) == 3
    assert store.ask(people[0]) == store.ask(people[0])  # a reload shows the same
    assert store.progress(people[0]) == (0, 4)  # its own and three that nobody sees


def test_orders_are_random_and_kept(make_store):
    store = make_store(pairs(200), overlap=2)
    shown = {name: {s.item.prompt: s.order for s in answer_all(store, name)} for name in ("ann", "bob")}
    first = [order == (0, 1) for order in shown["ann"].values()]
    assert 70 < sum(first) < 130
    assert 70 < sum(shown["ann"][p] == shown["bob"][p] for p in shown["ann"]) < 130
    assert {(a.annotator, a.item.prompt): a.order for a in store.answers()} == {
        (store.keys.name(n), p): o for n in shown for p, o in shown[n].items()
    }


def test_repetitions_in_reversed_order_and_gold(make_store):
    gold = [Item(f"gold {i}", ("x", "y"), gold="a") for i in range(30)]
    store = make_store([*pairs(120), *gold], repeat_share=0.2, gold_share=0.1)
    given = answer_all(store, "ann")
    orders = {}
    repeated = 0
    for number, shown in enumerate(given):
        if shown.item.prompt in orders:
            before, order = orders[shown.item.prompt]
            assert shown.order == order[::-1] and number - before > 5
            repeated += 1
        else:
            orders[shown.item.prompt] = (number, shown.order)
    asked_gold = sum(s.item.gold == "a" for s in given) - sum(a.turn for a in store.answers() if a.item.gold)
    assert sum(s.item.gold is None for s in given) - repeated <= 120 and 15 <= repeated <= 60 and 5 <= asked_gold <= 30
    assert {s.item.prompt for s in given} >= {f"prompt {i}" for i in range(120)}


def test_two_clicks_are_one_answer_and_undo_asks_again(make_store):
    store = make_store(pairs(3))
    who = store.enter("ann")
    shown = store.ask(who)
    assert store.answer(who, shown.ticket, {"choice": "a"}) and not store.answer(who, shown.ticket, {"choice": "b"})
    assert [a.value for a in store.answers()] == [{"choice": "a"}]
    following = store.ask(who)
    assert following.item != shown.item and store.undo(who)
    again = store.ask(who)
    assert (again.item, again.order) == (shown.item, shown.order) and again.ticket != shown.ticket
    for ticket in (shown.ticket, following.ticket, "forged", ""):
        with pytest.raises(StaleTicketError):
            store.answer(who, ticket, {"choice": "b"})
    other = store.enter("bob")
    with pytest.raises(StaleTicketError):
        store.answer(other, again.ticket, {"choice": "b"})  # somebody else's
    assert store.answers() == [] and store.answer(who, again.ticket, {"choice": "b"})
    assert [a.value for a in store.answers()] == [{"choice": "b"}] and not store.undo(other)


def test_skipped_items_go_to_others(make_store):
    store = make_store(pairs(1))
    who = store.enter("ann")
    store.answer(who, store.ask(who).ticket, {"skip": True})
    assert store.ask(who) is None and store.ask(store.enter("bob")).item.prompt == "prompt 0"


def test_many_at_once(make_store):
    store = make_store(pairs(40), overlap=2)
    errors = []

    def work(name):
        try:
            answer_all(store, name)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"person {i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    counts = Counter(a.item_id for a in store.answers())
    assert set(counts.values()) == {2} and len(counts) == 40


def _answer_in_a_process(folder, name):
    store = FeedbackStore(folder)
    answer_all(store, name)
    store.close()


def test_processes_share_a_study(make_store):
    store = make_store(pairs(20), overlap=2)
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_answer_in_a_process, args=(store.folder, name)) for name in ("ann", "bob")]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert Counter(a.item_id for a in store.answers()) == dict.fromkeys(range(1, 21), 2)


def test_items_are_stored_once_and_must_suit_the_study(make_store):
    store = make_store(pairs(3))
    added, known, scrubbed = store.add_items([*pairs(4), Item("mail a@b.com", ("www.x.org", "y"))])
    assert (added, known, dict(scrubbed)) == (2, 3, {"e-mail": 1, "URL": 1})
    assert store.items()[-1][1].prompt == "mail [e-mail]" and store.items()[-1][1].responses == ("[URL]", "y")
    for wrong, message in [
        (Item("p", ("x",)), "1 responses.*shows 2"),
        (Item("p", ("x", 3)), "strings"),
        (Item("p", ("x", "y"), ("one",)), "1 sources"),
    ]:
        with pytest.raises(ValueError, match=message):
            store.add_items([Item("new", ("x", "y")), wrong])
    assert len(store.items()) == 5  # all or nothing


def bytes_of(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file())


def test_no_plaintext_on_the_disk(make_store):
    store = make_store([Item(f"{SECRET} prompt", (f"{SECRET} a", "b"), metadata={"note": SECRET})])
    who = store.enter(f"{SECRET} person")
    store.answer(who, store.ask(who).ticket, {"choice": "a"}, {"reason": f"for {SECRET}"})
    assert (store.folder / "feedback.db-wal").stat().st_size > 0
    for form in (SECRET, SECRET.casefold(), SECRET.title()):
        for encoding in ("utf-8", "utf-16-le", "latin-1"):
            assert form.encode(encoding) not in bytes_of(store.folder)
    assert b"ziegenk" not in bytes_of(store.folder)
    (answer,) = store.answers()
    assert answer.words == {"reason": f"for {SECRET}"} and answer.item.metadata == {"note": SECRET}
    store.close()
    assert b"ziegenk" not in bytes_of(store.folder)


def test_wrong_keys_fail_clearly(make_store):
    store = make_store(pairs(1))
    store.close()
    with pytest.raises(WrongKeyError, match="do not fit the study"):
        FeedbackStore(store.folder, keys=Keys.new())
    key_file(store.folder).unlink()
    with pytest.raises(FileNotFoundError, match="key file"):
        FeedbackStore(store.folder)


def test_new_keys_open_everything_and_old_ones_nothing(make_store):
    store = make_store(pairs(3))
    who = store.enter("ann")
    store.answer(who, store.ask(who).ticket, {"choice": "a"}, {"reason": "because"})
    before, old = store.answers(), store.keys
    with store.engine.connect() as db:
        sealed = db.scalars(sa.text("SELECT texts FROM items")).all()
    saved = []
    assert store.rotate(saved.append) == 5  # three items, one reason, the study's own mark
    assert len(saved[0].seals) == 2 and len(saved[1].seals) == 1 and saved[1].seals[0] == saved[0].seals[0]
    assert store.answers() == before and saved[1].pseudonym == old.pseudonym and store.enter("ann") == who
    store.close()
    assert FeedbackStore(store.folder, keys=saved[1]).answers() == before
    with pytest.raises(WrongKeyError):
        FeedbackStore(store.folder, keys=old)
    assert not any(text in bytes_of(store.folder) for text in sealed)


def test_a_rotation_after_anothers_begins_with_its_keys(make_store):
    one, two = make_store(pairs(2)), make_store()  # both opened with the first keys
    for store in (one, two):
        store.rotate(lambda keys: keys.save(key_file(one.folder)))
    assert [item for _, item in FeedbackStore(one.folder).items()] == [item for _, item in two.items()] and len(two.items()) == 2


def test_rotation_that_is_killed_loses_nothing(make_store):
    store = make_store(pairs(3))
    saved = []

    class KilledError(Exception):
        pass

    def save(keys):
        saved.append(keys)
        if len(saved) == 2:
            raise KilledError

    with pytest.raises(KilledError):
        store.rotate(save)
    assert len(FeedbackStore(store.folder, keys=saved[0]).items()) == 3


def test_an_answer_that_waits_for_new_keys_is_sealed_with_them(make_store, monkeypatch):
    owner, server = make_store(pairs(2)), make_store()
    who = server.enter("ann")
    shown = server.ask(who)
    threads = []

    def reseal_slowly(db, keys):  # the owner holds the lock; the server, with the old keys, waits for it
        threads.append(threading.Thread(target=server.answer, args=(who, shown.ticket, {"choice": "a"}, {"reason": "because"})))
        threads[0].start()
        time.sleep(0.2)
        return reseal(db, keys)

    with monkeypatch.context() as patch:
        patch.setattr("rewards.feedback.store.reseal", reseal_slowly)
        owner.rotate(lambda keys: keys.save(key_file(owner.folder)))
    threads[0].join()
    assert [a.words for a in FeedbackStore(owner.folder).answers()] == [{"reason": "because"}]
    assert server.ask(who).item != shown.item and len(server.items()) == 2
    owner.rotate(lambda keys: keys.save(key_file(owner.folder)))
    ticket = server.shown(who).ticket
    assert len(server.items()) == 2
    monkeypatch.setenv("TEXTRL_FEEDBACK_KEYS", key_file(owner.folder).read_text())
    owner.rotate(lambda keys: None)  # nobody is told the new key
    with pytest.raises(WrongKeyError):
        server.answer(who, ticket, {"choice": "b"}, {"reason": "lost"})


def test_forgetting_leaves_nothing(make_store):
    store = make_store(pairs(4), overlap=2)
    for name in ("ann", "bob"):
        who = store.enter(name)
        store.answer(who, store.ask(who).ticket, {"choice": "a"}, {"reason": f"{name}'s words"})
    ann = store.keys.name("ann")
    joined = "answers JOIN showings s ON s.id = showing_id JOIN annotators a ON a.id = annotator_id"
    with store.engine.connect() as db:
        words = db.execute(sa.text(f"SELECT words FROM {joined} WHERE pseudonym = :who"), {"who": ann}).scalar_one()
    assert store.forget(ann) == 1
    assert ann.encode() not in bytes_of(store.folder) and words not in bytes_of(store.folder)
    assert [a.annotator for a in store.answers()] == [store.keys.name("bob")] and not store.knows(ann)
    with pytest.raises(ValueError, match="nobody"):
        store.ask(ann)


def test_retention(make_store, monkeypatch):
    store = make_store(pairs(3))
    who = store.enter("ann")
    store.answer(who, store.ask(who).ticket, {"choice": "a"}, {"reason": "old"})
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10 * 86400)
    store.answer(who, store.ask(who).ticket, {"choice": "b"}, {"reason": "new"})
    words, lines = store.purge(7)
    assert words == 1 and lines >= 3
    assert [(a.value["choice"], a.words) for a in store.answers()] == [("a", {}), ("b", {"reason": "new"})]
    assert all(at > now + 86400 for at, *_ in store.access_log())


@pytest.mark.reports("Old reasons of a study with retention_days go when anybody opens it, those of demonstrations too")
@pytest.mark.parametrize("kind", ["pair", "demonstration"])
def test_retention_is_kept_by_whoever_opens_the_study(make_store, monkeypatch, kind):
    value = {"choice": "a"} if kind == "pair" else {"written": True}
    items = pairs(2) if kind == "pair" else [Item(f"p{i}", ()) for i in range(2)]
    store = make_store(items, kind=kind, retention_days=30)
    who = store.enter("ann")
    store.answer(who, store.ask(who).ticket, value, {"reason": "why", **({"text": "mine"} if kind != "pair" else {})})
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 31 * 86400)
    again = FeedbackStore(store.folder)
    assert [a.words for a in again.answers()] == [{} if kind == "pair" else {"text": "mine"}]
    assert all(at > now + 86400 for at, *_ in again.access_log())
    again.close()


@pytest.mark.reports("An answer that is imported to a question which is open on its annotator's page is kept")
def test_an_answer_from_elsewhere_to_an_open_question(make_store):
    one, two = make_store(pairs(1)), make_store(pairs(1), name="other")
    there, who = one.enter("ann"), two.enter("ann")
    shown = two.ask(who)
    one.answer(there, one.ask(there).ticket, {"choice": "b"})
    answer = replace(one.answers()[0], annotator=who)
    assert two.add_answers([answer]) == (1, 0) and [a.value for a in two.answers()] == [{"choice": "b"}]
    assert two.add_answers([answer]) == (0, 1) and two.ask(who) is None
    assert not two.answer(who, shown.ticket, {"choice": "a"})  # the first answer stays


def test_the_log_says_who_did_what(make_store):
    store = make_store(pairs(2))
    who = store.enter("ann")
    store.answer(who, store.ask(who).ticket, {"choice": "a"})
    store.answers("owner")
    did = [(w, d) for _, w, d, _ in store.access_log()]
    assert did == [("owner", "add items"), (who, "enter"), (who, "see"), (who, "answer"), ("owner", "read answers")]


def test_answers_travel_between_studies(make_store):
    one, two = make_store(pairs(5), overlap=2), make_store(name="other")
    for name in ("ann", "bob"):
        answer_all(one, name, lambda item: "b")
    answers = one.answers()
    assert two.add_answers(answers) == (10, 0) and two.add_answers(answers) == (0, 10)

    def content(found):
        return sorted(
            (a.item.prompt, a.annotator, a.order, json.dumps(a.value), round(a.answered_at, 6), round(a.seconds, 6)) for a in found
        )

    assert content(two.answers()) == content(answers)


def test_migrations_make_the_schema(tmp_path):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = open_engine(f"sqlite:///{tmp_path / 'x.db'}")
    migrate(engine)
    migrate(engine)  # nothing to do
    with engine.connect() as db:
        assert compare_metadata(MigrationContext.configure(db), metadata) == []
        assert db.exec_driver_sql("PRAGMA synchronous").scalar() == 1 and db.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    engine.dispose()


def test_whoever_writes_waits_for_the_disk_together_with_others_but_never_for_less(make_store, monkeypatch):
    store = make_store(pairs(1))
    log, begun, go_on = store.folder / "feedback.db-wal", threading.Event(), threading.Event()
    synced = []

    def slow_fsync(number, fsync=os.fsync):
        size, first = log.stat().st_size, not synced
        synced.append(size)
        fsync(number)
        if first:
            begun.set()
            assert go_on.wait(10)

    monkeypatch.setattr(os, "fsync", slow_fsync)
    done = []
    threads = [threading.Thread(target=lambda i=i: (store.note(f"who {i}", "did"), done.append(i))) for i in range(4)]
    threads[0].start()
    assert begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(store.access_log()) < 5:  # committed: seen by others
        time.sleep(0.001)
    assert done == []  # but not acknowledged
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(done) == 4 and len(synced) == 2  # the three that came while the first was at it waited for one call


def test_settings(tmp_path):
    study = Study(name="Filme", criteria=("wahr",), guideline="Lies\nalles", language="zh", retention_days=30)
    study.save(tmp_path)
    assert Study.load(tmp_path) == study
    (tmp_path / "study.yaml").write_text("kind: pair\ncolour: red\n")
    with pytest.raises(ValueError, match="colour"):
        Study.load(tmp_path)
    for wrong in (
        {"kind": "x"},
        {"overlap": 0},
        {"repeat_share": 0.9},
        {"language": "fr"},
        {"retention_days": 0},
        {"kind": "spans", "flags": ()},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong)) if "flags" not in wrong else "flags"):
            Study(**wrong)


def test_a_full_disk_is_an_error_and_loses_nothing(make_store):
    store = make_store(pairs(2))
    who = store.enter("ann")
    shown = store.ask(who)
    with store.engine.connect() as db:
        pages = db.exec_driver_sql("PRAGMA page_count").scalar()

    def limit(connection, record=None, proxy=None):
        connection.execute(f"PRAGMA max_page_count={pages}")

    sa.event.listen(store.engine, "checkout", limit)
    with pytest.raises(sa.exc.OperationalError, match="full"):
        store.answer(who, shown.ticket, {"choice": "a"}, {"reason": "x" * 100_000})
    assert store.answers is not None and store.knows(who)
    sa.event.remove(store.engine, "checkout", limit)
    store.engine.dispose()
    assert store.answer(who, shown.ticket, {"choice": "a"}) and isinstance(store.answers()[0], Answer)


def test_items_repeated_in_one_call_or_stored_before_are_counted_as_known(make_store):
    store = make_store()
    a, b, c = (Item(f"prompt {i}", (f"one {i}", f"two {i}")) for i in range(3))
    assert store.add_items([a, b, a])[:2] == (2, 1)
    assert store.add_items([b, c, c, a])[:2] == (1, 3)
    assert store.add_items([])[:2] == (0, 0)
