"""Sessions and their messages."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from enum import StrEnum

import msgspec
from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.engine import Connection

from .database import Database
from .errors import NoSuchSession
from .tables import messages, sessions, utc_now_ms
from .text import is_storable, require_storable

#: 128 bits: ids cannot be guessed, nor collide.
SESSION_ID_BYTES = 16

#: The largest integer of SQLite; stands for "no limit".
_UNLIMITED = 2**63 - 1


class MessageRole(StrEnum):
    """Who speaks."""

    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    SYSTEM = "system"


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation of one owner with one persona. Times in milliseconds since 1970, UTC."""

    id: str
    owner: str
    persona_id: str
    title: str
    created_at: int
    updated_at: int


class StoredMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message; `position` counts from 0 without gaps. Only a reply has a finish reason and tokens."""

    session_id: str
    position: int
    role: MessageRole
    content: str
    request_id: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    created_at: int


# Built once: SQLAlchemy takes longer to put a statement together than SQLite to run it.
_SESSION_FIELDS = [sessions.c[name] for name in Session.__struct_fields__]
_MESSAGE_FIELDS = [messages.c[name] for name in StoredMessage.__struct_fields__]
_GET = select(*_SESSION_FIELDS).where(sessions.c.id == bindparam("session_id"))
_SESSIONS = (
    select(*_SESSION_FIELDS)
    .where(sessions.c.owner == bindparam("by_owner"))
    .order_by(sessions.c.updated_at.desc(), sessions.c.id)
    .limit(bindparam("count"))
)
_HISTORY = (
    select(*_MESSAGE_FIELDS)
    .where(messages.c.session_id == bindparam("of_session"), messages.c.position < bindparam("before"))
    .order_by(messages.c.position.desc())
    .limit(bindparam("count"))
)
_TOUCH = update(sessions).where(sessions.c.id == bindparam("session_id")).values(updated_at=bindparam("now"))
_NEXT_POSITION = select(func.coalesce(func.max(messages.c.position) + 1, 0)).where(
    messages.c.session_id == bindparam("of_session")
)
_APPEND = insert(messages)
_CREATE = insert(sessions)
_DELETE = delete(sessions).where(sessions.c.id == bindparam("session_id"))


class Conversations:
    """What was said. Any thread may call it; asyncio does so through `AsyncStore`.

    Every method may raise StorageError; what was said and acknowledged by returning survives a power cut.
    """

    def __init__(self, database: Database, *, now_ms: Callable[[], int] = utc_now_ms) -> None:
        self._database = database
        self._now_ms = now_ms

    def create(self, owner: str, persona_id: str) -> Session:
        """A new session without messages and without a title; until its first turn, a power cut may forget it. UnstorableText."""
        now = self._now_ms()
        session = Session(
            # With a beginning of its own: one of 64 would begin with `-`, and be an option where a command takes it.
            id=f"ses-{secrets.token_urlsafe(SESSION_ID_BYTES)}",
            owner=require_storable(owner, "owner"),
            persona_id=require_storable(persona_id, "persona's id"),
            title="",
            created_at=now,
            updated_at=now,
        )
        # To wait for the disk would be half of what a chat waits for it, and nothing was said yet.
        with self._database.writing(synced=False) as connection:
            connection.execute(_CREATE, msgspec.structs.asdict(session))
        return session

    def get(self, session_id: str) -> Session | None:
        """The session, or None when there is none of this id."""
        if not is_storable(session_id):
            return None
        with self._database.reading() as connection:
            row = connection.execute(_GET, {"session_id": session_id}).mappings().first()
        return None if row is None else Session(**row)

    def history(
        self, session_id: str, *, limit: int | None = None, before: int | None = None
    ) -> list[StoredMessage]:
        """The newest `limit` messages before the position `before`, oldest first; without them, all. Empty for an unknown
        session."""
        asked = {"of_session": session_id, "count": _count(limit), "before": _count(before)}
        if not is_storable(session_id):
            return []
        with self._database.reading() as connection:
            rows = connection.execute(_HISTORY, asked).mappings().all()
        return [msgspec.convert(row, StoredMessage) for row in reversed(rows)]

    def append_turn(
        self,
        session_id: str,
        user_content: str,
        reply_content: str,
        *,
        request_id: str,
        finish_reason: str,
        prompt_tokens: int,
        completion_tokens: int,
    ) -> None:
        """Adds what the user said and the reply, both or neither. NoSuchSession, UnstorableText."""
        require_storable(user_content, "message")
        require_storable(reply_content, "reply")
        require_storable(request_id, "request's id")
        require_storable(finish_reason, "finish reason")
        if not is_storable(session_id):
            raise NoSuchSession(session_id)
        now = self._now_ms()
        question = {
            "session_id": session_id,
            "role": MessageRole.USER,
            "content": user_content,
            "request_id": request_id,
            "finish_reason": None,
            "prompt_tokens": None,
            "completion_tokens": None,
            "created_at": now,
        }
        reply = question | {
            "role": MessageRole.ASSISTANT,
            "content": reply_content,
            "finish_reason": finish_reason,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
        }
        with self._database.writing() as connection:
            _touch(connection, session_id, now)
            position = connection.execute(_NEXT_POSITION, {"of_session": session_id}).scalar_one()
            connection.execute(
                _APPEND, [question | {"position": position}, reply | {"position": position + 1}]
            )

    def delete(self, session_id: str) -> bool:
        """Deletes the session and its messages; False when there was none of this id."""
        if not is_storable(session_id):
            return False
        with self._database.writing() as connection:
            return connection.execute(_DELETE, {"session_id": session_id}).rowcount > 0

    def sessions(self, owner: str, limit: int | None = None) -> list[Session]:
        """The owner's sessions, the one used last first, at most `limit`."""
        count = _count(limit)
        if not is_storable(owner):
            return []
        with self._database.reading() as connection:
            rows = connection.execute(_SESSIONS, {"by_owner": owner, "count": count}).mappings().all()
        return [Session(**row) for row in rows]


def _touch(connection: Connection, session_id: str, now: int) -> None:
    if connection.execute(_TOUCH, {"session_id": session_id, "now": now}).rowcount == 0:
        raise NoSuchSession(session_id)


def _count(limit: int | None) -> int:
    if limit is None:
        return _UNLIMITED
    if limit < 0:
        raise ValueError(f"limit is {limit}: at least 0")  # SQLite takes a negative one for no limit
    return min(limit, _UNLIMITED)
