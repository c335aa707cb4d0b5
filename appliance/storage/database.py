"""The database: one encrypted file, opened by several processes at once.

Reads see one state of the database throughout; writes come one after the other, whichever process they come
from, and are on the disk when they are acknowledged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
import sqlalchemy.exc
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import QueuePool
from sqlcipher3 import dbapi2 as sqlcipher

from appliance.paths import Paths

from .errors import DatabaseDamaged, DatabaseUnreadable, translate, translate_os
from .key_file import obtain_key

#: How long a statement waits for another process's lock. A write takes less than a millisecond and one fsync.
BUSY_TIMEOUT_S = 10.0

#: Connections kept open: readers and the one writer of this process. More are opened for as long as needed.
POOL_CONNECTIONS = 4

#: SQLCipher 4; no database is shorter.
PAGE_BYTES = 4096

#: In WAL mode, NORMAL loses the last commits in a power cut: an acknowledged turn must survive one.
_SYNCED = "FULL"

_PLAIN_HEADER = b"SQLite format 3\0"


class Database:
    """The appliance's database. Whoever opens it closes it; do not take it across a fork."""

    def __init__(self, path: Path, key: bytes) -> None:
        """Opens nothing yet: see `open`. `key` is 32 bytes; it is never shown, logged or part of an error."""
        self.path = path
        #: For what `reading` and `writing` do not cover, such as migrations.
        self.engine = _engine(path, key)

    @classmethod
    def open(cls, paths: Paths) -> Database:
        """Opens the database; makes the file and its key when neither exists. `upgrade` makes the tables.

        KeyFileError, DatabaseUnreadable, DatabaseDamaged, DatabaseFull, DatabaseBusy.
        """
        path = paths.database
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            key = obtain_key(paths.database_key, path)
            _touch(path)
        except OSError as error:
            raise translate_os(error, path) from error
        database = cls(path, key)
        try:
            with database.reading() as connection:
                connection.exec_driver_sql("SELECT count(*) FROM sqlite_master")
        except BaseException:
            database.close()
            raise
        return database

    def upgrade(self) -> bool:
        """Brings the tables up to date; False when they were already. Several processes may call it at once.

        DatabaseNewer when newer software has written the database; nothing is changed then.
        """
        from .upgrade import upgrade

        return upgrade(self)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database and waits for no writer."""
        with self._transaction("DEFERRED") as connection:
            yield connection

    @contextmanager
    def writing(self, *, synced: bool = True) -> Iterator[Connection]:
        """A transaction that may write. On the disk when the block has ended; undone when it raises.

        With `synced` off, a power cut may undo it until the next one that is synced; a process that dies does not.
        """
        # IMMEDIATE takes the lock before the first read. A transaction that reads first and then asks for the
        # lock gets SQLITE_BUSY at once, busy timeout or not, when another process has written in between.
        with self._transaction("IMMEDIATE", synchronous=_SYNCED if synced else "NORMAL") as connection:
            yield connection

    def close(self) -> None:
        """Closes every connection; the last one of all processes folds the write-ahead log into the file."""
        self.engine.dispose()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Database({str(self.path)!r})"

    @contextmanager
    def _transaction(self, kind: str, **options: str) -> Iterator[Connection]:
        try:
            with self.engine.connect() as connection:
                connection.execution_options(transaction_kind=kind, **options)
                with connection.begin():
                    yield connection
        except sqlalchemy.exc.DBAPIError as error:
            # Not chained: the driver's error names the statement, and ours is to be shown as it is.
            raise translate(error, self.path) from None


def _touch(path: Path) -> None:
    """Makes the file, and refuses one that SQLite would take for something else than a damaged database."""
    # SQLite would make it with the umask's mode; its -wal and -shm files take their mode from it.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "rb") as file:
        start = file.read(PAGE_BYTES)
    if start.startswith(_PLAIN_HEADER):
        raise DatabaseUnreadable(
            f"The database {path} is not encrypted", remedy=f"Move {path} away: it is not one of ours"
        )
    if 0 < len(start) < PAGE_BYTES:  # SQLite takes it for empty and overwrites it
        raise DatabaseDamaged(f"The database {path} is cut off after {len(start)} bytes")


def _engine(path: Path, key: bytes) -> Engine:
    pragma_key = f"PRAGMA key = \"x'{key.hex()}'\""

    def connect() -> Any:
        connection = sqlcipher.connect(
            path,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,  # transactions are ours: see `begin` below
            check_same_thread=False,  # the pool gives it to one thread at a time; `close` comes from any
        )
        # Straight on the driver: SQLAlchemy, which may log statements, never sees the key.
        connection.execute("PRAGMA cipher_log_level = NONE")  # else it writes to stderr; we raise
        connection.execute(pragma_key)
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA synchronous = {_SYNCED}")
        return connection

    engine = sqlalchemy.create_engine(
        "sqlite://",
        module=sqlcipher,
        creator=connect,
        poolclass=QueuePool,
        pool_size=POOL_CONNECTIONS,
        hide_parameters=True,  # what people say to the machine does not belong into errors and logs
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        is_set = connection.info.setdefault("synchronous", _SYNCED)
        wanted = options.get("synchronous", is_set)
        if wanted != is_set:  # cannot be changed in a transaction
            connection.exec_driver_sql(f"PRAGMA synchronous = {wanted}")
            connection.info["synchronous"] = wanted
        connection.exec_driver_sql(f"BEGIN {options.get('transaction_kind', 'IMMEDIATE')}")

    return engine
