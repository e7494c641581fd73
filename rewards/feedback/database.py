"""The connection to a study's database: transactions, migrations, the access log, and annotators by pseudonym."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from textrl_env.utils.optional_imports import optional_import

from .assignments import count_anew
from .schema import annotators, log

with optional_import("feedback", "feedback from people needs the extra"):
    import sqlalchemy as sa
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext

LOCK = "SELECT pg_advisory_xact_lock(20261124)"  # any number: one for all studies of a database


def open_engine(url: str) -> sa.Engine:
    """Return a connection pool; SQLite writes ahead, synchronously, and overwrites what is deleted."""
    engine = sa.create_engine(url, execution_options={"turn": threading.Lock()})  # threads that write wait here: SQLite's queue is unfair
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
    with writing(engine) as db:
        config.attributes["connection"] = db
        before = MigrationContext.configure(db).get_current_revision()
        command.upgrade(config, "head")
        if MigrationContext.configure(db).get_current_revision() != before:
            count_anew(db)


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a transaction that holds the write lock from its beginning, and is committed if the block ends well."""
    with engine.get_execution_options()["turn"], engine.connect().execution_options(writes=True) as db, db.begin():
        if engine.dialect.name == "postgresql":
            db.execute(sa.text(LOCK))
        yield db


def compact(engine: sa.Engine) -> None:
    """Leave nothing of deleted rows in the files.

    Raises:
        RuntimeError: Another process reads the database.
    """
    if engine.dialect.name == "sqlite":
        with engine.connect().execution_options(no_transaction=True) as db:
            db.exec_driver_sql("VACUUM")
            busy = db.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]
        if busy:
            raise RuntimeError(
                f"{engine.url.database}: another process reads the database, so old bytes remain in it; stop it and do this again"
            )
    else:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
            db.exec_driver_sql("VACUUM FULL")


def add_to_log(db: sa.Connection, who: str, did: str, what: str) -> None:
    """Add a line to the access log."""
    db.execute(log.insert().values(at=time.time(), who=who, did=did, what=what))


def find_annotator(db: sa.Connection, pseudonym: str) -> int | None:
    """Return the number of an annotator; None if nobody has this pseudonym."""
    return db.scalar(sa.select(annotators.c.id).where(annotators.c.pseudonym == pseudonym))


def annotator_id(db: sa.Connection, pseudonym: str) -> int:
    """Return the number of an annotator.

    Raises:
        ValueError: Nobody has this pseudonym.
    """
    number = find_annotator(db, pseudonym)
    if number is None:
        raise ValueError(f"nobody has the pseudonym {pseudonym!r} in this study")
    return number


def add_annotator(db: sa.Connection, pseudonym: str) -> int:
    """Return the number of an annotator, who may be new."""
    if find_annotator(db, pseudonym) is None:
        db.execute(annotators.insert().values(pseudonym=pseudonym, created_at=time.time()))
    return annotator_id(db, pseudonym)
