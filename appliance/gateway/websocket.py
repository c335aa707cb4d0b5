"""The WebSocket: `chat`, `cancel`, `ping` in; `system`, `token`, `persona_emotion`, `done`, `error`, `pong` out; several
replies at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from litestar import WebSocket, websocket
from litestar.di import NamedDependency
from litestar.exceptions import WebSocketDisconnect
from uvicorn.protocols.utils import ClientDisconnected

from appliance.chat.errors import BadMessage, ChatError, Forbidden, Unavailable
from appliance.chat.replies import Chat, Idle, Progress, Reply, Started, Text
from appliance.identity.roles import Role
from appliance.telemetry.network_counters import NetworkCounters

from .auth import SUBPROTOCOL, Caller
from .envelope import (
    CancelMessage,
    Channel,
    ChatMessage,
    ChatRequest,
    PingMessage,
    SubscribeMessage,
    UnsubscribeMessage,
    of_channels,
    of_error,
    of_event,
    of_system_event,
    read_client_message,
    write,
)
from .events import Events, Listener
from .generator import LeasedGenerator
from .rest import question
from .session_tokens import SessionTokens

CallerSocket = WebSocket[Caller, None, Any]

#: Replies under way on one connection.
REPLIES_LIMIT = 16

#: Where the server puts the last round trip of its own ping, in seconds: a function in the scope's extensions.
ROUND_TRIP = "coral-reef.round-trip"

#: Where the server puts the event that it is stopping.
STOPPING = "coral-reef.stopping"

#: "Service restart": the client may come back (RFC 6455's registry of close codes).
RESTARTING = 1012

#: "Policy violation" (RFC 6455, 7.4.1): who was let in by a session's token, when the session ends.
SESSION_OVER = 1008


class _Session:
    """One connection: its replies, and who may write to it."""

    def __init__(
        self,
        socket: CallerSocket,
        chat: Chat,
        events: Events,
        tokens: SessionTokens,
        counters: NetworkCounters,
    ) -> None:
        self._socket, self._chat, self._events = socket, chat, events
        self._tokens, self._counters = tokens, counters
        self._replies: dict[str, Reply] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._channels: dict[Channel, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Takes messages until the client goes; its replies are cancelled then."""
        closing = [asyncio.create_task(self._close_when_stopping(), name="stop of a WebSocket")]
        if self._socket.user.token:
            closing.append(asyncio.create_task(self._close_when_over(), name="end of a session's WebSocket"))
        try:
            while True:
                await self._take(await self._receive())
        except WebSocketDisconnect:
            pass  # a client ends its connection when it likes
        finally:
            for reply in self._replies.values():
                reply.cancel()
            ending = (*closing, *self._channels.values(), *self._tasks)
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)

    def _left(self, listener: Listener, _task: asyncio.Task[None]) -> None:
        self._events.forget(listener)

    async def _tell(self, listener: Listener) -> None:
        """What happens to the appliance."""
        with contextlib.suppress(WebSocketDisconnect):  # `run` hears of it too, and ends
            while True:
                await self._send(of_system_event(await listener.next()))

    async def _close_when_stopping(self) -> None:
        """When the server stops: no new replies, those under way may end, then the connection does."""
        stopping: asyncio.Event = self._extensions().get(STOPPING) or asyncio.Event()
        await stopping.wait()
        self._stopped = True
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._socket.close(code=RESTARTING, reason="the appliance is stopping")

    async def _close_when_over(self) -> None:
        """When the session ends whose token was shown: so does what it does here."""
        with contextlib.suppress(ChatError):  # the supervisor is away, and its sessions with it
            await self._tokens.over(self._socket.user.token)
        await self._socket.close(code=SESSION_OVER, reason="the session has ended")

    def _extensions(self) -> dict[str, Any]:
        return {**(self._socket.scope.get("extensions") or {})}

    async def _receive(self) -> str | bytes:
        event = await self._socket.receive()
        if event["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(detail="gone", code=event.get("code") or 1005)
        received: dict[str, Any] = {**event}
        text: str | None = received.get("text")
        data: bytes = received.get("bytes") or b""
        return data if text is None else text

    async def _take(self, data: str | bytes) -> None:
        """One message. What is wrong with it is answered, never a reason to close."""
        try:
            message = read_client_message(data)
        except ValueError as error:
            await self._refuse(BadMessage(f"not a message of this protocol: {error}"), None)
            return
        match message:
            case PingMessage():
                round_trip: Callable[[], float] = self._extensions().get(ROUND_TRIP, float)
                latency_ms = round(round_trip() * 1000, 3)
                await self._send(write("pong", {"latency_ms": latency_ms}))
            case CancelMessage(payload=payload):
                reply = self._replies.get(payload.request_id)
                if reply is None:
                    gone = BadMessage(f"no reply {payload.request_id!r} is being written on this connection")
                    await self._refuse(gone, payload.request_id)
                else:
                    reply.cancel()
            case ChatMessage(payload=payload):
                await self._chat_message(payload)
            case SubscribeMessage(payload=payload):
                await self._subscribe(payload.channels)
            case UnsubscribeMessage(payload=payload):
                for channel in payload.channels:
                    if task := self._channels.pop(channel, None):
                        task.cancel()
                await self._send(of_channels(self._channels))

    async def _subscribe(self, channels: list[Channel]) -> None:
        if self._socket.user.role is not Role.ADMIN:
            refused = Forbidden("the channel system is for administrators: use a key of that role")
            await self._refuse(refused, None)
            return
        for channel in channels:
            if channel not in self._channels:
                # Begun before it is acknowledged: what happens from then on is heard.
                listener = self._events.listen()
                task = asyncio.create_task(self._tell(listener), name=f"channel {channel} of a WebSocket")
                task.add_done_callback(partial(self._left, listener))
                self._channels[channel] = task
        await self._send(of_channels(self._channels))

    async def _chat_message(self, payload: ChatRequest) -> None:
        if len(self._tasks) >= REPLIES_LIMIT:
            busy = Unavailable(
                f"{REPLIES_LIMIT} replies are being written on this connection already", "too_many"
            )
            await self._refuse(busy, None)
            return
        if self._stopped:
            await self._refuse(Unavailable("the appliance is stopping", "stopping"), None)
            return
        caller = self._socket.user
        try:
            reply = await self._chat.reply(
                question(payload, self._chat.defaults, whole=not payload.stream),
                owner=caller.subject,
                may_read_all=caller.may_read_all,
            )
        except ChatError as error:
            await self._refuse(error, None)
            return
        self._replies[reply.request_id] = reply
        task = asyncio.create_task(
            self._pass_on(reply, stream=payload.stream), name=f"client of {reply.request_id}"
        )
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._forget(done, reply))

    def _forget(self, task: asyncio.Task[None], reply: Reply) -> None:
        self._tasks.discard(task)
        self._replies.pop(reply.request_id, None)

    async def _pass_on(self, reply: Reply, *, stream: bool) -> None:
        """Sends the events of one reply; with `stream` off, its text as one token."""
        held: list[str] = []
        events = reply.events()
        try:
            async for event in events:
                if isinstance(event, Idle):
                    continue  # the server's own pings keep this connection open
                if isinstance(event, Text) and not stream:
                    held.append(event.content)
                    continue
                if held and not isinstance(event, Started | Progress):
                    await self._send(of_event(Text("".join(held)), reply.request_id))
                    held.clear()
                await self._send(of_event(event, reply.request_id))
        except ChatError as error:
            await self._refuse(error, reply.request_id)
        except WebSocketDisconnect:
            pass  # `run` hears of it too, and ends
        finally:
            await events.aclose()

    async def _refuse(self, error: ChatError, request_id: str | None) -> None:
        self._counters.failed(error.status)
        await self._send(of_error(error, request_id))

    async def _send(self, message: bytes) -> None:
        try:
            await self._socket.send_data(message.decode(), mode="text")
        except ClientDisconnected as error:
            raise WebSocketDisconnect(detail="gone", code=1006) from error


@websocket("/ws")
async def chat_socket(
    socket: CallerSocket,
    chat_service: NamedDependency[Chat],
    generator: NamedDependency[LeasedGenerator],
    session_tokens: NamedDependency[SessionTokens],
    counters: NamedDependency[NetworkCounters],
) -> None:
    """The live connection of a client."""
    offered = [each.strip() for each in socket.headers.get("sec-websocket-protocol", "").split(",")]
    await socket.accept(subprotocols=SUBPROTOCOL if SUBPROTOCOL in offered else None)
    await _Session(socket, chat_service, generator.events, session_tokens, counters).run()
