"""Which item an annotator is asked about next, and in which order its responses stand.

An item's count is the number of answers that it has or will soon have: those given, but for skipped questions and repetitions, and one for
each showing that is open and reserved.  The items of one count are numbered 0, 1, ... (`place`), and `tallies` holds how many there are of
each count, and how many of these each annotator was given.  So the next item is drawn by its place, and no question looks at all items.
All of this follows from showings, answers and the clock: `count_anew` computes it.
"""

from __future__ import annotations

import json
import random
import secrets
import time
from collections.abc import Iterable
from typing import Any

from textrl_env.utils.optional_imports import optional_import

from .encryption import Keys
from .items import EQUAL
from .schema import annotators, answers, assignments, item_of, items, open_assignments, tallies
from .study import Study

with optional_import("feedback", "feedback from people needs the extra"):
    import sqlalchemy as sa

REPEAT_AFTER = 5  # answers between an item and its repetition
RESERVED = 1800.0  # seconds for which an item that is shown counts as answered
EVERYBODY = 0  # in place of an annotator's number
GOLD = -1  # in place of the count of gold questions, which are asked as often as they are drawn
SETTLED = 2**31 - 1  # in place of the count of what is never asked: more than any overlap
SKIPPED = '{"skip"%'
TRIES = 16  # places drawn before all items of a count are looked at

# Built once: to put these together takes longer than to run them.
_ME: sa.BindParameter[int] = sa.bindparam("me")
_ITEM: sa.BindParameter[int] = sa.bindparam("item")
_COUNTED: sa.BindParameter[int] = sa.bindparam("count")
_CHANGE_TALLY = sa.text("""
    INSERT INTO tallies (annotator_id, counted, size) VALUES (:me, :count, :change)
    ON CONFLICT (annotator_id, counted) DO UPDATE SET size = tallies.size + excluded.size
""")
_MOVE_TALLIES = sa.text("""
    INSERT INTO tallies (annotator_id, counted, size)
    SELECT who.id, moves.counted, moves.change
    FROM (SELECT 0 AS id UNION SELECT annotator_id FROM showings WHERE item_id = :item) AS who
    CROSS JOIN (SELECT CAST(:old AS INTEGER) AS counted, -1 AS change UNION ALL SELECT CAST(:new AS INTEGER), 1) AS moves
    WHERE true
    ON CONFLICT (annotator_id, counted) DO UPDATE SET size = tallies.size + excluded.size
""")
_SIZE = sa.select(tallies.c.size).where(tallies.c.annotator_id == EVERYBODY, tallies.c.counted == _COUNTED).scalar_subquery()
_COUNT_AND_PLACE = sa.select(items.c.counted, items.c.place).where(items.c.id == _ITEM)
_TO_LAST_PLACE = items.update().where(items.c.id == _ITEM).values(counted=_COUNTED, place=_SIZE - 1)
_FILL_PLACE = items.update().where(items.c.counted == _COUNTED, items.c.place == _SIZE).values(place=sa.bindparam("to"))
_CLOSE = open_assignments.delete().where(open_assignments.c.annotator_id == _ME)
_COUNT_ANSWER = annotators.update().where(annotators.c.id == _ME).values(answered=annotators.c.answered + sa.bindparam("change"))
_EXPIRED = (
    sa.select(open_assignments.c.showing_id, assignments.c.item_id)
    .join(assignments)
    .where(open_assignments.c.reserved_at <= sa.bindparam("before"))
)
_OPEN = (
    sa.select(items, assignments.c.ticket, assignments.c.shown_order, assignments.c.turn)
    .add_columns(assignments.c.id.label("showing_id"), open_assignments.c.reserved_at)
    .select_from(annotators.join(open_assignments).join(assignments, assignments.c.id == open_assignments.c.showing_id).join(items))
    .where(annotators.c.pseudonym == sa.bindparam("pseudonym"))
)
_LEFT = (
    sa.select(
        tallies.c.counted,
        sa.func.sum(sa.case((tallies.c.annotator_id == EVERYBODY, tallies.c.size), else_=0)).label("size"),
        sa.func.sum(sa.case((tallies.c.annotator_id == EVERYBODY, tallies.c.size), else_=-tallies.c.size)).label("left"),
    )
    .where(tallies.c.annotator_id.in_([EVERYBODY, _ME]), tallies.c.counted < sa.bindparam("overlap"))
    .group_by(tallies.c.counted)
)
_NOT_OWN = sa.select(items).where(
    items.c.counted == _COUNTED, ~sa.exists().where(assignments.c.item_id == items.c.id, assignments.c.annotator_id == _ME)
)
_AT_PLACES = _NOT_OWN.where(items.c.place.in_(sa.bindparam("places", expanding=True)))


def open_assignment(db: sa.Connection, pseudonym: str) -> Any:
    """Return the row of what an annotator sees and has not answered; None if there is nothing."""
    return db.execute(_OPEN, {"pseudonym": pseudonym}).first()


def add_assignment(db: sa.Connection, study: Study, keys: Keys, me: int, pseudonym: str) -> int | None:
    """Assign another item to an annotator, and return its number; None if nothing is left.

    Its responses stand in random order, in a repetition in the reverse of the first one.
    """
    chosen = _choose_item(db, study, me, pseudonym)
    if chosen is None:
        return None
    item, turn = chosen
    if turn:
        first = sa.select(assignments.c.shown_order).where(assignments.c.annotator_id == me, assignments.c.item_id == item.id)
        order = json.loads(db.scalars(first).one())[::-1]
    else:
        order = list(range(len(item_of(item, keys).responses)))
        random.Random(f"{study.seed} {pseudonym} {item.id}").shuffle(order)
        _recount(db, item.id, 1)
        db.execute(_CHANGE_TALLY, {"me": me, "count": item.counted + (item.counted != GOLD), "change": 1})
    now = time.time()
    shown = {"shown_order": json.dumps(order), "ticket": secrets.token_urlsafe(16), "shown_at": now}
    added = db.execute(assignments.insert(), {"item_id": item.id, "annotator_id": me, "turn": turn, **shown})
    assert added.inserted_primary_key is not None
    _open(db, me, added.inserted_primary_key[0], now if turn == 0 else None)
    return int(item.id)


def close_assignment(db: sa.Connection, me: int, row: Any, skipped: bool) -> None:
    """Count an answer that was just stored; `row` is its showing's, with `reserved_at`."""
    db.execute(_CLOSE, {"me": me})
    db.execute(_COUNT_ANSWER, {"me": me, "change": 1})
    if row.turn == 0:
        _recount(db, row.item_id, (not skipped) - (row.reserved_at is not None))


def reopen_assignment(db: sa.Connection, me: int, pseudonym: str) -> int | None:
    """Take an annotator's last answer back, ask again in place of what is asked now, and return the item's number; None without one."""
    last = db.execute(
        sa.select(assignments.c.id, assignments.c.item_id, assignments.c.turn, answers.c.value.like(SKIPPED).label("skipped"))
        .select_from(answers.join(assignments))
        .where(assignments.c.annotator_id == me)
        .order_by(answers.c.answered_at.desc(), assignments.c.id.desc())
    ).first()
    if last is None:
        return None
    shown = open_assignment(db, pseudonym)
    if shown is not None:
        _withdraw(db, me, shown)
    db.execute(answers.delete().where(answers.c.showing_id == last.id))
    now = time.time()
    db.execute(assignments.update().where(assignments.c.id == last.id).values(ticket=secrets.token_urlsafe(16), shown_at=now))
    db.execute(_COUNT_ANSWER, {"me": me, "change": -1})
    _open(db, me, last.id, now if last.turn == 0 else None)
    if last.turn == 0 and last.skipped:
        _recount(db, last.item_id, 1)
    return int(last.item_id)


def release_expired(db: sa.Connection) -> None:
    """Let items that somebody has looked at for too long be asked of others."""
    late = db.execute(_EXPIRED, {"before": time.time() - RESERVED}).all()
    for row in late:
        _recount(db, row.item_id, -1)
    if late:
        ids = [row.showing_id for row in late]
        db.execute(open_assignments.update().where(open_assignments.c.showing_id.in_(ids)).values(reserved_at=None))


def items_left(db: sa.Connection, study: Study, me: int) -> dict[int, tuple[int, int]]:
    """Return by count how many items have this count, and how many of them an annotator may be asked about, where any are left."""
    return {row.counted: (row.size, row.left) for row in db.execute(_LEFT, {"me": me, "overlap": study.overlap}) if row.left}


def count_anew(db: sa.Connection) -> None:
    """Compute all that follows from showings, answers and the clock."""
    answered = sa.select(sa.func.count()).select_from(answers.join(assignments)).where(assignments.c.annotator_id == annotators.c.id)
    db.execute(annotators.update().values(answered=answered.scalar_subquery()))
    reserved = sa.and_(assignments.c.turn == 0, assignments.c.shown_at > time.time() - RESERVED)
    now = sa.select(assignments.c.annotator_id, assignments.c.id, sa.case((reserved, assignments.c.shown_at)))
    db.execute(open_assignments.delete())
    unanswered = now.select_from(assignments.outerjoin(answers)).where(answers.c.showing_id.is_(None))
    db.execute(open_assignments.insert().from_select(["annotator_id", "showing_id", "reserved_at"], unanswered))

    counts = sa.and_(assignments.c.turn == 0, sa.or_(open_assignments.c.reserved_at.is_not(None), answers.c.value.not_like(SKIPPED)))
    given = items.outerjoin(assignments, assignments.c.item_id == items.c.id).outerjoin(answers).outerjoin(
        open_assignments, open_assignments.c.showing_id == assignments.c.id
    )  # fmt: skip
    settled = items.c.gold == json.dumps(EQUAL)
    number = sa.case((settled, SETTLED), (items.c.gold.is_not(None), GOLD), else_=sa.func.count(sa.case((counts, 1)))).label("counted")
    counted = sa.select(items.c.id, number).select_from(given).group_by(items.c.id, items.c.gold).subquery()
    place = sa.func.row_number().over(partition_by=counted.c.counted, order_by=counted.c.id) - 1
    placed = sa.select(counted, place.label("place")).subquery()
    db.execute(items.update().values(place=-items.c.id))  # no two may have one place, not even on the way
    db.execute(items.update().where(items.c.id == placed.c.id).values(counted=placed.c.counted, place=placed.c.place))

    db.execute(tallies.delete())
    own = sa.select(assignments.c.annotator_id, assignments.c.item_id).distinct().subquery()
    for who, of in ((sa.literal(EVERYBODY), items), (own.c.annotator_id, items.join(own, own.c.item_id == items.c.id))):
        sums = sa.select(who, items.c.counted, sa.func.count()).select_from(of).group_by(who, items.c.counted)
        db.execute(tallies.insert().from_select(["annotator_id", "counted", "size"], sums))


def place_items(db: sa.Connection, rows: Iterable[dict[str, Any]]) -> None:
    """Give the rows of new items their counts and places."""
    sizes = dict(db.execute(sa.select(tallies.c.counted, tallies.c.size).where(tallies.c.annotator_id == EVERYBODY)).all())
    new = {0: 0, GOLD: 0, SETTLED: 0}
    for row in rows:
        counted = 0 if row["gold"] is None else SETTLED if row["gold"] == json.dumps(EQUAL) else GOLD
        row |= {"counted": counted, "place": sizes.get(counted, 0) + new[counted]}
        new[counted] += 1
    db.execute(_CHANGE_TALLY, [{"me": EVERYBODY, "count": counted, "change": number} for counted, number in new.items()])


def _choose_item(db: sa.Connection, study: Study, me: int, pseudonym: str) -> tuple[Any, int] | None:
    """Return the row of the item to ask about, and 1 if it repeats an answered one, else 0; None if nothing is left."""
    answered = db.scalar(sa.select(annotators.c.answered).where(annotators.c.id == me))
    draw = random.Random(f"{study.seed} {pseudonym} {answered}")
    lot = draw.random()
    if lot < study.repeat_share:
        old = _repeatable(db, me)
        if old:
            return db.execute(sa.select(items).where(items.c.id == draw.choice(old))).one(), 1
    left = items_left(db, study, me)
    if study.repeat_share <= lot < study.repeat_share + study.gold_share and GOLD in left:
        return _draw_item(db, me, GOLD, left[GOLD][0], draw), 0
    counted = min(left.keys() - {GOLD}, default=None)
    return None if counted is None else (_draw_item(db, me, counted, left[counted][0], draw), 0)


def _repeatable(db: sa.Connection, me: int) -> list[int]:
    """Return the items that may be asked again, in the order in which they were answered: the only look at all answers of one person."""
    given = db.execute(
        sa.select(assignments.c.item_id, assignments.c.turn, answers.c.value.like(SKIPPED).label("skipped"))
        .select_from(answers.join(assignments))
        .where(assignments.c.annotator_id == me)
        .order_by(answers.c.answered_at)
    ).all()
    again = {row.item_id for row in given if row.turn == 1}
    return [row.item_id for row in given[:-REPEAT_AFTER] if row.item_id not in again and not row.skipped]


def _draw_item(db: sa.Connection, me: int, counted: int, size: int, draw: random.Random) -> Any:
    """Return the row of one of the `size` items of a count that an annotator was not given, each with the same probability.

    Places are drawn until one holds such an item.  After some draws in vain nearly all items of this count are the annotator's own, and
    the others are listed.
    """
    places = [draw.randrange(size) for _ in range(TRIES)]
    found = {row.place: row for row in db.execute(_AT_PLACES, {"me": me, "count": counted, "places": places})}
    if found:
        return next(found[place] for place in places if place in found)
    return draw.choice(db.execute(_NOT_OWN.order_by(items.c.place), {"me": me, "count": counted}).all())


def _open(db: sa.Connection, me: int, showing_id: int, reserved_at: float | None) -> None:
    """Note what an annotator sees now, and since when the item counts as answered by them."""
    db.execute(open_assignments.insert(), {"annotator_id": me, "showing_id": showing_id, "reserved_at": reserved_at})


def _withdraw(db: sa.Connection, me: int, row: Any) -> None:
    """Take an open question back; `row` is what `open_assignment` returns."""
    db.execute(_CLOSE, {"me": me})
    db.execute(assignments.delete().where(assignments.c.id == row.showing_id))
    if row.turn == 0:
        db.execute(_CHANGE_TALLY, {"me": me, "count": row.counted, "change": -1})
        _recount(db, row.id, -(row.reserved_at is not None))


def _recount(db: sa.Connection, item_id: int, change: int) -> None:
    """Add to an item's count: it takes the last place of its new count, and the last item of its old count takes its place."""
    item = db.execute(_COUNT_AND_PLACE, {"item": item_id}).one()
    if item.counted == GOLD or change == 0:
        return
    old, new = item.counted, item.counted + change
    db.execute(_MOVE_TALLIES, {"item": item_id, "old": old, "new": new})
    db.execute(_TO_LAST_PLACE, {"item": item_id, "count": new})
    db.execute(_FILL_PLACE, {"count": old, "to": item.place})
