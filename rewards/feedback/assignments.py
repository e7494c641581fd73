"""Which item an annotator is asked about next, and in which order its responses stand."""

from __future__ import annotations

import json
import random
import secrets
import time
from typing import Any

from textrl_env.utils.optional_imports import optional_import

from .encryption import Keys
from .schema import answers, assignments, item_of, items
from .study import Study

with optional_import("feedback", "feedback from people needs the extra"):
    import sqlalchemy as sa

REPEAT_AFTER = 5  # answers between an item and its repetition
RESERVED = 1800.0  # seconds for which an item that is shown counts as answered


def open_assignments(me: int) -> sa.Select[Any]:
    """Select what the annotator with the number `me` sees and has not answered."""
    return (
        sa.select(items, assignments.c.ticket, assignments.c.shown_order, assignments.c.shown_at, assignments.c.id.label("showing_id"))
        .select_from(assignments.join(items).outerjoin(answers))
        .where(assignments.c.annotator_id == me, answers.c.value.is_(None))
    )


def add_assignment(db: sa.Connection, study: Study, keys: Keys, me: int, pseudonym: str) -> int | None:
    """Assign another item to an annotator, and return its number; None if nothing is left.

    Its responses stand in random order, in a repetition in the reverse of the first one.
    """
    chosen = _choose_item(db, study, me, pseudonym)
    if chosen is None:
        return None
    item_id, turn = chosen
    if turn:
        first = sa.select(assignments.c.shown_order).where(assignments.c.annotator_id == me, assignments.c.item_id == item_id)
        order = json.loads(db.scalars(first).one())[::-1]
    else:
        item = item_of(db.execute(sa.select(items).where(items.c.id == item_id)).one(), keys)
        order = list(range(len(item.responses)))
        random.Random(f"{study.seed} {pseudonym} {item_id}").shuffle(order)
    shown = {"shown_order": json.dumps(order), "ticket": secrets.token_urlsafe(16), "shown_at": time.time()}
    db.execute(assignments.insert().values(item_id=item_id, annotator_id=me, turn=turn, **shown))
    return item_id


def _choose_item(db: sa.Connection, study: Study, me: int, pseudonym: str) -> tuple[int, int] | None:
    """Return the number of the item to ask about, and 1 if it repeats an answered one, else 0; None if nothing is left."""
    given = db.execute(
        sa.select(assignments.c.item_id, assignments.c.turn, answers.c.value)
        .select_from(answers.join(assignments))
        .where(assignments.c.annotator_id == me)
        .order_by(answers.c.answered_at)
    ).all()
    draw = random.Random(f"{study.seed} {pseudonym} {len(given)}")
    lot = draw.random()
    if lot < study.repeat_share:
        again = {row.item_id for row in given if row.turn == 1}
        old = [row.item_id for row in given[:-REPEAT_AFTER] if row.item_id not in again and "skip" not in json.loads(row.value)]
        if old:
            return draw.choice(old), 1
    elif lot < study.repeat_share + study.gold_share:
        seen = {row.item_id for row in given}
        gold = [i for i in db.scalars(sa.select(items.c.id).where(items.c.gold.is_not(None)).order_by(items.c.id)) if i not in seen]
        if gold:
            return draw.choice(gold), 0
    wanted = wanted_items(db, study, me)
    fewest = min(wanted.values(), default=0)
    least = [i for i, count in wanted.items() if count == fewest]
    return (draw.choice(least), 0) if least else None


def wanted_items(db: sa.Connection, study: Study, me: int) -> dict[int, int]:
    """Return the items that an annotator may be asked about, with the number of answers they have or will soon have."""
    shown_now = answers.c.value.is_(None) & (assignments.c.shown_at > time.time() - RESERVED)
    real = sa.or_(shown_now, answers.c.value.not_like('{"skip"%'))
    counted = sa.func.count(sa.case((sa.and_(real, assignments.c.turn == 0), 1)))
    own = sa.func.count(sa.case((assignments.c.annotator_id == me, 1)))
    rows = db.execute(
        sa.select(items.c.id, counted.label("count"))
        .select_from(items.outerjoin(assignments, assignments.c.item_id == items.c.id).outerjoin(answers))
        .where(items.c.gold.is_(None))
        .group_by(items.c.id)
        .having(sa.and_(own == 0, counted < study.overlap))
        .order_by(items.c.id)
    )
    return {row[0]: row[1] for row in rows}
