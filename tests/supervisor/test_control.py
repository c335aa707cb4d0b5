"""The control socket: real peers, a real lease table."""

from __future__ import annotations

import asyncio
import shutil
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from appliance.inference.errors import ModelUnknown
from appliance.scheduling.leases import LeaseTable
from appliance.supervisor.control import ControlSocket
from appliance.wire.errors import Disconnected
from appliance.wire.frames import Connection, connect, encode
from appliance.wire.messages import (
    Failure,
    FromSupervisor,
    Hello,
    LeaseGranted,
    LeaseRequest,
    LeaseSettled,
    Message,
    ModelLoad,
    ModelLoaded,
    ModelLoading,
    Status,
    StatusRequest,
)

STATUS = Status(
    version="0",
    mode="lan",
    pid=1,
    uptime_s=1.0,
    rss_bytes=1,
    ready=True,
    summary="fine",
    leases=0,
    waiting=0,
    requests=0,
    prompt_tokens=0,
    completion_tokens=0,
    warnings=[],
    workers=[],
    models=[],
)


async def load_model(request: ModelLoad, tell: Callable[[Message], None]) -> ModelLoaded:
    """Knows one model."""
    if request.model != "mine":
        raise ModelUnknown(f"no model is called {request.model!r}")
    tell(ModelLoading(request_id=request.request_id, model="mine", worker="w", size_bytes=1, deadline_s=60))
    return ModelLoaded(
        request_id=request.request_id, model="mine", worker="w", context_tokens=512, draining=0
    )


@dataclass
class Served:
    """A control socket, and who connects to it."""

    path: Path
    control: ControlSocket
    table: LeaseTable
    reasons: list[str]

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[Connection[Message]]:
        connection = await connect(str(self.path), FromSupervisor, name="gateway")
        try:
            yield connection
        finally:
            await connection.close()

    def worker(self, slots: int) -> None:
        self.control.granted(self.table.worker_ready("w", model="m", slots=slots))


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    table = LeaseTable(queue_limit=2)
    reasons: list[str] = []
    control = ControlSocket(
        folder / "control.sock",
        table,
        status=lambda: STATUS,
        socket_of=lambda worker: (f"/run/{worker}.sock", "m"),
        load_model=load_model,
        why_none_is_ready=lambda: "; ".join(reasons),
        queue_timeout_s=0.15,
    )
    await control.start()
    yield Served(folder / "control.sock", control, table, reasons)
    await control.close()
    shutil.rmtree(folder)


def want(request_id: str, session_id: str = "s") -> LeaseRequest:
    return LeaseRequest(request_id=request_id, session_id=session_id)


async def answer(peer: Connection[Message]) -> Message:
    async with asyncio.timeout(5):
        return await peer.receive()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  (the other side's state: there is no event of it)
            await asyncio.sleep(0.005)


async def test_status(served: Served) -> None:
    async with served.peer() as peer:
        await peer.send(StatusRequest())
        assert await answer(peer) == STATUS
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o660


async def test_a_lease_and_its_end(served: Served) -> None:
    served.worker(1)
    async with served.peer() as peer:
        await peer.send(want("r1"))
        assert await answer(peer) == LeaseGranted(
            request_id="r1", lease_id="lease-1", worker="w", socket="/run/w.sock", model="m"
        )
        await peer.send(want("r2", "s2"))
        await peer.send(LeaseSettled(request_id="r1", prompt_tokens=5, completion_tokens=7))
        granted = await answer(peer)
        assert isinstance(granted, LeaseGranted)
        assert granted.request_id == "r2"
        control = served.control
        assert (control.requests, control.prompt_tokens, control.completion_tokens) == (1, 5, 7)


async def test_a_place_when_a_worker_comes(served: Served) -> None:
    async with served.peer() as peer:
        await peer.send(want("r1"))
        await until(lambda: served.table.waiting == 1)
        served.worker(1)
        assert isinstance(await answer(peer), LeaseGranted)


async def test_waiting_has_an_end(served: Served) -> None:
    async with served.peer() as peer:
        await peer.send(want("r1"))
        assert await answer(peer) == Failure(
            code="unavailable",
            message="no worker was free within 0 s; try again in a moment",
            request_id="r1",
        )
        assert served.table.waiting == 0
        await peer.send(StatusRequest())
        assert await answer(peer) == STATUS


async def test_waiting_while_no_model_can_be_loaded(served: Served) -> None:
    served.reasons.append("the model mine: its file mine.gguf has 5 bytes")
    async with served.peer() as peer:
        await peer.send(want("r1"))
        assert await answer(peer) == Failure(
            code="unavailable",
            message="no model is loaded: the model mine: its file mine.gguf has 5 bytes",
            request_id="r1",
        )


async def test_loading_a_model(served: Served) -> None:
    async with served.peer() as peer:
        await peer.send(ModelLoad(request_id="r1", model="mine"))
        assert isinstance(await answer(peer), ModelLoading)
        loaded = await answer(peer)
        assert isinstance(loaded, ModelLoaded)
        assert (loaded.request_id, loaded.context_tokens) == ("r1", 512)
        await peer.send(ModelLoad(request_id="r2", model="other"))
        assert await answer(peer) == Failure(
            code="model_unknown", message="no model is called 'other'", request_id="r2"
        )
        await peer.send(StatusRequest())
        assert await answer(peer) == STATUS


async def test_a_lease_outlives_the_time_allowed_for_waiting(served: Served) -> None:
    served.worker(1)
    async with served.peer() as peer:
        await peer.send(want("r1"))
        assert isinstance(await answer(peer), LeaseGranted)
        await peer.send(want("r2"))  # the same session: waits, and is turned away
        failure = await answer(peer)
        assert isinstance(failure, Failure)
        assert failure.request_id == "r2"
        assert served.table.leases == 1


async def test_a_full_queue_and_a_second_use_of_an_id(served: Served) -> None:
    async with served.peer() as peer:
        for number in (1, 2, 3):
            await peer.send(want(f"r{number}", f"s{number}"))
        full = await answer(peer)
        await peer.send(want("r1"))
        twice = await answer(peer)
        assert [(each.code, each.request_id) for each in (full, twice) if isinstance(each, Failure)] == [
            ("queue_full", "r3"),
            ("duplicate_request", "r1"),
        ]


async def test_what_a_peer_held_is_free_when_it_goes(served: Served) -> None:
    served.worker(1)
    async with served.peer() as stays:
        async with served.peer() as goes:
            await goes.send(want("r1"))
            assert isinstance(await answer(goes), LeaseGranted)
            await stays.send(want("r1"))
            await until(lambda: served.table.waiting == 1)
        assert isinstance(await answer(stays), LeaseGranted)


async def test_draining(served: Served) -> None:
    served.worker(1)
    async with served.peer() as peer:
        await peer.send(want("r1"))
        assert isinstance(await answer(peer), LeaseGranted)
        await peer.send(want("r2", "s2"))
        await until(lambda: served.table.waiting == 1)
        served.control.drain()
        waiting = await answer(peer)
        await peer.send(want("r3", "s3"))
        late = await answer(peer)
        assert [(each.code, each.request_id) for each in (waiting, late) if isinstance(each, Failure)] == [
            ("stopping", "r2"),
            ("stopping", "r3"),
        ]
        idle = asyncio.create_task(served.control.idle(lambda: served.table.leases == 0))
        await peer.send(LeaseSettled(request_id="r1"))
        async with asyncio.timeout(5):
            await idle


def raw(path: Path, data: bytes) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(str(path))
    client.sendall(data)
    return client


def body(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


HELLO = encode(Hello(name="raw"))
MALFORMED = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "too long": b"\xff\xff\xff\xff",
    "no hello": encode(StatusRequest()),
    "empty": b"\x00\x00\x00\x00",
    "garbage": HELLO + body(b"\xc1\xc1\xc1"),
    "deep": HELLO + body(b"\x81\xa1x" + b"\x91" * 100_000),
    "unknown": HELLO + body(msgspec.msgpack.encode({"type": "Nothing"})),
    "not ours": HELLO + encode(Failure(code="a", message="b")),
    "hello again": HELLO * 2,
    "wrong type": HELLO + body(msgspec.msgpack.encode({"type": "LeaseRequest", "request_id": 5})),
    "empty id": HELLO + body(msgspec.msgpack.encode({"type": "LeaseRequest", "request_id": ""})),
}


async def messages_of(client: socket.socket) -> list[Message]:
    """All that is said until the end of the connection."""
    reader, writer = await asyncio.open_unix_connection(sock=client)
    connection: Connection[Message] = Connection(reader, writer, FromSupervisor)
    found: list[Message] = []
    try:
        while True:
            found.append(await answer(connection))
    except Disconnected:
        return found
    finally:
        await connection.close()


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
async def test_what_is_malformed_is_answered_and_others_are_served(served: Served, data: bytes) -> None:
    async with served.peer() as peer:
        found = await messages_of(raw(served.path, data))
        assert [type(each) for each in found] == [Hello, Failure]
        failure = found[-1]
        assert isinstance(failure, Failure)
        assert failure.code == "protocol"
        await peer.send(StatusRequest())
        assert await answer(peer) == STATUS


async def test_a_long_unknown_type(served: Served) -> None:
    data = HELLO + body(msgspec.msgpack.encode({"type": "A" * 5_000}))
    found = await messages_of(raw(served.path, data))
    assert [type(each) for each in found] == [Hello, Failure]


async def test_another_version(served: Served) -> None:
    client = raw(served.path, encode(Hello(version=2, name="newer")))
    found = await messages_of(client)
    assert [type(each) for each in found] == [Hello, Failure]
    assert "version 2" in str(found[-1])


async def test_half_a_frame_holds_nobody_up(served: Served) -> None:
    with raw(served.path, (HELLO + encode(want("r1")))[:-3]):
        async with served.peer() as peer:
            await peer.send(StatusRequest())
            assert await answer(peer) == STATUS
    assert served.table.waiting == 0


async def test_a_peer_that_does_not_read_is_cut_off(served: Served) -> None:
    client = raw(served.path, HELLO)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await until(lambda: len(served.control._peers) == 1)
    request = encode(StatusRequest()) * 2_000

    async def ask_without_end() -> None:
        while True:
            await loop.sock_sendall(client, request)

    with client, pytest.raises((BrokenPipeError, ConnectionResetError)):
        await asyncio.wait_for(ask_without_end(), 10)
    await until(lambda: not served.control._peers)


async def test_a_dead_ones_socket_is_replaced(served: Served) -> None:
    path = served.path.with_name("other.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    control = ControlSocket(
        path,
        LeaseTable(queue_limit=1),
        status=lambda: STATUS,
        socket_of=lambda _: ("", ""),
        load_model=load_model,
        why_none_is_ready=str,
        queue_timeout_s=1,
    )
    await control.start()
    connection = await connect(str(path), FromSupervisor, name="gateway")
    await connection.close()
    await control.close()
    assert not path.exists()
