"""One gateway process: uvicorn on a socket that somebody else has bound."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FrameType
from typing import cast

import uvicorn
from litestar import Litestar

from appliance.chat.replies import Chat
from appliance.config.appliance import Appliance
from appliance.paths import Paths
from appliance.telemetry.network_counters import Board, NetworkCounters

from .app import create_app
from .constant import Constant
from .protocols import KEEP_ALIVE_S, BoundedHttp, BoundedWebSocket, check_all

log = logging.getLogger(__name__)

#: Room for the envelope around the longest message.
WEBSOCKET_OVERHEAD_BYTES = 4096

#: How often the server pings, and how long a client may take to answer before it counts as gone.
PING_INTERVAL_S = 20.0
PING_TIMEOUT_S = 20.0

#: What cancelled replies may take to end, their turns to be stored and their clients to hear of it; then connections are cut off.
CANCEL_S = 3.0

#: What the application may take after that, before its tasks are cancelled.
END_S = 2.0

#: What one connection may have waiting in the kernel, unsent: its default of some megabytes is also what a slow reader costs.
UNSENT_LIMIT_BYTES = 128 * 1024


class _Server(uvicorn.Server):
    """uvicorn that says when it serves, and does not raise the signal again after an orderly end: that is a status of 0."""

    def __init__(
        self,
        config: uvicorn.Config,
        ready: Callable[[], None],
        app: Litestar,
        drain_s: float,
        counters: NetworkCounters,
    ) -> None:
        super().__init__(config)
        self._ready, self._app, self._drain_s, self._counters = ready, app, drain_s, counters
        self._checking: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._checking = asyncio.create_task(self._check_connections(), name="deadlines of connections")
            self._ready()

    async def main_loop(self) -> None:
        """Renews the date of responses once a second, until a signal; uvicorn looks for one ten times a second."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._stop.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._stop.set()

    async def _check_connections(self) -> None:
        while True:
            await asyncio.sleep(1)
            http, websockets = check_all(self.server_state.connections, asyncio.get_running_loop().time())
            self._counters.tick((http, websockets, 0))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Replies may end for `drain_s`; then they are cancelled, so that every client hears an end; who does not is cut off."""
        chat: Chat = self._app.state.chat
        loop = asyncio.get_running_loop()
        steps = [
            loop.call_later(self._drain_s, chat.cancel_all),
            loop.call_later(self._drain_s + CANCEL_S, self._cut_off),
        ]
        try:
            await super().shutdown(sockets)
        finally:
            for step in steps:
                step.cancel()
            if self._checking is not None:
                self._checking.cancel()
                await asyncio.gather(self._checking, return_exceptions=True)

    def _cut_off(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


async def serve(
    paths: Paths,
    appliance: Appliance,
    listeners: Sequence[socket.socket],
    ready: Callable[[], None],
    reloaded: Callable[[], None],
    counters: NetworkCounters,
) -> None:
    """Serves until SIGTERM, calling `ready` when it does; then lets replies end, for at most `gateway.drain_s`.

    `reloaded` is called when the supervisor has read the owner's files again; `counters` is this process's place.
    """
    server = make_server(paths, appliance, listeners, ready, reloaded, counters)
    await server.serve(sockets=list(listeners))


def make_server(
    paths: Paths,
    appliance: Appliance,
    listeners: Sequence[socket.socket],
    ready: Callable[[], None],
    reloaded: Callable[[], None] = lambda: None,
    counters: NetworkCounters | None = None,
) -> uvicorn.Server:
    """The server of one gateway process, for `listeners`. Without `counters`, it counts for itself alone."""
    if counters is None:
        counters = NetworkCounters(Board(1), 0)
    app = create_app(paths, appliance, reloaded, counters)
    drain_s = appliance.gateway.drain_s
    for listener in listeners:
        if listener.family == socket.AF_UNIX:
            continue
        # What it accepts inherits this.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_LIMIT_BYTES)

    config = uvicorn.Config(
        Constant(app),
        http=cast("type[BoundedHttp]", partial(BoundedHttp, counters=counters)),
        ws=cast("type[BoundedWebSocket]", partial(BoundedWebSocket, counters=counters)),
        ws_per_message_deflate=False,  # 10 us a token, for messages of some thirty bytes
        ws_max_size=appliance.gateway.body_limit_bytes + WEBSOCKET_OVERHEAD_BYTES,
        ws_ping_interval=PING_INTERVAL_S,
        ws_ping_timeout=PING_TIMEOUT_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(drain_s + CANCEL_S + END_S),
        limit_concurrency=appliance.gateway.connections_limit + 1,
        proxy_headers=False,  # nobody says for whom he asks, and nothing here would use it
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
    )
    return _Server(config, ready, app, drain_s, counters)
