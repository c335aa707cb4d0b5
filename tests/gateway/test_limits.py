"""What a client can make the gateway keep or wait for: all of it has an end, and others are served meanwhile. By raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.gateway import protocols
from tests.waiting import look_until

if TYPE_CHECKING:
    from tests.gateway.conftest import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1024 * 1024

#: What the whole test process may grow while one client misbehaves; what that client sends is a multiple of it.
GROWTH_LIMIT_BYTES = 48 * MIB

PIECE = b"a" * 65_536


class Raw:
    """A connection that sends what it likes. It reads all the while, unless it is one that does not."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, reads: bool) -> None:
        self._reader, self.writer = reader, writer
        self.got = bytearray()
        self._more = asyncio.Event()
        self._reading = asyncio.create_task(self._read()) if reads else None

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await self._reader.read(65_536):
                self.got += piece
                self._more.set()

    async def send(self, data: bytes) -> bool:
        """False when the server does not want any more."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            return False
        return True

    @property
    def ended(self) -> bool:
        assert self._reading is not None
        return self._reading.done()

    async def to_the_end(self) -> bytes:
        """All that came until the server ended the connection."""
        assert self._reading is not None
        async with asyncio.timeout(20):
            await self._reading
        return bytes(self.got)

    async def until(self, end: bytes) -> bytes:
        """All that came, once this has."""
        async with asyncio.timeout(20):
            while end not in self.got:
                self._more.clear()
                await self._more.wait()
        return bytes(self.got)

    async def close(self) -> None:
        self.writer.transport.abort()
        if self._reading is not None:
            await self._reading


@contextlib.asynccontextmanager
async def connected(served: Served, *, reads: bool = True) -> AsyncIterator[Raw]:
    host, _, port = served.url.removeprefix("http://").partition(":")
    ours = socket.socket()
    if not reads:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    ours.setblocking(False)
    await asyncio.get_running_loop().sock_connect(ours, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=ours, limit=4096)
    raw = Raw(reader, writer, reads=reads)
    try:
        yield raw
    finally:
        await raw.close()


def problem_of(answer: bytes, status: int) -> dict[str, Any]:
    """The problem in an HTTP answer, which must have this status."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert b"application/problem+json" in head
    found: dict[str, Any] = msgspec.json.decode(body)
    assert found["status"] == status
    assert found["code"]
    assert found["detail"]
    return found


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    process = psutil.Process()
    before = process.memory_info().rss
    yield
    grown = process.memory_info().rss - before
    assert grown < GROWTH_LIMIT_BYTES, f"grown by {grown / MIB:.0f} MiB"


async def healthy(served: Served) -> None:
    async with asyncio.timeout(20):
        assert (await served.client.get("/health")).status_code == 200


def head(served: Served, path: str = "/api/v1/chat/stream", *, length: int, more: bytes = b"") -> bytes:
    return (
        (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n"
        ).encode()
        + more
        + b"\r\n"
    )


def chat(served: Served, message: str) -> bytes:
    body = msgspec.json.encode({"persona_id": "coral", "message": message})
    return head(served, length=len(body)) + body


# --- heads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"GET / HTTP/1.1\r\nX: ", PIECE),
        (b"GET /", PIECE),
        (b"GET / HTTP/1.1\r\n", PIECE + b": b\r\n"),
        (b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 10_000),
    ],
    ids=["one header", "the address", "names", "many headers"],
)
async def test_160_mb_of_head(served: Served, start: bytes, piece: bytes) -> None:
    with bounded_memory():
        async with connected(served) as raw:
            await raw.send(start)
            sent = 0
            while sent < 160 * MIB and await raw.send(piece):
                sent += len(piece)
                if sent % (16 * MIB) < len(piece):
                    await healthy(served)
            problem_of(await raw.to_the_end(), 431)
    await healthy(served)


@pytest.mark.parametrize("size", [31_000, 34_000])
async def test_a_head_in_one_piece(served: Served, size: int) -> None:
    async with connected(served) as raw:
        await raw.send(b"GET /health HTTP/1.1\r\nConnection: close\r\nX: " + b"a" * size + b"\r\n\r\n")
        answer = await raw.to_the_end()
    if size < protocols.HEAD_LIMIT_BYTES:
        assert answer.startswith(b"HTTP/1.1 200 ")
    else:
        assert "32768" in problem_of(answer, 431)["detail"]


@pytest.mark.parametrize("beginning", [b"G", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\nHost"])
async def test_half_a_head(served: Served, monkeypatch: pytest.MonkeyPatch, beginning: bytes) -> None:
    monkeypatch.setattr(protocols, "HEAD_S", 0.5)
    async with connected(served) as raw:
        await raw.send(beginning)
        await healthy(served)
        problem_of(await raw.to_the_end(), 408)


async def test_a_connection_that_says_nothing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "HEAD_S", 0.5)
    async with connected(served) as raw:
        assert await raw.to_the_end() == b""


async def slowly(raw: Raw, data: bytes) -> None:
    """A byte at a time, and never too late for a server that looks at pauses only."""
    for byte in data:
        if not await raw.send(bytes([byte])):
            return
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("part", ["head", "body"])
async def test_a_byte_at_a_time(served: Served, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setattr(protocols, "HEAD_S", 1.0 if part == "head" else 10.0)
    monkeypatch.setattr(protocols, "BODY_S", 1.0)
    async with connected(served) as raw:
        if part == "body":
            await raw.send(head(served, length=1000))
        dripping = asyncio.create_task(slowly(raw, b"GET /" + b"a" * 1000))
        answer = await raw.to_the_end()
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
    assert part in problem_of(answer, 408)["detail"]
    await healthy(served)


@pytest.mark.parametrize("noise", [b"", b"\r\n"], ids=["silent", "noisy"])
async def test_an_idle_connection_is_closed(
    served: Served, monkeypatch: pytest.MonkeyPatch, noise: bytes
) -> None:
    monkeypatch.setattr(protocols, "KEEP_ALIVE_S", 1)
    async with connected(served) as raw:
        await raw.send(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
        reading = asyncio.create_task(raw.to_the_end())
        while noise and not reading.done():
            await raw.send(noise)
            await asyncio.sleep(0.1)
        answer = await reading
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1


# --- bodies, pipelines, connections -------------------------------------------------------------------------------------


async def test_an_endless_body(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused at once; what still comes is dropped, and for a limited time."""
    monkeypatch.setattr(protocols, "BODY_S", 1.5)
    with bounded_memory():
        async with connected(served) as raw:
            await raw.send(head(served, length=10**12))
            pieces = 0
            async with asyncio.timeout(30):
                while await raw.send(PIECE):
                    pieces += 1
            problem_of(await raw.to_the_end(), 413)
    await healthy(served)


async def test_endless_trailers(served: Served) -> None:
    with bounded_memory():
        async with connected(served) as raw:
            chunked = b"POST /api/v1/chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "
            await raw.send(chunked)
            sent = 0
            while sent < 160 * MIB and await raw.send(PIECE):
                sent += len(PIECE)
            await raw.to_the_end()
    assert sent < 160 * MIB
    await healthy(served)


async def test_too_many_requests_before_the_answer_to_the_first(served: Served) -> None:
    gate = asyncio.Event()
    served.fake.scripts["pipeline"] = served.script(gate=gate)
    async with connected(served) as raw:
        await raw.send(chat(served, "pipeline"))
        async with asyncio.timeout(20), served.fake.changed:
            await served.fake.changed.wait_for(lambda: served.fake.asked("pipeline"))
        (generate,) = served.fake.asked("pipeline")
        await raw.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        assert (await raw.to_the_end()).count(b"HTTP/1.1") <= 1
    await served.fake.until("cancels", generate.request_id)


@pytest.mark.parametrize("way", ["reset", "closed", "half-closed"])
async def test_a_client_that_leaves_with_a_second_request_waiting(served: Served, way: str) -> None:
    """Nothing is read behind a request that waits for the answer to another: that it ends there is seen all the same."""
    message = f"pipelined and {way}"
    served.fake.scripts[message] = served.script(gate=asyncio.Event())
    async with connected(served) as raw:
        await raw.send(chat(served, message))
        await raw.until(b"Hello")
        (generate,) = served.fake.asked(message)
        await raw.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        if way == "half-closed":
            raw.writer.write_eof()
        elif way == "closed":
            raw.writer.close()
        else:
            linger = struct.pack("ii", 1, 0)
            raw.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            raw.writer.transport.abort()
        await served.fake.until("cancels", generate.request_id)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cuts=st.lists(st.integers(1, 400), max_size=6), requests=st.integers(1, 5))
async def test_requests_in_any_pieces(served: Served, cuts: list[int], requests: int) -> None:
    one = b"POST /api/v1/chat HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde"
    data = one * (requests - 1) + one.replace(b"Host", b"Connection: close\r\nHost")
    async with connected(served) as raw:
        for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
            await raw.send(data[start:end])
            await asyncio.sleep(0)
        answer = await raw.to_the_end()
    assert answer.count(b"HTTP/1.1 401 ") == requests


async def test_too_many_connections(served: Served) -> None:
    async with contextlib.AsyncExitStack() as stack:
        raws = [await stack.enter_async_context(connected(served)) for _ in range(60)]
        refused = 0
        for raw in raws[55:]:
            problem = problem_of(await raw.to_the_end(), 503)
            refused += problem["code"] == "too_many"
        assert refused == 5
        await healthy(served)  # its connection was there before
    async with asyncio.timeout(20):
        while True:
            async with connected(served) as raw:
                await raw.send(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if (await raw.to_the_end()).startswith(b"HTTP/1.1 200"):
                    break


# --- clients that do not read ----------------------------------------------------------------------------------------------


async def test_a_stream_that_nobody_reads(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply is written and stored, others are served, and the connection ends after a while."""
    monkeypatch.setattr(protocols, "STALL_S", 2.0)
    gate = asyncio.Event()
    served.fake.scripts["unread"] = served.script(pieces=["x" * 60_000] * 60, gate=gate)
    async with connected(served, reads=False) as raw:
        await raw.send(chat(served, "unread"))
        async with asyncio.timeout(20), served.fake.changed:
            await served.fake.changed.wait_for(lambda: served.fake.asked("unread"))
        (generate,) = served.fake.asked("unread")
        gate.set()
        await served.fake.until("settled", generate.request_id)
        assert served.fake.settled[generate.request_id].completion_tokens == 60
        response = await served.client.post("/api/v1/chat", json={"persona_id": "coral", "message": "m"})
        assert response.status_code == 200
        assert largest_buffer(served) < MIB
        await look_until("the connection is cut off", lambda: not any(buffers(served)))
    await healthy(served)


def buffers(served: Served) -> list[int]:
    """What the server holds for each of its connections, unsent."""
    return [
        connection.transport.get_write_buffer_size()
        for connection in list(served.server.server_state.connections)
    ]


def server_speaks_websocket(served: Served) -> bool:
    return any(
        isinstance(connection, protocols.BoundedWebSocket) and connection.handshake_complete
        for connection in list(served.server.server_state.connections)
    )


def largest_buffer(served: Served) -> int:
    return max(buffers(served))


# --- WebSockets -------------------------------------------------------------------------------------------------------------


def frame(opcode: int, data: bytes = b"", *, final: bool = True) -> bytes:
    """A client's frame, masked with zeros. RFC 6455, 5.2."""
    length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
    return bytes([(0x80 if final else 0) | opcode]) + length + bytes(4) + data


TEXT, CONTINUATION, CLOSE, PING = 1, 0, 8, 9


def handshake(served: Served, more: bytes = b"", method: str = "GET") -> bytes:
    return (
        f"{method} /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"Authorization: Bearer {served.key}\r\n".encode()
        + more
        + b"\r\n"
    )


async def upgrade(raw: Raw, served: Served) -> None:
    await raw.send(handshake(served))
    assert (await raw.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize(
    ("method", "more"),
    [("POST", b""), ("GET", b"X: y\r\n" * 200), ("GET", b"X: " + b"y" * 10_000 + b"\r\n")],
    ids=["method", "many headers", "long header"],
)
async def test_handshakes_that_are_none(served: Served, method: str, more: bytes) -> None:
    """uvicorn alone would keep such a connection for ever, without an answer."""
    async with connected(served) as raw:
        await raw.send(handshake(served, more, method))
        assert (await raw.to_the_end()).startswith(b"HTTP/1.1 4")


async def test_an_upgrade_in_the_middle_of_an_answer(served: Served) -> None:
    served.fake.scripts["upgraded"] = served.script(gate=asyncio.Event())
    async with connected(served) as raw:
        await raw.send(chat(served, "upgraded"))
        async with asyncio.timeout(20), served.fake.changed:
            await served.fake.changed.wait_for(lambda: served.fake.asked("upgraded"))
        (generate,) = served.fake.asked("upgraded")
        await raw.send(handshake(served))
        await raw.to_the_end()
    await served.fake.until("cancels", generate.request_id)


def close_code(data: bytes) -> int:
    """Of the last frame, which must be a close. A server's frames are not masked."""
    start = data.rindex(b"\x88")
    return int(struct.unpack(">H", data[start + 2 : start + 4])[0])


async def test_fragments_without_end(served: Served) -> None:
    with bounded_memory():
        async with connected(served) as raw:
            await upgrade(raw, served)
            await raw.send(frame(TEXT, b"a", final=False))
            while await raw.send(frame(CONTINUATION, final=False) * 10_000):
                if raw.ended:
                    break
            await raw.to_the_end()
    await healthy(served)


async def test_a_flood_of_messages(served: Served) -> None:
    """Those of one read are queued, up to a limit; a client that asks in turn never gets there."""
    async with connected(served) as raw:
        await upgrade(raw, served)
        await raw.send(frame(TEXT, b"{}") * 20_000)
        assert close_code(await raw.to_the_end()) == 1008
    await healthy(served)


async def test_pings_by_a_client_that_does_not_read(served: Served) -> None:
    pings = frame(PING, b"x" * 125) * 500
    with bounded_memory():
        async with connected(served, reads=False) as raw:
            await raw.send(handshake(served))
            await look_until("it is a WebSocket", lambda: server_speaks_websocket(served))
            sent = 0
            async with asyncio.timeout(30):
                while sent < 160 * MIB and await raw.send(pings):
                    sent += len(pings)
    assert sent < 160 * MIB
    await healthy(served)


async def test_a_websocket_that_nobody_reads(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "STALL_S", 2.0)
    gate = asyncio.Event()
    served.fake.scripts["unread there"] = served.script(pieces=["x" * 60_000] * 60, gate=gate)
    message = msgspec.json.encode(
        {"type": "chat", "payload": {"persona_id": "coral", "message": "unread there"}}
    )
    async with connected(served, reads=False) as raw:
        await raw.send(handshake(served))
        await look_until("it is a WebSocket", lambda: server_speaks_websocket(served))
        await raw.send(frame(TEXT, message) * 3)
        async with asyncio.timeout(20), served.fake.changed:
            await served.fake.changed.wait_for(lambda: len(served.fake.asked("unread there")) == 3)
        gate.set()
        for generate in served.fake.asked("unread there"):
            await served.fake.until("settled", generate.request_id)
        response = await served.client.post("/api/v1/chat", json={"persona_id": "coral", "message": "m"})
        assert response.status_code == 200
        assert largest_buffer(served) < MIB
        await look_until("the connection is cut off", lambda: not any(buffers(served)))
    await healthy(served)


async def test_a_client_that_answers_no_ping(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as gone, and its replies are cancelled."""
    config = served.server.config
    monkeypatch.setattr(config, "ws_ping_timeout", 1.0)
    served.fake.scripts["pong"] = served.script(gate=asyncio.Event())
    message = msgspec.json.encode({"type": "chat", "payload": {"persona_id": "coral", "message": "pong"}})
    async with connected(served) as raw:
        await upgrade(raw, served)
        await raw.send(frame(TEXT, message))
        async with asyncio.timeout(20), served.fake.changed:
            await served.fake.changed.wait_for(lambda: served.fake.asked("pong"))
        (generate,) = served.fake.asked("pong")
        assert close_code(await raw.to_the_end()) == 1011
    await served.fake.until("cancels", generate.request_id)
