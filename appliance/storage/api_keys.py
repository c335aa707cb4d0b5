"""The table of API keys: rows in, rows out. What a key is and may do stands in `appliance.identity`."""

from __future__ import annotations

import msgspec
from sqlalchemy import bindparam, func, insert, or_, select, update
from sqlalchemy.engine import Connection

from .tables import api_keys
from .text import is_storable, require_storable


class StoredApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key. Times in milliseconds since 1970, UTC. Of the secret only its SHA-256 is stored."""

    id: str
    name: str
    role: str
    secret_sha256: bytes
    created_at: int
    last_used_at: int | None = None
    revoked_at: int | None = None

    def __repr__(self) -> str:
        return f"StoredApiKey(id={self.id!r}, name={self.name!r}, role={self.role!r})"


_FIELDS = [api_keys.c[name] for name in StoredApiKey.__struct_fields__]
_FIND = select(*_FIELDS).where(api_keys.c.id == bindparam("key_id"))
_LIST = select(*_FIELDS).order_by(api_keys.c.created_at, api_keys.c.id)
_COUNT = select(func.count()).select_from(api_keys)
_INSERT = insert(api_keys)
_REVOKE = (
    update(api_keys)
    .where(api_keys.c.id == bindparam("key_id"), api_keys.c.revoked_at.is_(None))
    .values(revoked_at=bindparam("now"))
)
_TOUCH = (
    update(api_keys)
    .where(
        api_keys.c.id == bindparam("key_id"),
        or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < bindparam("now")),
    )
    .values(last_used_at=bindparam("now"))
)


def insert_key(connection: Connection, key: StoredApiKey) -> None:
    """Adds the row. UnstorableText for the name; StorageError when the id is taken."""
    require_storable(key.name, "key's name")
    connection.execute(_INSERT, msgspec.structs.asdict(key))


def find_key(connection: Connection, key_id: str) -> StoredApiKey | None:
    """The row of this id, revoked or not; None when there is none."""
    if not is_storable(key_id):
        return None
    row = connection.execute(_FIND, {"key_id": key_id}).mappings().first()
    return None if row is None else StoredApiKey(**row)


def list_keys(connection: Connection) -> list[StoredApiKey]:
    """Every row, the oldest first, revoked ones included."""
    return [StoredApiKey(**row) for row in connection.execute(_LIST).mappings()]


def count_keys(connection: Connection) -> int:
    """How many keys were ever made, revoked ones included."""
    return connection.execute(_COUNT).scalar_one()


def revoke_key(connection: Connection, key_id: str, now_ms: int) -> bool:
    """Marks the key as revoked at `now_ms`; False when there is none of this id, or it was revoked before."""
    if not is_storable(key_id):
        return False
    return connection.execute(_REVOKE, {"key_id": key_id, "now": now_ms}).rowcount > 0


def touch_key(connection: Connection, key_id: str, now_ms: int) -> None:
    """Notes that the key was used at `now_ms`; an older time never replaces a newer one."""
    connection.execute(_TOUCH, {"key_id": key_id, "now": now_ms})
