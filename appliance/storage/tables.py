"""The tables as this version of the software wants them. `migrations` leads there; a test compares the two.

Times are integers: milliseconds since 1970, UTC.
"""

from __future__ import annotations

import time

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

#: The newest migration. Here, so that comparing it needs no Alembic.
REVISION = "0001"

metadata = MetaData()

sessions = Table(
    "sessions",
    metadata,
    Column("id", Text, primary_key=True, nullable=False),
    Column("owner", Text, nullable=False),
    Column("persona_id", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("updated_at", Integer, nullable=False),
    Index("sessions_by_owner", "owner", "updated_at"),
)

messages = Table(
    "messages",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("session_id", Text, ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("role", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("finish_reason", Text),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("created_at", Integer, nullable=False),
    CheckConstraint("role IN ('user', 'assistant', 'tool', 'system')", name="messages_role"),
    # Its index is the one that reads a session's history in order.
    UniqueConstraint("session_id", "position", name="messages_in_order"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True, nullable=False),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("secret_sha256", LargeBinary, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("last_used_at", Integer),
    Column("revoked_at", Integer),
)


def utc_now_ms() -> int:
    """The clock of the tables: milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000
