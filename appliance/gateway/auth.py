"""Who asks: a bearer API key or the token of a session, in the header or, from a browser's WebSocket, in the subprotocol."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from litestar.connection import ASGIConnection
from litestar.enums import ScopeType
from litestar.exceptions import NotAuthorizedException
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult

from appliance.identity.keys import ApiKeys
from appliance.identity.roles import Role
from appliance.identity.session_tokens import token_digest
from appliance.storage.async_store import AsyncStore

from .session_tokens import SessionTokens

#: The subprotocol that the server selects and echoes; the key travels beside it as `bearer.KEY` and is never echoed.
SUBPROTOCOL = "coral-reef"

#: Names, in small letters, and values, as ASGI has them.
Headers = Iterable[tuple[bytes, bytes]]

_CHALLENGE = {"WWW-Authenticate": "Bearer"}


class Caller(msgspec.Struct, frozen=True):
    """Who is behind a request. `subject` owns what it creates: the id of an API key, or `user:` and the name of a local user."""

    subject: str
    role: Role
    #: That of a session, which ends; empty when an API key was shown.
    token: str = ""

    def __repr__(self) -> str:
        return f"Caller({self.subject!r}, {self.role!r})"

    @property
    def may_read_all(self) -> bool:
        """Administrators see every conversation."""
        return self.role is Role.ADMIN

    @property
    def may_administer(self) -> bool:
        """Administrators see and set how the tower works."""
        return self.role is Role.ADMIN


class Authentication(AbstractAuthenticationMiddleware):
    """Refuses what carries no valid key with 401."""

    async def authenticate_request(
        self, connection: ASGIConnection[Any, Any, Any, Any]
    ) -> AuthenticationResult:
        key = bearer_key(
            connection.scope["headers"], websocket=connection.scope["type"] == ScopeType.WEBSOCKET
        )
        state = connection.app.state
        keys: ApiKeys = state.api_keys
        store: AsyncStore = state.store_thread
        caller: Caller | None = None
        if key is not None and token_digest(key) is not None:
            tokens: SessionTokens = state.session_tokens
            if holder := await tokens.holder_of(key):
                caller = Caller(f"user:{holder.name}", Role(holder.role), token=key)
        # The storage's thread may be busy with a commit for as long as a disk takes.
        elif key is not None and (found := keys.remembered(key) or await store.run(keys.verify, key)):
            caller = Caller(found.id, found.role)
        if caller is None:
            detail = (
                "send your API key: Authorization: Bearer KEY" if key is None else "this API key is not valid"
            )
            raise NotAuthorizedException(detail, headers=_CHALLENGE)
        return AuthenticationResult(user=caller, auth=None)


def bearer_key(headers: Headers, *, websocket: bool = False) -> str | None:
    """The key that a request carries, if it carries one."""
    scheme, _, key = first_header(headers, b"authorization").partition(" ")
    if scheme.lower() == "bearer" and key:
        return key.strip()
    if websocket:
        for offered in first_header(headers, b"sec-websocket-protocol").split(","):
            name, _, key = offered.strip().partition(".")
            if name == "bearer" and key:
                return key
    return None


def first_header(headers: Headers, name: bytes) -> str:
    """The first one of this name, in small letters; empty when there is none."""
    for each, value in headers:
        if each == name:
            return value.decode("latin-1")
    return ""
