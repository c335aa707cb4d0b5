"""One question to one name server over UDP (RFC 1035), to learn whether it answers at all."""

from __future__ import annotations

import asyncio
import os
import struct
from enum import IntEnum

NS, A = 2, 1

_ANSWER_LIMIT_BYTES = 4096
_HEADER = struct.Struct("!HHHHHH")


class ResponseCode(IntEnum):
    """What matters of RFC 1035's; the rest is OTHER."""

    NO_ERROR = 0
    SERVER_FAILURE = 2
    NO_SUCH_NAME = 3
    REFUSED = 5
    OTHER = 15


def question(ident: int, name: str, kind: int) -> bytes:
    """A query that asks the server to find the answer itself. ValueError when that is no name."""
    labels = b""
    for label in filter(None, name.rstrip(".").split(".")):
        try:
            encoded = label.encode("idna")
        except UnicodeError:
            raise ValueError(f"{name!r} is no name") from None
        labels += bytes([len(encoded)]) + encoded
    if len(labels) > 254:
        raise ValueError(f"{name!r} is no name: it is too long")
    return _HEADER.pack(ident, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def answer_to(ident: int, packet: bytes) -> ResponseCode | None:
    """What the server says to the question of this number; None when that is no answer to it."""
    if len(packet) < _HEADER.size:
        return None
    found, flags, *_ = _HEADER.unpack_from(packet)
    if found != ident or not flags & 0x8000:
        return None
    try:
        return ResponseCode(flags & 15)
    except ValueError:
        return ResponseCode.OTHER


async def ask(server: str, name: str, kind: int, *, port: int = 53, timeout_s: float = 2.0) -> ResponseCode:
    """Asks once, and once more after half the time. TimeoutError or OSError when nobody answers."""
    ident = int.from_bytes(os.urandom(2), "big")
    packet = question(ident, name, kind)
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[ResponseCode] = loop.create_future()

    class Asking(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:
            found = answer_to(ident, data[:_ANSWER_LIMIT_BYTES])
            if found is not None and not answered.done():
                answered.set_result(found)

        def error_received(self, exc: Exception) -> None:
            if not answered.done():
                answered.set_exception(exc)

    transport, _ = await loop.create_datagram_endpoint(Asking, remote_addr=(server, port))
    try:
        async with asyncio.timeout(timeout_s):
            transport.sendto(packet)
            await asyncio.wait([answered], timeout=timeout_s / 2)
            if not answered.done():
                transport.sendto(packet)
            return await answered
    finally:
        transport.close()
        if answered.done() and not answered.cancelled():
            answered.exception()
