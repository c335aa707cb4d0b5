"""Errors of the storage.

StorageError                what failed; `remedy` says what to do about it
├── KeyFileError            the file with the database's key is missing, malformed, or readable by others
├── DatabaseUnreadable      the key does not open the database: another key, or the first page is damaged
├── DatabaseDamaged         the file's content is broken, or the disk does not read or write it
├── DatabaseFull            no space left on the disk; nothing was written
├── DatabaseBusy            another process kept the database locked for longer than the time to wait
├── DatabaseNewer           newer software has written the database
├── DatabaseOlder           the tables of this software are not there yet: `Database.upgrade` was not called
├── NoSuchSession           there is no session of this id
└── UnstorableText          a string that has no UTF-8 form
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import ClassVar

import sqlalchemy.exc

# Primary result codes, https://www.sqlite.org/rescode.html
_PRIMARY_MASK = 0xFF
_BUSY, _LOCKED, _READONLY, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _NOTADB = 5, 6, 8, 10, 11, 13, 14, 26


class StorageError(Exception):
    """Anything that goes wrong with what must survive. `str()` is message and remedy, fit for a person."""

    #: What to do now, when nothing more precise is known.
    default_remedy: ClassVar[str] = "Restart the appliance; when that does not help, restore a backup."

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy or self.default_remedy

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}"


class KeyFileError(StorageError):
    """The file with the database's key cannot be used."""


class DatabaseUnreadable(StorageError):
    """The key does not open the database. A wrong key and a damaged first page look alike."""

    default_remedy = "Restore the key file and the database from the same backup."


class DatabaseDamaged(StorageError):
    """The file is broken, or the disk under it."""

    default_remedy = "Check the disk and the permissions of its files, then restore a backup of the database."


class DatabaseFull(StorageError):
    """The disk is full. The transaction was undone."""

    default_remedy = "Free some space on the disk: remove models or old backups."


class DatabaseBusy(StorageError):
    """Another process holds the lock. The transaction was undone and can be tried again."""

    default_remedy = "Try again; when it stays so, restart the appliance."


class DatabaseNewer(StorageError):
    """The software was set back behind its database."""

    default_remedy = "Install the newer software again, or restore a backup made before it."


class DatabaseOlder(StorageError):
    """Somebody works with a database whose tables were not brought up to date."""

    default_remedy = "Restart the appliance: it upgrades the database when it starts."


class NoSuchSession(StorageError):
    """The session never existed or was deleted."""

    default_remedy = "Start a new session."

    def __init__(self, session_id: str) -> None:
        super().__init__(f"There is no session {session_id!a}")
        self.session_id = session_id


class UnstorableText(StorageError):
    """A string with lone surrogates: it came from broken JSON escapes or from bytes that were no UTF-8."""

    default_remedy = "Send valid Unicode text."

    def __init__(self, what: str, position: int) -> None:
        super().__init__(f"The {what} holds a lone surrogate at position {position}")
        self.what = what
        self.position = position


def translate(error: sqlalchemy.exc.DBAPIError, path: Path) -> StorageError:
    """What a failure of the driver on the database at `path` means to us, without statement and values."""
    cause = error.orig
    code = getattr(cause, "sqlite_errorcode", 0) & _PRIMARY_MASK
    name = getattr(cause, "sqlite_errorname", type(cause).__name__)
    if code == _NOTADB:
        return DatabaseUnreadable(f"The key does not open the database {path}, or its first page is damaged")
    if code in {_CORRUPT, _IOERR, _CANTOPEN, _READONLY}:
        return DatabaseDamaged(f"The database {path} cannot be read or written ({name}: {cause})")
    if code == _FULL:
        return DatabaseFull(f"The disk is full: the database {path} cannot grow")
    if code in {_BUSY, _LOCKED}:
        return DatabaseBusy(f"The database {path} is locked by another process")
    if "no such table" in str(cause) or "no such column" in str(cause):
        return DatabaseOlder(f"The database {path} lacks what this software keeps in it ({cause})")
    return StorageError(f"The database {path} refused a statement ({name}: {cause})")


def translate_os(error: OSError, path: Path) -> StorageError:
    """What a refusal of the operating system means, when the database's files at `path` were to be opened."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DatabaseFull(f"The disk is full: {path} cannot be made")
    return DatabaseDamaged(f"{error.filename or path} cannot be opened: {error.strerror}")
