"""Where a study keeps its items and answers: one database, sealed texts, one transaction for every request.

SQLite writes ahead (WAL): what was acknowledged is on the disk, whatever happens to process and machine.  A transaction
that writes takes the database's write lock at its beginning (SQLite: BEGIN IMMEDIATE; PostgreSQL: an advisory lock), so two annotators
who ask at once get different items, and two clicks are one answer.  Under the lock nothing looks at all items: see `assignments`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from textrl_env.utils.optional_imports import optional_import

from .assignments import (
    GOLD,
    add_assignment,
    close_assignment,
    count_anew,
    items_left,
    open_assignment,
    place_items,
    release_expired,
    reopen_assignment,
)
from .database import add_annotator, add_to_log, annotator_id, compact, find_annotator, migrate, open_engine, writing
from .encryption import Keys, WrongKeyError
from .items import Answer, Assignment, Item, check_item, mirrored, mirrored_answer, with_texts, written_by_both
from .personal_data import scrub
from .schema import (
    annotators,
    answer_of,
    answer_row,
    answers,
    assignments,
    digests_of,
    facts,
    item_of,
    item_row,
    items,
    log,
    open_assignments,
    purge_reasons,
    reseal,
)
from .study import Study, key_file

with optional_import("feedback", "feedback from people needs the extra"):
    import sqlalchemy as sa

_MAGIC = "textrl feedback"
_SEALED_MAGIC = sa.select(facts.c.value).where(facts.c.name == "magic")
_BY_TICKET = (
    sa.select(assignments, answers.c.value, open_assignments.c.reserved_at)
    .select_from(assignments.join(annotators).outerjoin(answers))
    .outerjoin(open_assignments, open_assignments.c.showing_id == assignments.c.id)
    .where(assignments.c.ticket == sa.bindparam("ticket"), annotators.c.pseudonym == sa.bindparam("pseudonym"))
)
_PROGRESS = sa.select(annotators.c.answered, sa.func.count(open_assignments.c.showing_id)).select_from(
    annotators.outerjoin(open_assignments)
).where(annotators.c.id == sa.bindparam("me")).group_by(annotators.c.id)  # fmt: skip


def _is_bare(item: Item) -> bool:
    return not item.sources and item.group is None and item.gold is None


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
        with writing(self.engine) as db:
            sealed = db.scalar(_SEALED_MAGIC)
            if sealed is None:
                db.execute(facts.insert().values(name="magic", value=self.keys.seal(_MAGIC)))
                sealed = self.keys.seal(_MAGIC)
        try:
            self.keys.open(sealed)
        except WrongKeyError as error:
            self.close()
            raise WrongKeyError(f"the keys do not fit the study {self.folder}: use the key file it was created with") from error
        with suppress(RuntimeError):  # another process reads: its old bytes are overwritten as the file is used
            self.purge()

    def close(self) -> None:
        """Give the database back."""
        self.engine.dispose()

    @contextmanager
    def _connect(self, writes: bool = True) -> Iterator[sa.Connection]:
        """Open a transaction in which the keys are those of the database: another process may have changed them (`rotate`)."""
        with writing(self.engine) if writes else self.engine.connect() as db:
            sealed = db.scalars(_SEALED_MAGIC).one()
            try:
                self.keys.open(sealed)
            except WrongKeyError:
                self.keys = Keys.load(key_file(self.folder))
                self.keys.open(sealed)
            yield db

    def add_items(self, new: Iterable[Item]) -> tuple[int, int, Counter[str]]:
        """Store items that are not there yet; whoever wrote the responses of one that is there is noted with it.

        Returns:
            How many were added, how many were there already, and what was scrubbed.

        Raises:
            ValueError: An item does not suit the kind of the study.
        """
        known = 0
        scrubbed: Counter[str] = Counter()
        rows: dict[str, dict[str, Any]] = {}
        with self._connect() as db:
            stored = dict(db.execute(sa.select(items.c.digest, items.c.sources)).all())
            for item in new:
                check_item(item, self.study)
                item = with_texts(item, lambda text: self._clean(text, scrubbed))
                for same, digest in zip((item, mirrored(item)), digests_of(item, self.keys, self.study), strict=False):
                    if digest in stored:
                        known += 1
                        wrote = json.dumps(written_by_both(json.loads(stored[digest]), same.sources))
                        if digest in rows:
                            rows[digest]["sources"] = wrote
                        elif wrote != stored[digest]:
                            db.execute(items.update().where(items.c.digest == digest).values(sources=wrote))
                        stored[digest] = wrote
                        break
                else:
                    row = {**item_row(item, self.keys), "created_at": time.time()}
                    rows[row["digest"]], stored[row["digest"]] = row, row["sources"]
            if rows:  # all at once: a statement for each item costs more than its encryption
                place_items(db, rows.values())
                db.execute(items.insert(), list(rows.values()))
            add_to_log(db, "owner", "add items", f"{len(rows)} new, {known} known")
        return len(rows), known, scrubbed

    def _clean(self, text: str, counts: Counter[str] | None = None) -> str:
        """Return the text without personal data, which is counted by kind in `counts`."""
        if self.study.scrub:
            text, removed = scrub(text)
            if counts is not None:
                counts.update(removed)
        return text

    def _find(self, db: sa.Connection, answer: Answer) -> tuple[int, Answer]:
        """Return the number of the stored item that was answered, and the answer to the item as it is stored."""
        digests = digests_of(with_texts(answer.item, self._clean), self.keys, self.study)
        found = {row.digest: row.id for row in db.execute(sa.select(items.c.digest, items.c.id).where(items.c.digest.in_(digests)))}
        if digests[0] in found:
            return found[digests[0]], answer
        return found[digests[1]], mirrored_answer(answer)

    def enter(self, name: str) -> str:
        """Return the pseudonym of somebody who says this name; the name itself is not kept."""
        pseudonym = self.keys.name(name)
        with writing(self.engine) as db:
            add_annotator(db, pseudonym)
            add_to_log(db, pseudonym, "enter", "")
        return pseudonym

    def knows(self, pseudonym: str) -> bool:
        """Return whether somebody of this pseudonym has entered, and was not forgotten since."""
        with self.engine.connect() as db:
            return find_annotator(db, pseudonym) is not None

    def progress(self, pseudonym: str) -> tuple[int, int]:
        """Return how many answers an annotator gave, and how many items may still come."""
        with writing(self.engine) as db:
            release_expired(db)
            return self._progress(db, annotator_id(db, pseudonym))

    def _progress(self, db: sa.Connection, me: int) -> tuple[int, int]:
        given, waiting = db.execute(_PROGRESS, {"me": me}).one()
        left = items_left(db, self.study, me)
        return given, waiting + sum(number for counted, (_, number) in left.items() if counted != GOLD)

    def shown(self, pseudonym: str) -> Assignment | None:
        """Return the question that is open for an annotator; None if none is."""
        with self._connect(writes=False) as db:
            return self._shown(db, pseudonym)

    def _shown(self, db: sa.Connection, pseudonym: str) -> Assignment | None:
        row = open_assignment(db, pseudonym)
        return None if row is None else Assignment(row.ticket, item_of(row, self.keys), tuple(json.loads(row.shown_order)))

    def ask(self, pseudonym: str) -> Assignment | None:
        """Return what this annotator should see now: the open question, else a new one; None if nothing is left.

        New questions are those with the fewest answers, drawn at random among equals; now and then one is a gold question, or repeats
        an earlier one in reversed order.
        """
        return self.page(pseudonym)[0]

    def page(self, pseudonym: str) -> tuple[Assignment | None, int, int]:
        """Return what `ask` and `progress` do, in one transaction.

        Raises:
            UnknownAnnotatorError: Nobody has this pseudonym.
        """
        with self._connect() as db:
            me = annotator_id(db, pseudonym)
            release_expired(db)
            shown = self._shown(db, pseudonym)
            if shown is None:
                item_id = add_assignment(db, self.study, self.keys, me, pseudonym)
                if item_id is not None:
                    add_to_log(db, pseudonym, "see", f"item {item_id}")
                    shown = self._shown(db, pseudonym)
            return shown, *self._progress(db, me)

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
        clean = {key: self._clean(text) for key, text in (words or {}).items() if text}
        with self._connect() as db:
            row = db.execute(_BY_TICKET, {"pseudonym": pseudonym, "ticket": ticket}).first()
            if row is None:
                raise StaleTicketError("this question is not open for you: it was undone, or the form is not yours")
            if row.value is not None:
                return False
            db.execute(answers.insert(), {"showing_id": row.id, **answer_row(value, clean, self.keys), "answered_at": time.time()})
            close_assignment(db, row.annotator_id, row, "skip" in value)
            add_to_log(db, pseudonym, "answer", f"item {row.item_id}")
            return True

    def undo(self, pseudonym: str) -> bool:
        """Take an annotator's last answer back and ask again; return whether there was one."""
        with writing(self.engine) as db:
            me = annotator_id(db, pseudonym)
            item_id = reopen_assignment(db, me, pseudonym)
            if item_id is None:
                return False
            add_to_log(db, pseudonym, "undo", f"item {item_id}")
            return True

    def items(self) -> list[tuple[int, Item]]:
        """Return all items with their numbers."""
        with self._connect(writes=False) as db:
            return [(row.id, item_of(row, self.keys)) for row in db.execute(sa.select(items).order_by(items.c.id))]

    def completed(self, given: Iterable[Item]) -> list[Item]:
        """Return the items, in place of each that is known by its texts alone the stored item with these texts, if there is one."""
        stored = sorted((item for _, item in self.items()), key=_is_bare)  # a stored item without more is the likeliest one
        turned = [mirrored(item) for item in stored if self.study.kind == "pair"]
        known = {(item.prompt, item.responses): item for item in (*turned, *stored)}
        cleaned = [(item, with_texts(item, self._clean)) for item in given]
        return [known.get((clean.prompt, clean.responses), item) if _is_bare(item) else item for item, clean in cleaned]

    def answers(self, who: str = "owner") -> list[Answer]:
        """Return all answers in the order they were given, skipped questions too; the log says who read them."""
        with self._connect() as db:
            add_to_log(db, who, "read answers", "")
            rows = db.execute(
                sa.select(items, assignments, annotators.c.pseudonym, answers.c.value, answers.c.words, answers.c.answered_at)
                .select_from(answers.join(assignments).join(items).join(annotators))
                .order_by(answers.c.answered_at, assignments.c.id)
            ).all()
        own = {number: item_of(row, self.keys) for number, row in {row.item_id: row for row in rows}.items()}
        return [answer_of(row, own[row.item_id], self.keys) for row in rows]

    def add_answers(self, given: Sequence[Answer]) -> tuple[int, int]:
        """Store answers from elsewhere, with their items, orders, times and pseudonyms; what is there already stays.

        Returns:
            How many were added, and how many were there already.
        """
        self.add_items(answer.item for answer in given)
        added = 0
        with self._connect() as db:
            for answer in given:
                who = add_annotator(db, answer.annotator)
                item_id, answer = self._find(db, answer)
                key = {"item_id": item_id, "annotator_id": who, "turn": answer.turn}
                showing = db.scalar(sa.select(assignments.c.id).where(*(assignments.c[name] == value for name, value in key.items())))
                if showing is not None and db.scalar(sa.select(answers.c.showing_id).where(answers.c.showing_id == showing)) is not None:
                    continue
                shown = {"shown_order": json.dumps(answer.order), "shown_at": answer.answered_at - answer.seconds}
                if showing is None:
                    new = assignments.insert().values(**key, **shown, ticket=secrets.token_urlsafe(16))
                    showing = db.execute(new).inserted_primary_key[0]  # type: ignore[index]
                else:  # a question that is open on their page, and answered elsewhere
                    db.execute(assignments.update().where(assignments.c.id == showing).values(**shown))
                words = {name: self._clean(text) for name, text in answer.words.items()}
                row = answer_row(answer.value, words, self.keys)
                db.execute(answers.insert().values(showing_id=showing, **row, answered_at=answer.answered_at))
                added += 1
            count_anew(db)
            add_to_log(db, "owner", "import answers", f"{added} new, {len(given) - added} known")
        return added, len(given) - added

    def access_log(self) -> list[tuple[float, str, str, str]]:
        """Return time, who, what they did and to what, oldest first."""
        with self.engine.connect() as db:
            return [(row.at, row.who, row.did, row.what) for row in db.execute(sa.select(log).order_by(log.c.id))]

    def note(self, who: str, did: str, what: str = "") -> None:
        """Add a line to the access log."""
        with writing(self.engine) as db:
            add_to_log(db, who, did, what)

    def forget(self, pseudonym: str) -> int:
        """Delete an annotator, all their answers and every line of the log about them, and overwrite the space.

        Returns:
            How many answers are gone.

        Raises:
            ValueError: Nobody has this pseudonym.
        """
        with writing(self.engine) as db:
            me = annotator_id(db, pseudonym)
            own = sa.select(assignments.c.id).where(assignments.c.annotator_id == me)
            gone = db.execute(answers.delete().where(answers.c.showing_id.in_(own))).rowcount
            db.execute(open_assignments.delete().where(open_assignments.c.annotator_id == me))
            db.execute(assignments.delete().where(assignments.c.annotator_id == me))
            db.execute(annotators.delete().where(annotators.c.id == me))
            count_anew(db)
            db.execute(log.delete().where(log.c.who == pseudonym))
            add_to_log(db, "owner", "forget", "an annotator")
        compact(self.engine)
        return gone

    def purge(self, days: float | None = None) -> tuple[int, int]:
        """Delete reasons and log entries older than `days`, and return how many of each.

        None: the study's `retention_days`, if it has them; whoever opens a study does this, and the server every hour.
        """
        days = self.study.retention_days if days is None else days
        if days is None:
            return 0, 0
        before = time.time() - days * 86400
        with self._connect() as db:
            words = purge_reasons(db, self.keys, before, self.study.kind)
            lines = db.execute(log.delete().where(log.c.at < before)).rowcount
            if words or lines:
                add_to_log(db, "owner", "purge", f"{words} reasons, {lines} lines of the log")
        if words or lines:
            compact(self.engine)
        return words, lines

    def rotate(self, save: Any) -> int:
        """Seal everything anew with a fresh key.

        Killed at any moment, the saved keys open everything: the new key is saved before it is used, the old one dropped last.  Two
        processes must not do it at once, one after the other may.

        Args:
            save: Called with the keys to keep, twice.

        Returns:
            How many values were sealed anew.
        """
        with self._connect(writes=False):  # reads the keys again if they were changed since
            self.keys = self.keys.with_new_seal()
        save(self.keys)
        with writing(self.engine) as db:
            count = reseal(db, self.keys)
            add_to_log(db, "owner", "rotate keys", "")
        compact(self.engine)
        self.keys = self.keys.with_newest_seal_only()
        save(self.keys)
        return count
