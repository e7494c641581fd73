"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create them."""
    op.create_table("facts", sa.Column("name", sa.String, primary_key=True), sa.Column("value", sa.LargeBinary, nullable=False))
    op.create_table(
        "items",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("texts", sa.LargeBinary, nullable=False),
        sa.Column("sources", sa.String, nullable=False),
        sa.Column("group", sa.String),
        sa.Column("gold", sa.String),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "annotators",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("pseudonym", sa.String, nullable=False, unique=True),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "showings",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("item_id", sa.Integer, sa.ForeignKey("items.id", ondelete="CASCADE"), nullable=False, index=True),
        sa.Column("annotator_id", sa.Integer, sa.ForeignKey("annotators.id", ondelete="CASCADE"), nullable=False, index=True),
        sa.Column("turn", sa.Integer, nullable=False),
        sa.Column("shown_order", sa.String, nullable=False),
        sa.Column("ticket", sa.String, nullable=False, unique=True),
        sa.Column("shown_at", sa.Float, nullable=False),
        sa.UniqueConstraint("item_id", "annotator_id", "turn"),
    )
    op.create_table(
        "answers",
        sa.Column("showing_id", sa.Integer, sa.ForeignKey("showings.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("value", sa.String, nullable=False),
        sa.Column("words", sa.LargeBinary),
        sa.Column("answered_at", sa.Float, nullable=False),
    )
    op.create_table(
        "log",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("who", sa.String, nullable=False),
        sa.Column("did", sa.String, nullable=False),
        sa.Column("what", sa.String, nullable=False),
    )


def downgrade() -> None:
    """Drop them."""
    for name in ("log", "answers", "showings", "annotators", "items", "facts"):
        op.drop_table(name)
