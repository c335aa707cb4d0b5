"""How far our clock is off, by one question to a time server (SNTP, RFC 4330)."""

from __future__ import annotations

import asyncio
import struct
import time
from dataclasses import dataclass
from math import floor

PORT = 123

#: From 1900, where NTP counts from, to 1970.
_SINCE_1900_S = 2_208_988_800
_ERA_S = 2**32

_PACKET = struct.Struct("!BBbb11I")


@dataclass(frozen=True)
class Told:
    """What a server said. `offset_s`: what our clock must be moved by; `stratum` 0 or 16: it does not know the time itself."""

    offset_s: float
    stratum: int

    @property
    def knows(self) -> bool:
        return 0 < self.stratum < 16


def question(sent_s: float) -> bytes:
    """Version 4, mode client; our time comes back as the answer's origin."""
    seconds, fraction = _of(sent_s)
    return _PACKET.pack(0x23, 0, 0, 0, *(0,) * 9, seconds, fraction)


def answer_to(packet: bytes, sent_s: float, received_s: float) -> Told | None:
    """What the answer to the question of `sent_s` says; None when it is none."""
    if len(packet) < _PACKET.size:
        return None
    first, stratum, _, _, *words = _PACKET.unpack_from(packet)
    if first & 7 != 4 or tuple(words[5:7]) != _of(sent_s):
        return None
    theirs = [_to(words[at], words[at + 1], received_s) for at in (7, 9)]
    offset_s = ((theirs[0] - sent_s) + (theirs[1] - received_s)) / 2
    return Told(offset_s, 0 if first >> 6 == 3 and stratum == 0 else stratum)


def _of(seconds: float) -> tuple[int, int]:
    whole = floor(seconds)
    return (whole + _SINCE_1900_S) % _ERA_S, min(int((seconds - whole) * 2**32), _ERA_S - 1)


def _to(whole: int, fraction: int, near_s: float) -> float:
    """Of the eras, the one near that time: the first ends in 2036."""
    seconds = whole - _SINCE_1900_S + fraction / 2**32
    return seconds + round((near_s - seconds) / _ERA_S) * _ERA_S


async def ask(server: str, *, port: int = PORT, timeout_s: float = 2.0) -> Told:
    """TimeoutError or OSError when nobody answers."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[Told] = loop.create_future()
    sent_s = time.time()

    class Asking(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:
            found = answer_to(data, sent_s, time.time())
            if found is not None and not answered.done():
                answered.set_result(found)

        def error_received(self, exc: Exception) -> None:
            if not answered.done():
                answered.set_exception(exc)

    transport, _ = await loop.create_datagram_endpoint(Asking, remote_addr=(server, port))
    try:
        transport.sendto(question(sent_s))
        async with asyncio.timeout(timeout_s):
            return await answered
    finally:
        transport.close()
