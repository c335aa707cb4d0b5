"""API keys: made, verified, revoked."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable

import msgspec

from appliance.storage.api_keys import (
    StoredApiKey,
    find_key,
    insert_key,
    list_keys,
    revoke_key,
    touch_key,
)
from appliance.storage.database import Database
from appliance.storage.errors import StorageError
from appliance.storage.tables import utc_now_ms

from .errors import UnknownRole
from .key_cache import KeyCache
from .key_format import KeyText, new_key, parse_key
from .roles import Role

#: `last_used_at` is noted once in this time: a request must not cost a write.
LAST_USED_RESOLUTION_MS = 3_600_000

#: Compared with when the id is unknown, so that the answer does not come sooner. No secret has this digest.
_NO_DIGEST = bytes(32)

_log = logging.getLogger(__name__)


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as its administrator sees it, without the secret. Times in milliseconds since 1970, UTC.

    `last_used_at` is exact to `LAST_USED_RESOLUTION_MS`; None when the key was never used.
    """

    id: str
    name: str
    role: Role
    created_at: int
    last_used_at: int | None = None
    revoked_at: int | None = None


class ApiKeys:
    """The keys in the database. Any thread may call it; asyncio does so through `AsyncStore`."""

    def __init__(
        self,
        database: Database,
        *,
        now_ms: Callable[[], int] = utc_now_ms,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`now_ms` dates the rows, `clock` (seconds) ages the cache."""
        self._database = database
        self._now_ms = now_ms
        self._clock = clock
        self._cache = KeyCache(clock)

    def create(self, name: str, role: Role) -> tuple[ApiKey, str]:
        """A new key, and its text: the only time that anybody sees it. UnstorableText, StorageError."""
        text = new_key()
        stored = stored_key(text, name, role, self._now_ms())
        with self._database.writing() as connection:
            insert_key(connection, stored)
        return _api_key(stored), text.text()

    def verify(self, text: str) -> ApiKey | None:
        """The key that `text` is, or None when it is malformed, unknown, wrong or revoked.

        Reads the database when it has not in the last 5 s; a key that another process revokes is honoured for
        as long. StorageError, UnknownRole.
        """
        given = parse_key(text)
        if given is None:
            return None
        cached = self._cache.get(given.id)
        read_at = self._clock()
        stored = self._find(given.id) if cached is None else cached
        right = hmac.compare_digest(given.digest(), _NO_DIGEST if stored is None else stored.secret_sha256)
        if stored is None or not right or stored.revoked_at is not None:
            return None
        if cached is None:
            stored = self._note_use(stored)
            self._cache.put(stored, read_at)
        return _api_key(stored)

    def remembered(self, text: str) -> ApiKey | None:
        """As `verify`, from memory alone: it never waits for a disk or a thread. None says only that `verify` must be asked."""
        given = parse_key(text)
        stored = None if given is None else self._cache.get(given.id)
        if given is None or stored is None or not hmac.compare_digest(given.digest(), stored.secret_sha256):
            return None
        return _api_key(stored)

    def revoke(self, key_id: str) -> bool:
        """Ends a key for good; False when there is none of this id, or it was revoked. StorageError."""
        with self._database.writing() as connection:
            revoked = revoke_key(connection, key_id, self._now_ms())
        self._cache.forget(key_id)
        return revoked

    def list(self) -> list[ApiKey]:
        """Every key, the oldest first, revoked ones included. StorageError, UnknownRole."""
        with self._database.reading() as connection:
            rows = list_keys(connection)
        return [_api_key(row) for row in rows]

    def _find(self, key_id: str) -> StoredApiKey | None:
        with self._database.reading() as connection:
            return find_key(connection, key_id)

    def _note_use(self, stored: StoredApiKey) -> StoredApiKey:
        now = self._now_ms()
        if stored.last_used_at is not None and now - stored.last_used_at < LAST_USED_RESOLUTION_MS:
            return stored
        try:
            with self._database.writing() as connection:
                touch_key(connection, stored.id, now)
        except StorageError as error:
            # A full disk must not lock the owner out of the machine that tells him so.
            _log.warning("Could not note the use of the API key %s: %s", stored.id, error)
            return stored
        return msgspec.structs.replace(stored, last_used_at=now)


def stored_key(text: KeyText, name: str, role: Role, created_at: int) -> StoredApiKey:
    """The row for a key."""
    return StoredApiKey(
        id=text.id, name=name, role=role.value, secret_sha256=text.digest(), created_at=created_at
    )


def _api_key(stored: StoredApiKey) -> ApiKey:
    try:
        role = Role(stored.role)
    except ValueError:
        raise UnknownRole(stored.id, stored.role) from None
    return ApiKey(
        id=stored.id,
        name=stored.name,
        role=role,
        created_at=stored.created_at,
        last_used_at=stored.last_used_at,
        revoked_at=stored.revoked_at,
    )
