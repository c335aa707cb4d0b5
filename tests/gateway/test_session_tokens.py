"""Tokens of sessions at the gateway: honoured while the supervisor says so, forgotten when it says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from appliance.gateway.session_tokens import REMEMBERED, TTL_S, SessionTokens
from appliance.identity.session_tokens import new_token, token_digest
from appliance.wire.messages import EventsLost, SystemChanged, TokenHolder, UserRole
from tests.waiting import ask_until, look_until

if TYPE_CHECKING:
    from tests.gateway.conftest import Served

MODULE = pytest.mark.asyncio(loop_scope="module")

ENDED = SystemChanged(event="session_ended")


def digest_of(token: str) -> bytes:
    digest = token_digest(token)
    assert digest is not None
    return digest


# --- what is remembered -----------------------------------------------------------------------------------------------


class Supervisor:
    """Says who holds which token, when `gate` is open."""

    def __init__(self) -> None:
        self.holders: dict[bytes, TokenHolder] = {}
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def issue(self, name: str = "anna") -> str:
        token = new_token()
        self.holders[digest_of(token)] = TokenHolder(request_id="a", name=name, role="admin")
        return token

    async def holder_of(self, digest: bytes) -> TokenHolder | None:
        self.asked += 1
        answer = self.holders.get(digest)
        await self.gate.wait()
        return answer


async def test_the_supervisor_is_asked_once_in_a_while() -> None:
    supervisor, now = Supervisor(), [0.0]
    tokens = SessionTokens(supervisor.holder_of, lambda: now[0])
    token = supervisor.issue()
    for _ in range(3):
        holder = await tokens.holder_of(token)
        assert holder is not None
        assert holder.name == "anna"
    assert supervisor.asked == 1
    supervisor.holders.clear()
    now[0] += TTL_S
    assert await tokens.holder_of(token) is None
    assert supervisor.asked == 2
    assert await tokens.holder_of("crs_short") is None
    assert supervisor.asked == 2


async def test_what_was_asked_before_an_end_is_not_remembered_after_it() -> None:
    supervisor = Supervisor()
    tokens = SessionTokens(supervisor.holder_of, lambda: 0.0)
    token = supervisor.issue()
    supervisor.gate.clear()
    asking = asyncio.create_task(tokens.holder_of(token))
    await look_until("it is asked", lambda: supervisor.asked == 1)
    supervisor.holders.clear()
    tokens.forget()
    supervisor.gate.set()
    await asking
    assert await tokens.holder_of(token) is None


async def test_memory_is_bounded_and_strangers_do_not_enter() -> None:
    supervisor = Supervisor()
    tokens = SessionTokens(supervisor.holder_of, lambda: 0.0)
    for _ in range(REMEMBERED + 5):
        assert await tokens.holder_of(supervisor.issue()) is not None
        assert await tokens.holder_of(new_token()) is None
    assert len(tokens._holders) == REMEMBERED


async def test_over_returns_when_it_is_over() -> None:
    supervisor = Supervisor()
    tokens = SessionTokens(supervisor.holder_of, lambda: 0.0)
    token = supervisor.issue()
    waiting = asyncio.create_task(tokens.over(token))
    await look_until("it is asked", lambda: supervisor.asked == 1)
    tokens.forget()  # another one's session
    await look_until("it is asked again", lambda: supervisor.asked == 2)
    assert not waiting.done()
    supervisor.holders.clear()
    tokens.forget()
    async with asyncio.timeout(20):
        await waiting


# --- over HTTP and WebSocket --------------------------------------------------------------------------------------------


@asynccontextmanager
async def session(served: Served, role: UserRole, name: str = "anna") -> AsyncIterator[httpx.AsyncClient]:
    """A client with the token of a session, which ends with it."""
    await served.connected()
    token = new_token()
    served.fake.holders[digest_of(token)] = name, role
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=served.url, headers=headers, trust_env=False, timeout=20) as client:
        yield client
    served.fake.holders.pop(digest_of(token), None)
    served.fake.publish(ENDED)


def token_of(client: httpx.AsyncClient) -> str:
    return client.headers["Authorization"].partition(" ")[2]


def websocket(served: Served, token: str) -> connect:
    protocols = [Subprotocol("coral-reef"), Subprotocol(f"bearer.{token}")]
    return connect(served.url.replace("http", "ws", 1) + "/ws", subprotocols=protocols, proxy=None)


@MODULE
async def test_a_token_is_worth_its_role(served: Served) -> None:
    async with session(served, "admin") as admin, session(served, "guest", "gast") as guest:
        assert (await admin.get("/api/v1/system/tpus")).status_code == 200
        assert (await guest.get("/api/v1/system/tpus")).status_code == 403
        assert (await guest.get("/api/v1/personas")).status_code == 200


@MODULE
async def test_a_conversation_belongs_to_the_user_not_to_the_session(served: Served) -> None:
    async with session(served, "user", "bert") as first:
        reply = await first.post("/api/v1/chat", json={"persona_id": "coral", "message": "hi"})
        assert reply.status_code == 200, reply.text
        path = f"/api/v1/chat/history/{reply.json()['session_id']}"
    async with session(served, "user", "bert") as later, session(served, "user", "carl") as other:
        assert (await later.get(path)).status_code == 200
        assert (await other.get(path)).status_code == 404
    assert (await served.client.get(path)).status_code == 200  # an administrator's key


@MODULE
async def test_its_end_is_heard_at_once(served: Served) -> None:
    for ending in (ENDED, EventsLost(count=1)):
        async with session(served, "admin") as client:
            assert (await client.get("/api/v1/personas")).status_code == 200
            served.fake.holders.clear()
            assert (await client.get("/api/v1/personas")).status_code == 200  # for a few seconds at most
            served.fake.publish(ending)

            async def refused(asking: httpx.AsyncClient = client) -> httpx.Response | None:
                response = await asking.get("/api/v1/personas")
                return response if response.status_code == 401 else None

            response = await ask_until("it is refused", refused, within_s=TTL_S * 0.8)
            assert response.headers["WWW-Authenticate"] == "Bearer"


@MODULE
async def test_made_up_tokens_are_refused(served: Served) -> None:
    await served.connected()
    asked = len(served.fake.token_checks)
    for token in (
        new_token(),
        "crs_",
        "crs_" + "x" * 42,
        "crs_" + "x" * 5_000,
        new_token() + "=",
        "crs_" + "é" * 43,
    ):
        headers = {b"Authorization": b"Bearer " + token.encode()}
        assert (await served.client.get("/api/v1/personas", headers=headers)).status_code == 401
        if token.isascii() and "=" not in token:  # which no subprotocol can hold
            with pytest.raises(InvalidStatus) as refused:
                async with websocket(served, token):
                    pass
            assert refused.value.response.status_code in (401, 403)
    assert len(served.fake.token_checks) == asked + 2  # of the one that looks like one


@MODULE
async def test_a_websocket_ends_with_its_session(served: Served) -> None:
    async def closed(socket: ClientConnection) -> int | None:
        async with asyncio.timeout(20):
            await socket.wait_closed()
        return socket.close_code

    async def answers(socket: ClientConnection) -> bool:
        await socket.send('{"type": "ping", "payload": {}}')
        return "pong" in str(await asyncio.wait_for(socket.recv(), 20))

    async with (
        session(served, "admin") as client,
        session(served, "admin", "bert") as other,
        websocket(served, token_of(client)) as socket,
        websocket(served, token_of(other)) as kept,
    ):
        assert await answers(socket)
        served.fake.holders.pop(digest_of(token_of(client)))
        served.fake.publish(ENDED)
        assert await closed(socket) == 1008
        assert await answers(kept)


@MODULE
async def test_without_a_supervisor_nobody_knows(served: Served) -> None:
    async with session(served, "admin") as client:
        async with websocket(served, token_of(client)) as socket:
            assert (await client.get("/api/v1/personas")).status_code == 200
            await served.fake.stop_supervisor()
            try:

                async def unknown() -> httpx.Response | None:
                    response = await client.get("/api/v1/personas")
                    return response if response.status_code == 503 else None

                response = await ask_until("nobody knows", unknown)
                assert response.headers["Retry-After"] == "1"
                with pytest.raises(ConnectionClosed):
                    await asyncio.wait_for(socket.recv(), 20)
                assert (await served.client.get("/api/v1/personas")).status_code == 200  # API keys still are
            finally:
                await served.fake.start_supervisor()
        await served.connected()
        assert (await client.get("/api/v1/personas")).status_code == 200
