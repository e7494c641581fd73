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
from .schema import annotators, answers, assignments, item_of, items, open_assignments, tallies
from .study import Study

with optional_import("feedback", "feedback from people needs the extra"):
    import sqlalchemy as sa

REPEAT_AFTER = 5  # answers between an item and its repetition
RESERVED = 1800.0  # seconds for which an item that is shown counts as answered
EVERYBODY = 0  # in place of an annotator's number
GOLD = -1  # in place of the count of gold questions, which are asked as often as they are drawn
SKIPPED = '{"skip"%'
TRIES = 16  # places drawn before all items of a count are looked at

_CHANGE_TALLY = """
    INSERT INTO tallies (annotator_id, counted, size) VALUES (:who, :counted, :change)
    ON CONFLICT (annotator_id, counted) DO UPDATE SET size = tallies.size + excluded.size
"""


def open_assignment(me: int) -> sa.Select[Any]:
    """Select what the annotator with the number `me` sees and has not answered: one row, or none."""
    return (
        sa.select(items, assignments.c.ticket, assignments.c.shown_order, assignments.c.turn)
        .add_columns(assignments.c.id.label("showing_id"), open_assignments.c.reserved_at)
        .select_from(open_assignments.join(assignments).join(items))
        .where(open_assignments.c.annotator_id == me)
    )


def add_assignment(db: sa.Connection, study: Study, keys: Keys, me: int, pseudonym: str) -> int | None:
    """Assign another item to an annotator, and return its number; None if nothing is left.

    Its responses stand in random order, in a repetition in the reverse of the first one.
    """
    release_expired(db)
    chosen = _choose_item(db, study, me, pseudonym)
    if chosen is None:
        return None
    item_id, turn = chosen
    item = db.execute(sa.select(items).where(items.c.id == item_id)).one()
    if turn:
        first = sa.select(assignments.c.shown_order).where(assignments.c.annotator_id == me, assignments.c.item_id == item_id)
        order = json.loads(db.scalars(first).one())[::-1]
    else:
        order = list(range(len(item_of(item, keys).responses)))
        random.Random(f"{study.seed} {pseudonym} {item_id}").shuffle(order)
    shown = {"shown_order": json.dumps(order), "ticket": secrets.token_urlsafe(16), "shown_at": time.time()}
    added = db.execute(assignments.insert().values(item_id=item_id, annotator_id=me, turn=turn, **shown))
    if turn == 0:
        db.execute(sa.text(_CHANGE_TALLY), {"who": me, "counted": item.counted, "change": 1})
    _open(db, me, added.inserted_primary_key[0], item_id, turn, reserve=True)
    return item_id


def close_assignment(db: sa.Connection, me: int, row: Any, skipped: bool) -> None:
    """Count an answer that was just stored; `row` is what `open_assignment` selects."""
    db.execute(open_assignments.delete().where(open_assignments.c.annotator_id == me))
    db.execute(annotators.update().where(annotators.c.id == me).values(answered=annotators.c.answered + 1))
    if row.turn == 0:
        _recount(db, row.item_id, (not skipped) - (row.reserved_at is not None))


def reopen_assignment(db: sa.Connection, me: int) -> int | None:
    """Take an annotator's last answer back, ask again in place of what is asked now, and return the item's number; None without one."""
    last = db.execute(
        sa.select(assignments.c.id, assignments.c.item_id, assignments.c.turn, answers.c.value.like(SKIPPED).label("skipped"))
        .select_from(answers.join(assignments))
        .where(assignments.c.annotator_id == me)
        .order_by(answers.c.answered_at.desc(), assignments.c.id.desc())
    ).first()
    if last is None:
        return None
    now = db.execute(open_assignment(me)).first()
    if now is not None:
        _withdraw(db, me, now)
    db.execute(answers.delete().where(answers.c.showing_id == last.id))
    fresh = {"ticket": secrets.token_urlsafe(16), "shown_at": time.time()}
    db.execute(assignments.update().where(assignments.c.id == last.id).values(**fresh))
    db.execute(annotators.update().where(annotators.c.id == me).values(answered=annotators.c.answered - 1))
    _open(db, me, last.id, last.item_id, last.turn, reserve=last.skipped)
    return int(last.item_id)


def release_expired(db: sa.Connection) -> None:
    """Let items that somebody has looked at for too long be asked of others."""
    late = expired(db)
    for row in late:
        _recount(db, row.item_id, -1)
    if late:
        ids = [row.showing_id for row in late]
        db.execute(open_assignments.update().where(open_assignments.c.showing_id.in_(ids)).values(reserved_at=None))


def expired(db: sa.Connection) -> list[Any]:
    """Return open showings that still count though their time is over."""
    late = open_assignments.c.reserved_at <= time.time() - RESERVED
    return list(db.execute(sa.select(open_assignments.c.showing_id, assignments.c.item_id).join(assignments).where(late)))


def items_left(db: sa.Connection, study: Study, me: int) -> dict[int, tuple[int, int]]:
    """Return by count how many items have this count, and how many of them an annotator may be asked about, where any are left."""
    own = sa.func.sum(sa.case((tallies.c.annotator_id == me, tallies.c.size), else_=0))
    size = sa.func.sum(sa.case((tallies.c.annotator_id == EVERYBODY, tallies.c.size), else_=0))
    rows = db.execute(
        sa.select(tallies.c.counted, size, size - own)
        .where(tallies.c.annotator_id.in_([EVERYBODY, me]), tallies.c.counted < study.overlap)
        .group_by(tallies.c.counted)
    )
    return {counted: (size, left) for counted, size, left in rows if left}


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
    number = sa.case((items.c.gold.is_not(None), GOLD), else_=sa.func.count(sa.case((counts, 1)))).label("counted")
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
    new = {0: 0, GOLD: 0}
    for row in rows:
        counted = 0 if row["gold"] is None else GOLD
        row |= {"counted": counted, "place": sizes.get(counted, 0) + new[counted]}
        new[counted] += 1
    db.execute(sa.text(_CHANGE_TALLY), [{"who": EVERYBODY, "counted": counted, "change": number} for counted, number in new.items()])


def _choose_item(db: sa.Connection, study: Study, me: int, pseudonym: str) -> tuple[int, int] | None:
    """Return the number of the item to ask about, and 1 if it repeats an answered one, else 0; None if nothing is left."""
    answered = db.scalar(sa.select(annotators.c.answered).where(annotators.c.id == me))
    draw = random.Random(f"{study.seed} {pseudonym} {answered}")
    lot = draw.random()
    if lot < study.repeat_share:
        old = _repeatable(db, me)
        if old:
            return draw.choice(old), 1
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


def _draw_item(db: sa.Connection, me: int, counted: int, size: int, draw: random.Random) -> int:
    """Return one of the `size` items of a count that an annotator was not given, each with the same probability.

    Places are drawn until one holds such an item.  After some draws in vain nearly all items of this count are the annotator's own, and
    the others are listed.
    """
    own = sa.exists().where(assignments.c.item_id == items.c.id, assignments.c.annotator_id == me)
    free = sa.select(items.c.place, items.c.id).where(items.c.counted == counted, ~own)
    places = [draw.randrange(size) for _ in range(TRIES)]
    found = {row.place: row.id for row in db.execute(free.where(items.c.place.in_(places)))}
    if found:
        return int(next(found[place] for place in places if place in found))
    return int(draw.choice([row.id for row in db.execute(free.order_by(items.c.place))]))


def _open(db: sa.Connection, me: int, showing_id: int, item_id: int, turn: int, reserve: bool) -> None:
    """Note what an annotator sees now; with `reserve` a first showing begins to count."""
    reserved_at = time.time() if turn == 0 else None
    db.execute(open_assignments.insert().values(annotator_id=me, showing_id=showing_id, reserved_at=reserved_at))
    if turn == 0 and reserve:
        _recount(db, item_id, 1)


def _withdraw(db: sa.Connection, me: int, row: Any) -> None:
    """Take an open question back; `row` is what `open_assignment` selects."""
    if row.turn == 0:
        _recount(db, row.id, -(row.reserved_at is not None))
        counted = db.scalar(sa.select(items.c.counted).where(items.c.id == row.id))
        db.execute(sa.text(_CHANGE_TALLY), {"who": me, "counted": counted, "change": -1})
    db.execute(open_assignments.delete().where(open_assignments.c.annotator_id == me))
    db.execute(assignments.delete().where(assignments.c.id == row.showing_id))


def _recount(db: sa.Connection, item_id: int, change: int) -> None:
    """Add to an item's count: it takes the last place of its new count, and the last item of its old count takes its place."""
    item = db.execute(sa.select(items.c.counted, items.c.place).where(items.c.id == item_id)).one()
    if item.counted == GOLD or change == 0:
        return
    old, new = item.counted, item.counted + change
    own = db.scalars(sa.select(assignments.c.annotator_id).distinct().where(assignments.c.item_id == item_id)).all()
    moves = [{"who": who, "counted": counted, "change": by} for who in (EVERYBODY, *own) for counted, by in ((old, -1), (new, 1))]
    db.execute(sa.text(_CHANGE_TALLY), moves)
    everybody = sa.select(tallies.c.counted, tallies.c.size).where(tallies.c.annotator_id == EVERYBODY)
    sizes = dict(db.execute(everybody.where(tallies.c.counted.in_([old, new]))).all())
    db.execute(items.update().where(items.c.id == item_id).values(counted=new, place=sizes[new] - 1))
    last = sa.and_(items.c.counted == old, items.c.place == sizes[old])
    db.execute(items.update().where(last).values(place=item.place))
