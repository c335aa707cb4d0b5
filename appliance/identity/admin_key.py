"""The first administrator's key: made at the first start, and left in a file for the owner."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from appliance.files import write_atomically
from appliance.paths import Paths
from appliance.storage.api_keys import count_keys, insert_key
from appliance.storage.database import Database
from appliance.storage.tables import utc_now_ms

from .key_format import KEY_LIMIT_CHARACTERS, KeyText, new_key, parse_key
from .keys import stored_key
from .roles import Role

ADMIN_KEY_NAME = "first administrator"

_log = logging.getLogger(__name__)


def ensure_admin_key(paths: Paths, database: Database | None = None) -> bool:
    """Registers an admin key and leaves it in `paths.admin_key`; False when the database has a key already.

    A well-formed key that is in the file already is registered again: then the database was deleted, and the
    owner's programs go on working. One in a file that others could read is replaced. Revoked keys count: who
    revoked the last one is not given another.

    Several processes may call it at once. Without `database`, opens and upgrades it for the time of the call.
    StorageError; OSError when the file cannot be written, and nothing is registered then.
    """
    if database is not None:
        return _ensure(paths.admin_key, database)
    with Database.open(paths) as opened:
        opened.upgrade()
        return _ensure(paths.admin_key, opened)


def _ensure(file: Path, database: Database) -> bool:
    with database.reading() as connection:
        if count_keys(connection):  # as it is at every start but the first: no write, no lock
            return False
    # The writing transaction is the lock between processes. The file comes before the commit: a power cut
    # between the two leaves a key that the next start registers, never a registered key nobody has seen.
    with database.writing() as connection:
        if count_keys(connection):
            return False
        key = _read(file)
        if key is None:
            key = new_key()
            write_atomically(file, f"{key.text()}\n".encode("ascii"), mode=0o600)
        insert_key(connection, stored_key(key, ADMIN_KEY_NAME, Role.ADMIN, utc_now_ms()))
    return True


def _read(file: Path) -> KeyText | None:
    """The key in the file; None when there is none that can be trusted."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as opened:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        content = opened.read(KEY_LIMIT_CHARACTERS + 1)
    key = parse_key(content.decode("ascii", errors="replace").strip())
    if key is None:
        _log.warning("%s holds no well-formed API key: it is replaced by a new one", file)
    elif mode & 0o077:
        _log.warning("%s was open to other users (mode %04o): its key is replaced by a new one", file, mode)
        return None
    return key
