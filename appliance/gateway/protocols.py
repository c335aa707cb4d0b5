"""uvicorn's connections, bounded: what a client may send, how long it may take, what it may leave unread.

uvicorn bounds neither a head nor the time of anything, and a closed transport waits for ever for a peer that does not read.
Deadlines here are plain times that `check` compares once a second: a request costs no timer.
"""

from __future__ import annotations

import asyncio
import logging
import select
from enum import Enum
from http import HTTPStatus
from itertools import chain
from typing import Any, cast

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request

from appliance.telemetry.network_counters import Channel, Counter, NetworkCounters

from .joined import Counted, Joined
from .problems import Problem
from .websocket import ROUND_TRIP, STOPPING

log = logging.getLogger(__name__)

#: A request's line and headers, and what they may take from their first byte (on a new connection: from its beginning).
HEAD_LIMIT_BYTES = 32 * 1024
HEAD_S = 10.0

#: From the end of the head to the end of the body; its size is limited by the application. What belongs to neither head nor body
#: (lengths of chunks, trailers) is bounded here, too.
BODY_S = 30.0
FRAMING_LIMIT_BYTES = 1024 * 1024

#: How long a connection may wait for its next request.
KEEP_ALIVE_S = 30

#: Requests sent before the answer to the first.
PIPELINE_LIMIT = 16

#: After a refusal we read on for a moment: a connection that is closed over unread bytes is reset, and the answer may be lost.
LINGER_S = 2.0

#: A client that for so long reads nothing of what fills its buffers is cut off, and so is one that does not take the last bytes
#: of a connection that we have closed.
STALL_S = 30.0
CLOSE_S = 10.0

#: A connection that was accepted a moment before the server stops may still send its request.
LAST_REQUEST_S = 1.0

#: Of one WebSocket: messages that wait to be handled, fragments of one message, and pongs that the client leaves unread.
MESSAGES_LIMIT = 256
FRAGMENTS_LIMIT = 1024
UNREAD_LIMIT_BYTES = 1024 * 1024


def refusal(status: int, code: str, detail: str) -> bytes:
    """A whole response that ends its connection, from below the application."""
    title = HTTPStatus(status).phrase
    body = msgspec.json.encode(Problem(title=title, status=status, code=code, detail=detail))
    retry = "Retry-After: 1\r\n" if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
    head = (
        f"HTTP/1.1 {status} {title}\r\nContent-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\n{retry}Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


class _Watched(asyncio.Protocol):
    """A connection whose unread output is watched, and which is counted."""

    counters: NetworkCounters
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _stalled_at: float | None = None
    _closed_at: float | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled_at = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled_at = None

    def check(self, now: float) -> None:
        """Called once a second: ends what has had its time."""
        if self._stalled_at is not None and now - self._stalled_at > STALL_S:
            log.info("a client does not read: its connection is cut off")
            self.counters.row[Counter.TIMEOUTS] += 1
            self._stalled_at = None
            self.transport.abort()
        elif self.transport.is_closing():
            self._closed_at = self._closed_at or now
            if now - self._closed_at > CLOSE_S:
                self.transport.abort()
        elif not self.transport.is_reading() and _hung_up(self.transport):
            self.transport.abort()


def _hung_up(transport: asyncio.Transport) -> bool:
    """Whether the peer has ended the connection, which a transport that does not read (a second request waits for the answer to
    the first) does not notice."""
    peer = select.poll()
    peer.register(transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
    return bool(peer.poll(0))


class _Phase(Enum):
    """What a client sends next, or is in the middle of."""

    NOTHING = "nothing"
    HEAD = "head"
    BODY = "body"
    REFUSED = "refused"


class BoundedHttp(_Watched, HttpToolsProtocol):
    """An HTTP connection. `limit_concurrency` of uvicorn's configuration is the number of connections that is too many."""

    def __init__(self, *arguments: Any, counters: NetworkCounters, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.counters = counters
        self._phase = _Phase.NOTHING
        self._deadline: float | None = None
        self._head_bytes = 0
        self._framing_bytes = 0
        self._why: tuple[int, str, str] | None = None
        self._last = False
        self._running: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.counters.row[Counter.ACCEPTED] += 1
        self._deadline = self.loop.time() + HEAD_S
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            self._phase = _Phase.REFUSED
            self._write_refusal(503, "too_many", "too many connections; try again in a moment")
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """uvicorn tells the newest request only; the one that is being answered may be an earlier one."""
        super().connection_lost(exc)
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        cycle.transport = Joined(self.transport, self.loop, self.counters)
        super()._start_asgi_task(cycle, app)

    def check(self, now: float) -> None:
        super().check(now)
        if self._deadline is None or now < self._deadline or self.transport.is_closing():
            return
        self._deadline = None
        match self._phase:
            case _Phase.NOTHING:
                self.transport.close()
            case _Phase.HEAD:
                self._refuse(408, "timeout", f"the request's head was not complete within {HEAD_S:.0f} s")
            case _Phase.BODY:
                self._refuse(408, "timeout", f"the request's body was not complete within {BODY_S:.0f} s")
            case _Phase.REFUSED:
                self.transport.abort()

    def shutdown(self) -> None:
        if self._newest() is None and self._phase is not _Phase.REFUSED:
            self._last = True
            self._deadline = min(self._deadline or 0.0, self.loop.time() + LAST_REQUEST_S)
        else:
            super().shutdown()

    def _newest(self) -> RequestResponseCycle | None:
        """The newest request whose head was read; uvicorn's annotation hides that there may be none."""
        return self.cycle

    # --- what arrives ---------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self.counters.row[Counter.BYTES_IN] += len(data)
        if self._phase is _Phase.REFUSED:
            return
        # A read is 256 KiB at most, so counting whole ones is exact enough. The first read of a head that follows a body is not
        # counted: that it is small is seen when it is complete.
        if self._phase is _Phase.BODY:
            self._framing_bytes += len(data)
        else:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._phase is _Phase.HEAD and self._head_bytes > HEAD_LIMIT_BYTES:
            self._refuse(*_head_too_large())
        elif self._phase is _Phase.BODY and self._framing_bytes > FRAMING_LIMIT_BYTES:
            self._refuse(400, "bad_request", "the body's chunks or trailers are out of proportion")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase = _Phase.HEAD
        if self.cycle is not None:
            self._deadline = self.loop.time() + HEAD_S

    def on_headers_complete(self) -> None:
        size = len(self.url) + 4 * len(self.headers) + sum(map(len, chain.from_iterable(self.headers)))
        if size > HEAD_LIMIT_BYTES:
            self._stop_parsing(*_head_too_large())
        if len(self.pipeline) >= PIPELINE_LIMIT:
            self._stop_parsing(400, "bad_request", "too many requests before the answer to the first")
        super().on_headers_complete()
        self._phase = _Phase.BODY
        self._head_bytes = self._framing_bytes = 0
        self._deadline = self.loop.time() + BODY_S
        if self._last and self.cycle is not None:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._framing_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._phase = _Phase.NOTHING
        self._rest()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._phase is _Phase.NOTHING:
            self._rest()

    def _rest(self) -> None:
        """A request was read, or answered; when both, the next may take its time."""
        idle = self.cycle is not None and self.cycle.response_complete and not self.pipeline
        self._deadline = self.loop.time() + KEEP_ALIVE_S if idle else None

    def handle_websocket_upgrade(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # it would write into the middle of the answer that is under way
        else:
            super().handle_websocket_upgrade()

    # --- what is refused --------------------------------------------------------------------------------------------

    def _stop_parsing(self, status: int, code: str, detail: str) -> None:
        self._why = (status, code, detail)
        raise ValueError(detail)  # the parser stops, and uvicorn calls what follows

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when the parser gives up."""
        self._refuse(*(self._why or (400, "bad_request", msg)))

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Answers when HTTP can still carry an answer, and ends the connection in either case."""
        cycle = self._newest()
        if self._phase is _Phase.BODY:  # of the request that `cycle` answers
            possible = cycle is not None and not cycle.response_started and not self.pipeline
        else:
            possible = cycle is None or cycle.response_complete
        self._phase = _Phase.REFUSED
        if not possible:
            self.transport.abort()
            return
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self._deadline = self.loop.time() + LINGER_S
        self.flow.resume_reading()
        self._write_refusal(status, code, detail)
        self.transport.write_eof()

    def _write_refusal(self, status: int, code: str, detail: str) -> None:
        response = refusal(status, code, detail)
        self.counters.row[Counter.BYTES_OUT] += len(response)
        self.counters.failed(status)
        self.transport.write(response)


def _head_too_large() -> tuple[int, str, str]:
    return 431, "head_too_large", f"the request's line and headers exceed {HEAD_LIMIT_BYTES} bytes"


class BoundedWebSocket(_Watched, WebSocketsSansIOProtocol):
    """A WebSocket, whose application knows the round trip of its ping (the first goes out at once) and of the stop."""

    def __init__(self, *arguments: Any, counters: NetworkCounters, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.counters = counters
        self._stopping = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(Counted(cast("asyncio.Transport", transport), self.counters))

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if getattr(self, "scope", None) is not None:
            ours = {ROUND_TRIP: self._round_trip, STOPPING: self._stopping}
            extensions: dict[str, Any] = {**(self.scope.get("extensions") or {}), **ours}
            self.scope["extensions"] = extensions

    def data_received(self, data: bytes) -> None:
        self.counters.row[Counter.BYTES_IN] += len(data)
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            # uvicorn waits for a request that never comes.
            self.transport.write(
                refusal(400, "bad_request", f"no WebSocket handshake: {self.conn.handshake_exc}"[:300])
            )
            self.transport.close()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= FRAGMENTS_LIMIT:
            self._fail(1009, "too many fragments")
        elif not self.close_sent:
            super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        super().send_receive_event_to_app()
        if self.queue.qsize() > MESSAGES_LIMIT and not self.close_sent:
            self._fail(1008, "too many messages at once")

    def handle_pong(self, event: Frame) -> None:
        """The latency of a WebSocket is the round trip of our ping."""
        waited = self.pending_ping_payload
        super().handle_pong(event)
        if waited is not None and self.pending_ping_payload is None:
            self.counters.took(Channel.WEBSOCKET, self.last_ping_rtt)

    def handle_ping(self) -> None:
        """Pongs go out without waiting for the client to read: one that only writes is cut off."""
        if self.transport.is_closing():
            return
        super().handle_ping()
        if self.transport.get_write_buffer_size() > UNREAD_LIMIT_BYTES:
            self.transport.abort()

    def _fail(self, code: int, reason: str) -> None:
        self.conn.fail(code, reason)
        self.handle_parser_exception()

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


def check_all(connections: set[Any], now: float) -> tuple[int, int]:
    """Looks at every open connection; returns how many are HTTP, and how many WebSockets."""
    websockets = 0
    for connection in list(connections):
        cast("_Watched", connection).check(now)
        websockets += isinstance(connection, BoundedWebSocket)
    return len(connections) - websockets, websockets
