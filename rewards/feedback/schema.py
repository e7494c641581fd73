"""The tables of a study's database."""

from __future__ import annotations

from sqlalchemy import Column, Float, ForeignKey, Integer, LargeBinary, MetaData, String, Table, UniqueConstraint

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
)  # fmt: skip

annotators = Table(
    "annotators", metadata,
    Column("id", Integer, primary_key=True),
    Column("pseudonym", String, nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
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

log = Table(
    "log", metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("who", String, nullable=False),  # pseudonym, or "owner"
    Column("did", String, nullable=False),
    Column("what", String, nullable=False),
)  # fmt: skip
