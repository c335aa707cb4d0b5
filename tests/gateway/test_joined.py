"""A response in as few pieces as it has pauses, and counted."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from appliance.gateway.joined import Joined
from appliance.telemetry.network_counters import (
    Board,
    Channel,
    Counter,
    NetworkCounters,
    NetworkTotals,
    add_up,
    latencies,
    today,
)

pytestmark = pytest.mark.asyncio

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"

COUNTERS = NetworkCounters(Board(1), 0)


def counted() -> NetworkTotals:
    return add_up(COUNTERS.board, time.monotonic(), today())


class Pieces(asyncio.Transport):
    """A transport that passes on to another, and remembers how."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.pieces: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.pieces.append(bytes(data))
        self._transport.write(data)

    def writelines(self, list_of_data: object) -> None:
        assert isinstance(list_of_data, list)
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Pieces, Joined, asyncio.StreamReader]]:
    """A transport, what a response writes to, and the client's end."""
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_unix_connection(asyncio.Protocol, sock=ours)
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    pieces = Pieces(transport)
    try:
        yield pieces, Joined(pieces, loop, COUNTERS), reader
    finally:
        transport.abort()
        writer.close()


async def test_a_head_and_its_body() -> None:
    async with connected() as (written, response, reader):
        response.write(HEAD)
        response.write(b"body")
        response.write(b" more")
        async with asyncio.timeout(5):
            assert await reader.readexactly(len(HEAD) + 9) == HEAD + b"body more"
        assert written.pieces == [HEAD + b"body", b" more"]


async def test_a_head_that_nothing_follows() -> None:
    async with connected() as (written, response, reader):
        response.write(HEAD)
        async with asyncio.timeout(5):
            assert await reader.readexactly(len(HEAD)) == HEAD
        response.write(b"body")
        async with asyncio.timeout(5):
            assert await reader.readexactly(4) == b"body"
        assert written.pieces == [HEAD, b"body"]


async def test_a_head_before_the_end() -> None:
    async with connected() as (_, response, reader):
        response.write(HEAD)
        response.close()
        assert response.is_closing()
        async with asyncio.timeout(5):
            assert await reader.read() == HEAD


async def test_a_client_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    async with connected() as (written, response, _):
        response.write(HEAD)
        written.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert written.pieces == []
    assert not caplog.records


async def test_what_is_counted() -> None:
    before = counted().ever
    async with connected() as (_, response, reader):
        response.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert sum(latencies(counted().ever, Channel.HTTP)) == sum(latencies(before, Channel.HTTP))
        response.write(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
        response.write(b"body")
        async with asyncio.timeout(5):
            await reader.readexactly(65)
    after = counted().ever
    assert sum(latencies(after, Channel.HTTP)) == sum(latencies(before, Channel.HTTP)) + 1
    assert after[Counter.SERVER_ERRORS] == before[Counter.SERVER_ERRORS] + 1
    assert after[Counter.BYTES_OUT] == before[Counter.BYTES_OUT] + 65
