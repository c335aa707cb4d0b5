"""Brings the tables up to date: which revision is there, which is wanted, and the way from one to the other.

Alembic costs 0.2 s to import, a look at the current revision 0.3 ms: it is imported only when there is
something to do.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy.exc
from sqlalchemy.engine import Connection

from .errors import DatabaseDamaged, DatabaseNewer, translate, translate_os
from .tables import REVISION

if TYPE_CHECKING:
    from .database import Database

MIGRATIONS = Path(__file__).with_name("migrations")


def upgrade(database: Database) -> bool:
    """Migrates to `REVISION`; False when there was nothing to do. See `Database.upgrade` for the errors.

    One process migrates, the others wait for it, however long it takes. All or nothing: a migration that
    fails, or is killed, leaves the database as it was.
    """
    if _is_current(database):
        return False
    with _lock(database.path):
        if _is_current(database):
            return False
        with _migrating(database) as connection:
            _migrate(connection, database.path)
    return True


def _is_current(database: Database) -> bool:
    with database.reading() as connection:
        named = connection.exec_driver_sql(
            "SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'"
        ).first()
        # After a read: a connection from before another process switched to WAL learns of it only when it reads the file.
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
        if named is None or mode != "wal":
            return False
        return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all() == [
            REVISION
        ]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time, and freed by the kernel when it dies."""
    file = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise translate_os(error, file) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _migrating(database: Database) -> Iterator[Connection]:
    """A writing transaction, with foreign keys checked once at its end instead of at every statement.

    SQLite changes a column by copying its table and dropping the old one; with foreign keys on, that drop
    would delete, through ON DELETE CASCADE, every message of every session. Inside a transaction they cannot
    be switched off.
    """
    try:
        with database.engine.connect() as connection:
            driver = connection.connection.driver_connection
            if driver is None:
                raise RuntimeError("a connection without its driver")
            try:
                # WAL is a property of the file: set once, here, where no other process can be in the way.
                driver.execute("PRAGMA journal_mode = WAL")
                driver.execute("PRAGMA foreign_keys = OFF")
                with connection.begin():
                    yield connection
                    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
                    if broken:
                        raise DatabaseDamaged(
                            f"{len(broken)} rows of {database.path} refer to rows that are not there"
                        )
            finally:
                driver.execute("PRAGMA foreign_keys = ON")
    except sqlalchemy.exc.DBAPIError as error:
        raise translate(error, database.path) from error


def _migrate(connection: Connection, path: Path) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    unknown = set(MigrationContext.configure(connection).get_current_heads()) - known
    if unknown:
        raise DatabaseNewer(
            f"The database {path} has revision {', '.join(sorted(unknown))}, "
            f"this software knows none beyond {REVISION}"
        )
    command.upgrade(config, REVISION)
