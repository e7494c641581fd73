"""Counts of answers beside the items; `assignments.count_anew` fills them in."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add them, without a copy of any table: to drop an old one would delete what refers to it."""
    op.add_column("annotators", sa.Column("answered", sa.Integer, nullable=False, server_default="0"))
    op.add_column("items", sa.Column("counted", sa.Integer, nullable=False, server_default="0"))
    op.add_column("items", sa.Column("place", sa.Integer, nullable=False, server_default="0"))
    op.execute("UPDATE items SET place = id")
    op.create_index("ix_items_counted_place", "items", ["counted", "place"], unique=True)
    op.create_table(
        "tallies",
        sa.Column("annotator_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("counted", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("size", sa.Integer, nullable=False),
    )
    op.create_table(
        "open_showings",
        sa.Column("annotator_id", sa.Integer, sa.ForeignKey("annotators.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
        sa.Column("showing_id", sa.Integer, sa.ForeignKey("showings.id", ondelete="CASCADE"), nullable=False, unique=True),
        sa.Column("reserved_at", sa.Float, index=True),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("open_showings")
    op.drop_table("tallies")
    op.drop_index("ix_items_counted_place", "items")
    for table, column in (("items", "place"), ("items", "counted"), ("annotators", "answered")):
        op.drop_column(table, column)
