"""What the chat needs of a store; `appliance.storage` gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec


class StoredTurn(msgspec.Struct, frozen=True):
    """A message as it was kept."""

    role: str
    content: str


class SessionInfo(msgspec.Struct, frozen=True):
    """A conversation: whose, and with whom."""

    id: str
    owner: str
    persona_id: str


class Store(Protocol):
    """Conversations that survive."""

    async def create(self, owner: str, persona_id: str) -> SessionInfo: ...

    async def find(self, session_id: str) -> SessionInfo | None: ...

    async def recent(self, session_id: str, limit: int) -> Sequence[StoredTurn]: ...

    async def commit(
        self,
        session_id: str,
        user: str,
        reply: str,
        *,
        request_id: str,
        finish_reason: str,
        prompt_tokens: int,
        completion_tokens: int,
    ) -> None: ...
