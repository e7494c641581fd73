"""Where a study keeps its items and answers: one database, sealed texts, one transaction for every request.

SQLite writes ahead (WAL) with `synchronous=FULL`: what was acknowledged is on the disk, whatever happens to the process.  A transaction
that writes takes the database's write lock at its beginning (SQLite: BEGIN IMMEDIATE; PostgreSQL: an advisory lock), so two annotators
who ask at once get different items, and two clicks are one answer.
"""

from __future__ import annotations

import json
import random
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from textrl_env.utils.optional_imports import optional_import

from .database import LOCK, migrate, open_engine
from .encryption import Keys, WrongKeyError
from .items import Answer, Assignment, Item, check_item, with_texts
from .personal_data import scrub
from .schema import annotators, answers, assignments, facts, items, log
from .study import Study, key_file

with optional_import("feedback", "feedback from people needs the extra"):
    import sqlalchemy as sa

REPEAT_AFTER = 5  # answers between an item and its repetition
RESERVED = 1800.0  # seconds for which an item that is shown counts as answered
_MAGIC = "textrl feedback"


class StaleTicketError(ValueError):
    """A form belongs to no question that is open for this annotator: it was undone, forged, or is somebody else's."""


class FeedbackStore:
    """The database of a study.

    Args:
        folder: Of the study.
        study: Its settings; by default those in the folder.
        keys: Its keys; by default those of the environment or of the key file.

    Raises:
        WrongKeyError: The keys do not open what the database holds.
    """

    def __init__(self, folder: str | Path, study: Study | None = None, keys: Keys | None = None) -> None:
        self.folder = Path(folder)
        self.study = study or Study.load(self.folder)
        self.keys = keys or Keys.load(key_file(self.folder))
        self.engine = open_engine(self.study.database or f"sqlite:///{self.folder.resolve() / 'feedback.db'}")
        migrate(self.engine)
        with self._writing() as db:
            sealed = db.scalar(sa.select(facts.c.value).where(facts.c.name == "magic"))
            if sealed is None:
                db.execute(facts.insert().values(name="magic", value=self.keys.seal(_MAGIC)))
                sealed = self.keys.seal(_MAGIC)
        try:
            self.keys.open(sealed)
        except WrongKeyError as error:
            self.close()
            raise WrongKeyError(f"the keys do not fit the study {self.folder}: use the key file it was created with") from error

    def close(self) -> None:
        """Give the database back."""
        self.engine.dispose()

    # -- items ---------------------------------------------------------------------------------------------------------

    def add_items(self, new: Iterable[Item]) -> tuple[int, int, Counter[str]]:
        """Store items that are not there yet.

        Returns:
            How many were added, how many were there already, and what was scrubbed.

        Raises:
            ValueError: An item does not suit the kind of the study.
        """
        added = known = 0
        scrubbed: Counter[str] = Counter()
        with self._writing() as db:
            for item in new:
                check_item(item, self.study)
                item = with_texts(item, lambda text: self._clean(text, scrubbed))
                if self._number(db, item) is not None:
                    known += 1
                    continue
                texts = json.dumps({"prompt": item.prompt, "responses": item.responses, "metadata": dict(item.metadata)})
                db.execute(
                    items.insert().values(
                        digest=self._digest(item), texts=self.keys.seal(texts), sources=json.dumps(list(item.sources)), group=item.group,
                        gold=None if item.gold is None else json.dumps(item.gold), created_at=time.time(),
                    )
                )  # fmt: skip
                added += 1
            self._log(db, "owner", "add items", f"{added} new, {known} known")
        return added, known, scrubbed

    def _clean(self, text: str, scrubbed: Counter[str]) -> str:
        if not self.study.scrub:
            return text
        text, found = scrub(text)
        scrubbed.update(found)
        return text

    def _digest(self, item: Item) -> str:
        return self.keys.digest("item", json.dumps([item.prompt, item.responses, item.group, item.gold]))

    def _number(self, db: sa.Connection, item: Item) -> int | None:
        """Return the number of a scrubbed item; None if it is not stored."""
        return db.scalar(sa.select(items.c.id).where(items.c.digest == self._digest(item)))

    def _item(self, row: Any) -> Item:
        texts = json.loads(self.keys.open(row.texts))
        gold = None if row.gold is None else json.loads(row.gold)
        sources = tuple(json.loads(row.sources))
        return Item(texts["prompt"], tuple(texts["responses"]), sources, row.group, gold, texts["metadata"])

    # -- annotators ----------------------------------------------------------------------------------------------------

    def enter(self, name: str) -> str:
        """Return the pseudonym of somebody who says this name; the name itself is not kept."""
        pseudonym = self.keys.name(name)
        with self._writing() as db:
            self._welcome(db, pseudonym)
            self._log(db, pseudonym, "enter", "")
        return pseudonym

    def _welcome(self, db: sa.Connection, pseudonym: str) -> int:
        """Return the number of an annotator, who may be new."""
        if self._find(db, pseudonym) is None:
            db.execute(annotators.insert().values(pseudonym=pseudonym, created_at=time.time()))
        return self._id(db, pseudonym)

    def knows(self, pseudonym: str) -> bool:
        """Return whether somebody of this pseudonym has entered, and was not forgotten since."""
        with self._reading() as db:
            return self._find(db, pseudonym) is not None

    def progress(self, pseudonym: str) -> tuple[int, int]:
        """Return how many answers an annotator gave, and how many items may still come."""
        with self._reading() as db:
            me = self._id(db, pseudonym)
            given = db.scalar(sa.select(sa.func.count()).select_from(answers.join(assignments)).where(assignments.c.annotator_id == me))
            waiting = db.execute(_open(me)).first() is not None
            return int(given or 0), len(self._wanted(db, me, time.time())) + waiting

    # -- asking --------------------------------------------------------------------------------------------------------

    def ask(self, pseudonym: str) -> Assignment | None:
        """Return what this annotator should see now: the open question, else a new one; None if nothing is left.

        New questions are those with the fewest answers, drawn at random among equals; now and then one is a gold question, or repeats
        an earlier one in reversed order.
        """
        now = time.time()
        with self._writing() as db:
            me = self._id(db, pseudonym)
            row = db.execute(_open(me)).first()
            if row is None:
                chosen = self._choose(db, me, pseudonym, now)
                if chosen is None:
                    return None
                item_id, turn = chosen
                item = self._item(db.execute(sa.select(items).where(items.c.id == item_id)).one())
                order = self._order(db, me, pseudonym, item_id, turn, len(item.responses))
                ticket = secrets.token_urlsafe(16)
                shown = {"shown_order": json.dumps(order), "ticket": ticket, "shown_at": now}
                db.execute(assignments.insert().values(item_id=item_id, annotator_id=me, turn=turn, **shown))
                self._log(db, pseudonym, "see", f"item {item_id}")
                return Assignment(ticket, item, tuple(order))
            return Assignment(row.ticket, self._item(row), tuple(json.loads(row.shown_order)))

    def _choose(self, db: sa.Connection, me: int, pseudonym: str, now: float) -> tuple[int, int] | None:
        given = db.execute(
            sa.select(assignments.c.item_id, assignments.c.turn, answers.c.value, answers.c.answered_at)
            .select_from(answers.join(assignments))
            .where(assignments.c.annotator_id == me)
            .order_by(answers.c.answered_at)
        ).all()
        draw = random.Random(f"{self.study.seed} {pseudonym} {len(given)}")
        lot = draw.random()
        if lot < self.study.repeat_share:
            again = {row.item_id for row in given if row.turn == 1}
            old = [row.item_id for row in given[:-REPEAT_AFTER] if row.item_id not in again and "skip" not in json.loads(row.value)]
            if old:
                return draw.choice(old), 1
        elif lot < self.study.repeat_share + self.study.gold_share:
            seen = {row.item_id for row in given}
            gold = [i for i in db.scalars(sa.select(items.c.id).where(items.c.gold.is_not(None)).order_by(items.c.id)) if i not in seen]
            if gold:
                return draw.choice(gold), 0
        wanted = self._wanted(db, me, now)
        fewest = min(wanted.values(), default=0)
        least = [i for i, count in wanted.items() if count == fewest]
        return (draw.choice(least), 0) if least else None

    def _wanted(self, db: sa.Connection, me: int, now: float) -> dict[int, int]:
        """Return the items that this annotator may be asked about, with the number of answers they have or will soon have."""
        real = sa.or_(answers.c.value.is_(None) & (assignments.c.shown_at > now - RESERVED), answers.c.value.not_like('{"skip"%'))
        counted = sa.func.count(sa.case((sa.and_(real, assignments.c.turn == 0), 1)))
        own = sa.func.count(sa.case((assignments.c.annotator_id == me, 1)))
        rows = db.execute(
            sa.select(items.c.id, counted.label("count"))
            .select_from(items.outerjoin(assignments, assignments.c.item_id == items.c.id).outerjoin(answers))
            .where(items.c.gold.is_(None))
            .group_by(items.c.id)
            .having(sa.and_(own == 0, counted < self.study.overlap))
            .order_by(items.c.id)
        )
        return {row[0]: row[1] for row in rows}

    def _order(self, db: sa.Connection, me: int, pseudonym: str, item_id: int, turn: int, count: int) -> list[int]:
        if turn:
            first = db.scalar(
                sa.select(assignments.c.shown_order).where(assignments.c.annotator_id == me, assignments.c.item_id == item_id)
            )
            return list(reversed(json.loads(first or "[]")))
        order = list(range(count))
        random.Random(f"{self.study.seed} {pseudonym} {item_id}").shuffle(order)
        return order

    # -- answering -----------------------------------------------------------------------------------------------------

    def answer(self, pseudonym: str, ticket: str, value: Mapping[str, Any], words: Mapping[str, str] | None = None) -> bool:
        """Store an answer.

        Args:
            pseudonym: Who answers.
            ticket: Of the question.
            value: By the item's own order of responses; `{"skip": True}` for no answer.
            words: Reason or demonstration.

        Returns:
            Whether it was stored; False if the question had been answered already: the first answer stays.

        Raises:
            StaleTicketError: The ticket belongs to no question of this annotator.
        """
        found: Counter[str] = Counter()
        clean = {key: self._clean(text, found) for key, text in (words or {}).items() if text}
        with self._writing() as db:
            me = self._id(db, pseudonym)
            row = db.execute(
                sa.select(assignments.c.id, assignments.c.item_id, answers.c.value)
                .select_from(assignments.outerjoin(answers))
                .where(assignments.c.ticket == ticket, assignments.c.annotator_id == me)
            ).first()
            if row is None:
                raise StaleTicketError("this question is not open for you: it was undone, or the form is not yours")
            if row.value is not None:
                return False
            sealed = self.keys.seal(json.dumps(clean)) if clean else None
            db.execute(answers.insert().values(showing_id=row.id, value=json.dumps(dict(value)), words=sealed, answered_at=time.time()))
            self._log(db, pseudonym, "answer", f"item {row.item_id}")
            return True

    def undo(self, pseudonym: str) -> bool:
        """Take an annotator's last answer back and ask again; return whether there was one."""
        with self._writing() as db:
            me = self._id(db, pseudonym)
            last = db.execute(
                sa.select(assignments.c.id, assignments.c.item_id)
                .select_from(answers.join(assignments))
                .where(assignments.c.annotator_id == me)
                .order_by(answers.c.answered_at.desc(), assignments.c.id.desc())
            ).first()
            if last is None:
                return False
            db.execute(assignments.delete().where(assignments.c.id.in_([row.showing_id for row in db.execute(_open(me))])))
            db.execute(answers.delete().where(answers.c.showing_id == last.id))
            fresh = {"ticket": secrets.token_urlsafe(16), "shown_at": time.time()}
            db.execute(assignments.update().where(assignments.c.id == last.id).values(**fresh))
            self._log(db, pseudonym, "undo", f"item {last.item_id}")
            return True

    # -- reading -------------------------------------------------------------------------------------------------------

    def items(self) -> list[tuple[int, Item]]:
        """Return all items with their numbers."""
        with self._reading() as db:
            return [(row.id, self._item(row)) for row in db.execute(sa.select(items).order_by(items.c.id))]

    def answers(self, who: str = "owner") -> list[Answer]:
        """Return all answers in the order they were given, skipped questions too; the log says who read them."""
        with self._writing() as db:
            self._log(db, who, "read answers", "")
            rows = db.execute(
                sa.select(items, assignments, annotators.c.pseudonym, answers.c.value, answers.c.words, answers.c.answered_at)
                .select_from(answers.join(assignments).join(items).join(annotators))
                .order_by(answers.c.answered_at, assignments.c.id)
            ).all()
        known: dict[int, Item] = {}
        found = []
        for row in rows:
            if row.item_id not in known:
                known[row.item_id] = self._item(row)
            words = {} if row.words is None else json.loads(self.keys.open(row.words))
            order = tuple(json.loads(row.shown_order))
            value, seconds = json.loads(row.value), row.answered_at - row.shown_at
            found.append(Answer(row.item_id, known[row.item_id], row.pseudonym, row.turn, order, value, words, row.answered_at, seconds))
        return found

    def add_answers(self, given: Sequence[Answer]) -> tuple[int, int]:
        """Store answers from elsewhere, with their items, orders and times; what is there already stays.

        Pseudonyms are taken as they are.

        Returns:
            How many were added, and how many were there already.
        """
        self.add_items(answer.item for answer in given)
        added = 0
        with self._writing() as db:
            for answer in given:
                who = self._welcome(db, answer.annotator)
                found: Counter[str] = Counter()
                clean = with_texts(answer.item, lambda text: self._clean(text, found))  # noqa: B023 - called at once
                key = {"item_id": self._number(db, clean), "annotator_id": who, "turn": answer.turn}
                before = sa.select(assignments.c.id).where(*(assignments.c[name] == value for name, value in key.items()))
                if db.scalar(before) is not None:
                    continue
                shown = {"shown_order": json.dumps(answer.order), "ticket": secrets.token_urlsafe(16)}
                db.execute(assignments.insert().values(**key, **shown, shown_at=answer.answered_at - answer.seconds))
                words = {name: self._clean(text, found) for name, text in answer.words.items()}
                sealed = self.keys.seal(json.dumps(words)) if words else None
                value = {"showing_id": db.scalar(before), "value": json.dumps(dict(answer.value)), "words": sealed}
                db.execute(answers.insert().values(**value, answered_at=answer.answered_at))
                added += 1
            self._log(db, "owner", "import answers", f"{added} new, {len(given) - added} known")
        return added, len(given) - added

    def access_log(self) -> list[tuple[float, str, str, str]]:
        """Return time, who, what they did and to what, oldest first."""
        with self._reading() as db:
            return [(row.at, row.who, row.did, row.what) for row in db.execute(sa.select(log).order_by(log.c.id))]

    def note(self, who: str, did: str, what: str = "") -> None:
        """Add a line to the access log."""
        with self._writing() as db:
            self._log(db, who, did, what)

    # -- privacy -------------------------------------------------------------------------------------------------------

    def forget(self, pseudonym: str) -> int:
        """Delete an annotator, all their answers and every line of the log about them, and overwrite the space.

        Returns:
            How many answers are gone.

        Raises:
            ValueError: Nobody has this pseudonym.
        """
        with self._writing() as db:
            me = self._id(db, pseudonym)
            own = sa.select(assignments.c.id).where(assignments.c.annotator_id == me)
            gone = db.execute(answers.delete().where(answers.c.showing_id.in_(own))).rowcount
            db.execute(assignments.delete().where(assignments.c.annotator_id == me))
            db.execute(annotators.delete().where(annotators.c.id == me))
            db.execute(log.delete().where(log.c.who == pseudonym))
            self._log(db, "owner", "forget", "an annotator")
        self._compact()
        return gone

    def purge(self, days: float) -> tuple[int, int]:
        """Delete reasons and log entries older than `days`; return how many of each."""
        before = time.time() - days * 86400
        with self._writing() as db:
            old = sa.and_(answers.c.answered_at < before, answers.c.words.is_not(None))
            if self.study.kind == "demonstration":  # the words are the answer
                old = sa.false()
            words = db.execute(answers.update().where(old).values(words=None)).rowcount
            lines = db.execute(log.delete().where(log.c.at < before)).rowcount
            if words or lines:
                self._log(db, "owner", "purge", f"{words} reasons, {lines} lines of the log")
        if words or lines:
            self._compact()
        return words, lines

    def rotate(self, save: Any) -> int:
        """Seal everything anew with a fresh key.

        Killed at any moment, the saved keys open everything: the new key is saved before it is used, the old one dropped last.

        Args:
            save: Called with the keys to keep, twice.

        Returns:
            How many values were sealed anew.
        """
        self.keys = self.keys.with_new_seal()
        save(self.keys)
        count = 0
        with self._writing() as db:
            for table, column, key in ((facts, "value", "name"), (items, "texts", "id"), (answers, "words", "showing_id")):
                for row in db.execute(sa.select(table.c[key], table.c[column]).where(table.c[column].is_not(None))).all():
                    sealed = self.keys.seal(self.keys.open(row[1]))
                    db.execute(table.update().where(table.c[key] == row[0]).values({column: sealed}))
                    count += 1
            self._log(db, "owner", "rotate keys", "")
        self._compact()
        self.keys = self.keys.with_newest_seal_only()
        save(self.keys)
        return count

    def _compact(self) -> None:
        """Leave nothing of deleted rows in the files."""
        if self.engine.dialect.name == "sqlite":
            with self.engine.connect().execution_options(no_transaction=True) as db:
                db.exec_driver_sql("VACUUM")
                busy = db.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]
            if busy:
                raise RuntimeError(
                    f"{self.folder}: another process reads the database, so old bytes remain in it; stop it and do this again"
                )
        else:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
                db.exec_driver_sql("VACUUM FULL")

    # -- inside --------------------------------------------------------------------------------------------------------

    def _find(self, db: sa.Connection, pseudonym: str) -> int | None:
        return db.scalar(sa.select(annotators.c.id).where(annotators.c.pseudonym == pseudonym))

    def _id(self, db: sa.Connection, pseudonym: str) -> int:
        me = self._find(db, pseudonym)
        if me is None:
            raise ValueError(f"nobody has the pseudonym {pseudonym!r} in this study")
        return me

    def _log(self, db: sa.Connection, who: str, did: str, what: str) -> None:
        db.execute(log.insert().values(at=time.time(), who=who, did=did, what=what))

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self.engine.connect() as db:
            yield db

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with self.engine.connect().execution_options(writes=True) as db, db.begin():
            if self.engine.dialect.name == "postgresql":
                db.execute(sa.text(LOCK))
            yield db


def _open(me: int) -> Any:
    """Select the questions that an annotator sees and has not answered."""
    return (
        sa.select(items, assignments.c.ticket, assignments.c.shown_order, assignments.c.shown_at, assignments.c.id.label("showing_id"))
        .select_from(assignments.join(items).outerjoin(answers))
        .where(assignments.c.annotator_id == me, answers.c.value.is_(None))
    )
