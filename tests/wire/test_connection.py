"""Both ends of a connection, over real sockets."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from appliance.wire import frames
from appliance.wire.errors import Disconnected, FrameError, PeerRefused, VersionError
from appliance.wire.frames import Connection, connect, encode
from appliance.wire.messages import (
    PROTOCOL_VERSION,
    Failure,
    FromSupervisor,
    Hello,
    Message,
    StatusRequest,
    ToSupervisor,
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: the address of a UNIX socket has 107 bytes."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    yield path
    shutil.rmtree(path)


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Connection[Message], Connection[Message]]]:
    """The two ends of a socketpair."""
    ends = []
    for end in socket.socketpair():
        reader, writer = await asyncio.open_unix_connection(sock=end)
        ends.append(Connection[Message](reader, writer, ToSupervisor | FromSupervisor))
    try:
        yield ends[0], ends[1]
    finally:
        for connection in ends:
            await connection.close()


@asynccontextmanager
async def listening(
    path: Path, peer: Callable[[Connection[Message]], Awaitable[None]]
) -> AsyncIterator[None]:
    """A server whose every connection is handed to `peer`."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection: Connection[Message] = Connection(reader, writer, ToSupervisor)
        try:
            await peer(connection)
        finally:
            await connection.close()

    server = await asyncio.start_unix_server(connected, str(path))
    async with server:
        yield


async def send_without_end(connection: Connection[Message]) -> None:
    """The kernel takes some before it notices that nobody is there."""
    while True:
        await connection.send(StatusRequest())


async def read_to_the_end(connection: Connection[Message]) -> None:
    while True:
        await connection.receive()


async def test_hellos_and_messages() -> None:
    async with pair() as (left, right):
        hellos = await asyncio.gather(left.greet("left"), right.greet("right"))
        assert [hello.name for hello in hellos] == ["right", "left"]
        await left.send(StatusRequest())
        left.post(Failure(code="a", message="b"))
        assert await right.receive() == StatusRequest()
        assert await right.receive() == Failure(code="a", message="b")
        assert left.backlog_bytes == 0


async def test_another_version() -> None:
    async with pair() as (left, right):
        right.post(Hello(version=PROTOCOL_VERSION + 1, name="newer"))
        with pytest.raises(VersionError, match=f"newer speaks version {PROTOCOL_VERSION + 1}, we "):
            await left.greet("left")


async def test_the_first_message_is_a_hello() -> None:
    async with pair() as (left, right):
        right.post(StatusRequest())
        with pytest.raises(FrameError, match="StatusRequest where a Hello was expected"):
            await left.greet("left")


async def test_the_end_of_a_connection() -> None:
    async with pair() as (left, right):
        left.post(StatusRequest())
        await left.close()
        assert await right.receive() == StatusRequest()  # what was sent before the end arrives
        with pytest.raises(Disconnected):
            await right.receive()
        with pytest.raises(Disconnected):
            await send_without_end(right)


async def test_half_a_frame_and_the_end() -> None:
    async with pair() as (left, right):
        left._writer.write(encode(StatusRequest())[:7])
        await left.close()
        with pytest.raises(Disconnected):
            await right.receive()


async def test_an_aborted_connection() -> None:
    async with pair() as (left, right):
        left.abort()
        with pytest.raises(Disconnected):
            await right.receive()


async def test_garbage() -> None:
    async with pair() as (left, right):
        left._writer.write(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(FrameError, match="at most"):
            await right.receive()


async def test_a_slow_reader_shows_as_backlog() -> None:
    async with pair() as (left, _right):
        for _ in range(400):
            left.post(Failure(code="a", message="b" * 4000))
        assert left.backlog_bytes > 500_000
        left.abort()


async def test_ourselves_are_a_peer() -> None:
    async with pair() as (left, right):
        assert left.check_peer() == right.check_peer() == (os.getpid(), os.geteuid(), os.getegid())


async def test_a_stranger_is_no_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's answer for a user who is neither root, nor we, nor in the group: seen from a user who is not us."""
    credentials = struct.pack("3i", 4321, 64_000, 64_000)

    class Stranger:
        def getsockopt(self, _level: int, _option: int, _size: int) -> bytes:
            return credentials

    async with pair() as (left, _right):
        monkeypatch.setattr(left._writer, "get_extra_info", lambda _name: Stranger())
        with pytest.raises(PeerRefused, match="process 4321 of user 64000 is not in the group coral-reef"):
            left.check_peer()


def test_members_of_the_group_are_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "GROUP", "root")  # a group that every machine has
    assert frames._in_group(64_000, 0)
    assert not frames._in_group(64_000, 64_000)
    monkeypatch.setattr(frames, "GROUP", "no-such-group")
    assert not frames._in_group(0, 0)


async def test_connect(folder: Path) -> None:
    async def peer(connection: Connection[Message]) -> None:
        assert (await connection.greet("server")).name == "client"
        assert await connection.receive() == StatusRequest()
        await connection.send(Failure(code="seen", message=""))

    async with listening(folder / "s", peer):
        connection = await connect(str(folder / "s"), FromSupervisor, name="client")
        await connection.send(StatusRequest())
        assert await connection.receive() == Failure(code="seen", message="")
        await connection.close()


@pytest.mark.parametrize("name", ["missing", "x" * 150], ids=["missing", "too long"])
async def test_nobody_listens(folder: Path, name: str) -> None:
    with pytest.raises(Disconnected, match=name):
        await connect(str(folder / name), FromSupervisor, name="client")


async def test_connect_to_what_is_not_ours(folder: Path) -> None:
    async def peer(connection: Connection[Message]) -> None:
        connection._writer.write(b"\xff" * 8)
        with pytest.raises(Disconnected):
            await read_to_the_end(connection)

    async with listening(folder / "s", peer):
        with pytest.raises(FrameError):
            await connect(str(folder / "s"), FromSupervisor, name="client")


async def test_connect_to_another_version(folder: Path) -> None:
    async def peer(connection: Connection[Message]) -> None:
        await connection.send(Hello(version=99, name="future"))

    async with listening(folder / "s", peer):
        with pytest.raises(VersionError, match="future speaks version 99"):
            await connect(str(folder / "s"), FromSupervisor, name="client")


def test_a_frame_is_a_length_and_a_map() -> None:
    data = encode(Hello(name="n"))
    assert struct.unpack(">I", data[:4]) == (len(data) - 4,)
    assert msgspec.msgpack.decode(data[4:]) == {"type": "Hello", "version": PROTOCOL_VERSION, "name": "n"}
