"""The connection to a study's database: transactions, migrations, the access log, and annotators by pseudonym."""

from __future__ import annotations

import contextlib
import itertools
import os
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

_FIND_ANNOTATOR = sa.select(annotators.c.id).where(annotators.c.pseudonym == sa.bindparam("pseudonym"))
LOCK = "SELECT pg_advisory_xact_lock(20261124)"  # any number: one for all studies of a database


class UnknownAnnotatorError(ValueError):
    """Nobody has this pseudonym: who had it was forgotten, or it never was."""


class _Disk:
    """Brings what was committed to the disk, with one call of the system for all threads that wait for it meanwhile."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.turn = threading.Lock()
        self.asked = itertools.count(1)
        self.last_asked = self.written = 0

    def wait(self) -> None:
        """Return when everything that was committed before the call is on the disk."""
        mine = self.last_asked = next(self.asked)
        with self.turn:
            if self.written >= mine:
                return
            now = self.last_asked
            with contextlib.suppress(FileNotFoundError), self.file.open("rb+") as file:  # not there: all of it is in the database file
                os.fsync(file.fileno())
            self.written = now


def open_engine(url: str) -> sa.Engine:
    """Return a connection pool; SQLite writes ahead, and overwrites what is deleted.

    SQLite itself would wait for the disk (`synchronous=FULL`) while it holds the write lock; `writing` waits after it, see there.
    """
    engine = sa.create_engine(url)
    engine.update_execution_options(turn=threading.Lock())
    if engine.dialect.name == "sqlite":
        engine.update_execution_options(disk=_Disk(Path(f"{engine.url.database}-wal")))

        @sa.event.listens_for(engine, "connect")
        def _(connection: Any, record: Any) -> None:
            connection.isolation_level = None  # transactions begin below
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "secure_delete=ON", "busy_timeout=30000"):
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
    """Open a transaction that holds the write lock from its beginning, and is committed, and on the disk, if the block ends well.

    Threads take turns at a lock of their own, since SQLite's waiters sleep for up to 0.1 s and are served in no order.  After the commit
    they wait for the disk together, while others write already.
    """
    options = engine.get_execution_options()
    with options["turn"], engine.connect().execution_options(writes=True) as db, db.begin():
        if engine.dialect.name == "postgresql":
            db.execute(sa.text(LOCK))
        yield db
    if "disk" in options:
        options["disk"].wait()


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
    db.execute(log.insert(), {"at": time.time(), "who": who, "did": did, "what": what})


def find_annotator(db: sa.Connection, pseudonym: str) -> int | None:
    """Return the number of an annotator; None if nobody has this pseudonym."""
    return db.scalar(_FIND_ANNOTATOR, {"pseudonym": pseudonym})


def annotator_id(db: sa.Connection, pseudonym: str) -> int:
    """Return the number of an annotator.

    Raises:
        UnknownAnnotatorError: Nobody has this pseudonym.
    """
    number = find_annotator(db, pseudonym)
    if number is None:
        raise UnknownAnnotatorError(f"nobody has the pseudonym {pseudonym!r} in this study")
    return number


def add_annotator(db: sa.Connection, pseudonym: str) -> int:
    """Return the number of an annotator, who may be new."""
    if find_annotator(db, pseudonym) is None:
        db.execute(annotators.insert().values(pseudonym=pseudonym, created_at=time.time()))
    return annotator_id(db, pseudonym)
