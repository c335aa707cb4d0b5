"""A response in as few pieces as it has pauses."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from appliance.gateway.joined import Joined

pytestmark = pytest.mark.asyncio


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
        yield pieces, Joined(pieces, loop), reader
    finally:
        transport.abort()
        writer.close()


async def test_a_head_and_its_body() -> None:
    async with connected() as (written, response, reader):
        response.write(b"head ")
        response.write(b"body")
        response.write(b" more")
        async with asyncio.timeout(5):
            assert await reader.readexactly(14) == b"head body more"
        assert written.pieces == [b"head body", b" more"]


async def test_a_head_that_nothing_follows() -> None:
    async with connected() as (written, response, reader):
        response.write(b"head ")
        async with asyncio.timeout(5):
            assert await reader.readexactly(5) == b"head "
        response.write(b"body")
        async with asyncio.timeout(5):
            assert await reader.readexactly(4) == b"body"
        assert written.pieces == [b"head ", b"body"]


async def test_a_head_before_the_end() -> None:
    async with connected() as (_, response, reader):
        response.write(b"head")
        response.close()
        assert response.is_closing()
        async with asyncio.timeout(5):
            assert await reader.read() == b"head"


async def test_a_client_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    async with connected() as (written, response, _):
        response.write(b"head")
        written.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert written.pieces == []
    assert not caplog.records
