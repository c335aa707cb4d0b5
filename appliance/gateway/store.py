"""`appliance.chat.store` over the database, and what the API shows of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from appliance.chat.errors import BadMessage, NotStored, UnknownSession
from appliance.chat.store import SessionInfo, StoredTurn
from appliance.storage.async_store import AsyncStore
from appliance.storage.conversations import Conversations, Session, StoredMessage
from appliance.storage.errors import NoSuchSession, StorageError, UnstorableText

P = ParamSpec("P")
T = TypeVar("T")


class ConversationStore:
    """Conversations, from asyncio."""

    def __init__(self, store: AsyncStore, conversations: Conversations) -> None:
        self._store, self._conversations = store, conversations

    async def create(self, owner: str, persona_id: str) -> SessionInfo:
        return _info(await self._run(self._conversations.create, owner, persona_id))

    async def find(self, session_id: str) -> SessionInfo | None:
        session = await self._run(self._conversations.get, session_id)
        return None if session is None else _info(session)

    async def recent(self, session_id: str, limit: int) -> Sequence[StoredTurn]:
        messages = await self.history(session_id, limit)
        return [StoredTurn(message.role, message.content) for message in messages]

    async def history(self, session_id: str, limit: int, before: int | None = None) -> list[StoredMessage]:
        """The newest messages before a position, oldest first, with all that was kept of them."""
        return await self._run(self._conversations.history, session_id, limit=limit, before=before)

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
    ) -> None:
        await self._run(
            self._conversations.append_turn,
            session_id,
            user,
            reply,
            request_id=request_id,
            finish_reason=finish_reason,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a call of the storage, with its errors as the chat's own."""
        try:
            return await self._store.run(call, *args, **kwargs)
        except NoSuchSession as error:
            raise UnknownSession(str(error)) from error  # deleted while the reply was written
        except UnstorableText as error:
            raise BadMessage(str(error)) from error
        except StorageError as error:
            raise NotStored(str(error)) from error

    async def delete(self, session_id: str) -> bool:
        return await self._run(self._conversations.delete, session_id)


def _info(session: Session) -> SessionInfo:
    return SessionInfo(session.id, session.owner, session.persona_id)
