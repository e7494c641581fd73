"""The connection to a study's database, and its migrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from textrl_env.utils.optional_imports import optional_import

with optional_import("feedback", "feedback from people needs the extra"):
    import sqlalchemy as sa
    from alembic import command
    from alembic.config import Config

LOCK = "SELECT pg_advisory_xact_lock(20261124)"  # any number: one for all studies of a database


def open_engine(url: str) -> sa.Engine:
    """Return a connection pool; SQLite writes ahead, synchronously, and overwrites what is deleted."""
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine, "connect")
        def _(connection: Any, record: Any) -> None:
            connection.isolation_level = None  # transactions begin below
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON", "busy_timeout=30000"):
                connection.execute(f"PRAGMA {pragma}")

        @sa.event.listens_for(engine, "begin")
        def _(connection: sa.Connection) -> None:
            options = connection.get_execution_options()
            if not options.get("no_transaction"):  # VACUUM refuses to run in one
                connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes") else "BEGIN")

    return engine


def migrate(engine: sa.Engine) -> None:
    """Bring the tables to the newest version."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    with engine.connect().execution_options(writes=True) as db, db.begin():
        if engine.dialect.name == "postgresql":
            db.execute(sa.text(LOCK))
        config.attributes["connection"] = db
        command.upgrade(config, "head")
