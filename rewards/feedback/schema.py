"""The tables of a study's database, and how items and answers become their rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from textrl_env.utils.optional_imports import optional_import

from .encryption import Keys
from .items import Answer, Item, mirrored
from .study import Study

with optional_import("feedback", "feedback from people needs the extra"):
    import sqlalchemy as sa
    from sqlalchemy import Column, Float, ForeignKey, Index, Integer, LargeBinary, MetaData, String, Table, UniqueConstraint

metadata = MetaData()

facts = Table("facts", metadata, Column("name", String, primary_key=True), Column("value", LargeBinary, nullable=False))

items = Table(
    "items", metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),  # keyed: one item is stored once
    Column("texts", LargeBinary, nullable=False),  # sealed JSON: prompt, responses, metadata
    Column("sources", String, nullable=False),  # JSON list: which policy wrote each response
    Column("group", String),
    Column("gold", String),  # JSON value of the right answer, for gold questions
    Column("created_at", Float, nullable=False),
    Column("counted", Integer, nullable=False),  # answers it has or will soon have; -1 for gold questions
    Column("place", Integer, nullable=False),  # 0, 1, ... among the items with this count
    Index("ix_items_counted_place", "counted", "place", unique=True),
)  # fmt: skip

annotators = Table(
    "annotators", metadata,
    Column("id", Integer, primary_key=True),
    Column("pseudonym", String, nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("answered", Integer, nullable=False, default=0),  # answers given, skipped questions and repetitions too
)  # fmt: skip

tallies = Table(
    "tallies", metadata,
    Column("annotator_id", Integer, primary_key=True, autoincrement=False),  # 0 for everybody
    Column("counted", Integer, primary_key=True, autoincrement=False),
    Column("size", Integer, nullable=False),  # how many with this count there are; of an annotator, those shown to them
)  # fmt: skip

assignments = Table(
    "showings", metadata,
    Column("id", Integer, primary_key=True),
    Column("item_id", Integer, ForeignKey("items.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("annotator_id", Integer, ForeignKey("annotators.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("turn", Integer, nullable=False),  # 0; 1 when the item is shown again to see whether the answer stays
    Column("shown_order", String, nullable=False),  # JSON list: the response shown at each place
    Column("ticket", String, nullable=False, unique=True),  # what a form must carry
    Column("shown_at", Float, nullable=False),
    UniqueConstraint("item_id", "annotator_id", "turn"),
)  # fmt: skip

answers = Table(
    "answers", metadata,
    Column("showing_id", Integer, ForeignKey("showings.id", ondelete="CASCADE"), primary_key=True),
    Column("value", String, nullable=False),  # JSON; responses by their number in the item, not by their place on the page
    Column("words", LargeBinary),  # sealed JSON: reason, demonstration
    Column("answered_at", Float, nullable=False),
)  # fmt: skip

open_assignments = Table(
    "open_showings", metadata,
    Column("annotator_id", Integer, ForeignKey("annotators.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("showing_id", Integer, ForeignKey("showings.id", ondelete="CASCADE"), nullable=False, unique=True),
    Column("reserved_at", Float, index=True),  # since when the item counts as answered; none where it does not
)  # fmt: skip

log = Table(
    "log", metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("who", String, nullable=False),  # pseudonym, or "owner"
    Column("did", String, nullable=False),
    Column("what", String, nullable=False),
)  # fmt: skip


def digest_of(item: Item, keys: Keys) -> str:
    """Return what a stored item is recognised by."""
    return keys.digest("item", json.dumps([item.prompt, item.responses, item.group, item.gold]))


def digests_of(item: Item, keys: Keys, study: Study) -> list[str]:
    """Return the digests by which an item is known to be stored: a pair in either order."""
    return [digest_of(same, keys) for same in ([item, mirrored(item)] if study.kind == "pair" else [item])]


def item_row(item: Item, keys: Keys) -> dict[str, Any]:
    """Return the columns of an item but `id` and `created_at`, its texts sealed."""
    texts = json.dumps({"prompt": item.prompt, "responses": item.responses, "metadata": dict(item.metadata)})
    gold = None if item.gold is None else json.dumps(item.gold)
    return {
        "digest": digest_of(item, keys), "texts": keys.seal(texts), "sources": json.dumps(list(item.sources)),
        "group": item.group, "gold": gold,
    }  # fmt: skip


def item_of(row: Any, keys: Keys) -> Item:
    """Return the item in a row of `items`."""
    texts = json.loads(keys.open(row.texts))
    gold = None if row.gold is None else json.loads(row.gold)
    return Item(texts["prompt"], tuple(texts["responses"]), tuple(json.loads(row.sources)), row.group, gold, texts["metadata"])


def answer_row(value: Mapping[str, Any], words: Mapping[str, str], keys: Keys) -> dict[str, Any]:
    """Return the columns `value` and `words` of an answer, the words sealed."""
    return {"value": json.dumps(dict(value)), "words": keys.seal(json.dumps(words)) if words else None}


def answer_of(row: Any, item: Item, keys: Keys) -> Answer:
    """Return the answer in a row of `answers` that is joined with its assignment and its annotator."""
    words = {} if row.words is None else json.loads(keys.open(row.words))
    order, value, seconds = tuple(json.loads(row.shown_order)), json.loads(row.value), row.answered_at - row.shown_at
    return Answer(row.item_id, item, row.pseudonym, row.turn, order, value, words, row.answered_at, seconds)


def reseal(db: sa.Connection, keys: Keys) -> int:
    """Seal with the newest key whatever the database holds sealed; return how many values that are."""
    count = 0
    for table, column, key in ((facts, "value", "name"), (items, "texts", "id"), (answers, "words", "showing_id")):
        for row in db.execute(sa.select(table.c[key], table.c[column]).where(table.c[column].is_not(None))).all():
            db.execute(table.update().where(table.c[key] == row[0]).values({column: keys.seal(keys.open(row[1]))}))
            count += 1
    return count


def purge_reasons(db: sa.Connection, keys: Keys, before: float, kind: str) -> int:
    """Delete reasons of answers given before a time, and return how many; the words of a demonstration are the answer, and stay."""
    old = sa.and_(answers.c.answered_at < before, answers.c.words.is_not(None))
    if kind != "demonstration":
        return db.execute(answers.update().where(old).values(words=None)).rowcount
    number = 0
    for row in db.execute(sa.select(answers.c.showing_id, answers.c.words).where(old)).all():
        words = json.loads(keys.open(row.words))
        if words.pop("reason", None) is not None:
            sealed = keys.seal(json.dumps(words)) if words else None
            db.execute(answers.update().where(answers.c.showing_id == row.showing_id).values(words=sealed))
            number += 1
    return number
