"""One gateway process: uvicorn on a socket that somebody else has bound."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn
from litestar import Litestar
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from appliance.chat.replies import Chat
from appliance.config.appliance import Appliance
from appliance.paths import Paths

from .app import create_app
from .websocket import ROUND_TRIP, STOPPING

log = logging.getLogger(__name__)

#: Room for the envelope around the longest message.
WEBSOCKET_OVERHEAD_BYTES = 4096

#: How often the server pings, and how long a client may take to answer before it counts as gone.
PING_INTERVAL_S = 20.0
PING_TIMEOUT_S = 20.0


#: What cancelled replies may take to end, their turns to be stored and their clients to hear of it.
CANCEL_S = 4


class MeasuredWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, whose application knows the round trip of its ping (the first goes out at once) and of the stop."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._stopping = asyncio.Event()

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if getattr(self, "scope", None) is not None:
            ours = {ROUND_TRIP: self._round_trip, STOPPING: self._stopping}
            extensions: dict[str, Any] = {**(self.scope.get("extensions") or {}), **ours}
            self.scope["extensions"] = extensions

    def shutdown(self) -> None:
        """Lets the application end its replies and close; uvicorn would cut them off."""
        if self.handshake_complete and not self.close_sent:
            self._stopping.set()
        else:
            super().shutdown()

    def _round_trip(self) -> float:
        return self.last_ping_rtt

    def start_keepalive(self) -> None:
        self.send_keepalive_ping()


class _Server(uvicorn.Server):
    """uvicorn that says when it serves, and does not raise the signal again after an orderly end: that is a status of 0."""

    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], None], app: Litestar, drain_s: float
    ) -> None:
        super().__init__(config)
        self._ready, self._app, self._drain_s = ready, app, drain_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Replies may end for `drain_s`; then they are cancelled, so that every client hears an end."""
        chat: Chat = self._app.state.chat
        patience = asyncio.get_running_loop().call_later(self._drain_s, chat.cancel_all)
        try:
            await super().shutdown(sockets)
        finally:
            patience.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


async def serve(
    paths: Paths, appliance: Appliance, listeners: Sequence[socket.socket], ready: Callable[[], None]
) -> None:
    """Serves until SIGTERM, calling `ready` when it does; then lets replies end, for at most `gateway.drain_s`."""
    app = create_app(paths, appliance)
    drain_s = appliance.gateway.drain_s
    config = uvicorn.Config(
        app,
        http="httptools",
        ws=MeasuredWebSocket,
        ws_per_message_deflate=False,  # 10 us a token, for messages of some thirty bytes
        ws_max_size=appliance.gateway.body_limit_bytes + WEBSOCKET_OVERHEAD_BYTES,
        ws_ping_interval=PING_INTERVAL_S,
        ws_ping_timeout=PING_TIMEOUT_S,
        timeout_graceful_shutdown=round(drain_s + CANCEL_S),
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
    )
    await _Server(config, ready, app, drain_s).serve(sockets=list(listeners))
