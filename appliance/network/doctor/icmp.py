"""Echo requests (RFC 792, RFC 4443), without root where the kernel allows it (net.ipv4.ping_group_range, which systemd sets to
all groups), else by a raw socket."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address

_ECHO = {4: 8, 6: 128}
_REPLY = {4: 0, 6: 129}
_PROTOCOL = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}

#: Of IP and ICMP, before the payload.
HEADER_BYTES = {4: 28, 6: 48}

#: linux/in.h, linux/in6.h: set the don't-fragment bit, and do not believe what the kernel remembers of the path.
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3

_PACKET_LIMIT_BYTES = 65_536


class NoPing(Exception):
    """This process may not send echo requests; says why."""


class Silence(Enum):
    """Why there is no reply."""

    TIMEOUT = "no reply"
    UNREACHABLE = "unreachable"
    TOO_BIG = "too big for the path"


@dataclass(frozen=True)
class Address:
    """Where to, with the interface for a link-local one (`fe80::1%eth0`)."""

    host: str

    @property
    def version(self) -> int:
        return int(ip_address(self.host.partition("%")[0]).version)

    @property
    def sockaddr(self) -> tuple[str, int] | tuple[str, int, int, int]:
        host, _, scope = self.host.partition("%")
        if self.version == 4:
            return host, 0
        return host, 0, 0, socket.if_nametoindex(scope) if scope else 0


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def request(version: int, ident: int, number: int, payload: bytes) -> bytes:
    """An echo request; of IPv6 the kernel makes the checksum."""
    head = struct.pack("!BBHHH", _ECHO[version], 0, 0, ident, number)
    if version == 6:
        return head + payload
    return struct.pack("!BBHHH", _ECHO[4], 0, checksum(head + payload), ident, number) + payload


def reply(version: int, packet: bytes, *, raw: bool) -> tuple[int, int, bytes] | None:
    """Identifier, number and payload of an echo reply as a socket gives it; None when it is something else."""
    if raw and version == 4:
        if len(packet) < 20 or packet[0] >> 4 != 4:
            return None
        packet = packet[(packet[0] & 15) * 4 :]
    if len(packet) < 8 or packet[0] != _REPLY[version] or packet[1] != 0:
        return None
    ident, number = struct.unpack_from("!HH", packet, 4)
    return ident, number, packet[8:]


@contextmanager
def _opened(address: Address) -> Iterator[tuple[socket.socket, bool]]:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    raw = False
    try:
        made = socket.socket(family, socket.SOCK_DGRAM, _PROTOCOL[address.version])
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            raise NoPing(f"this process has no IPv{address.version} sockets") from None
        try:
            made = socket.socket(family, socket.SOCK_RAW, _PROTOCOL[address.version])
            raw = True
        except OSError:
            raise NoPing(
                "this user may not ping: net.ipv4.ping_group_range excludes the group; run it as root"
            ) from None
    with made:
        made.setblocking(False)
        if family == socket.AF_INET:
            made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        else:
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        yield made, raw


async def ping(host: str, *, packet_bytes: int = 84, timeout_s: float = 1.0) -> float | Silence:
    """The round trip in seconds of one packet of this size, its IP header included, that nobody may fragment.

    NoPing when this process may not; ValueError when `host` is no address.
    """
    address = Address(host)
    payload = os.urandom(16)[: max(0, packet_bytes - HEADER_BYTES[address.version])]
    payload += bytes(max(0, packet_bytes - HEADER_BYTES[address.version] - len(payload)))
    ident, number = int.from_bytes(os.urandom(2), "big"), int.from_bytes(os.urandom(2), "big")
    loop = asyncio.get_running_loop()
    with _opened(address) as (made, raw):
        try:
            made.connect(address.sockaddr)
            began = time.perf_counter()
            made.send(request(address.version, ident, number, payload))
            async with asyncio.timeout(timeout_s):
                while True:
                    packet = await loop.sock_recv(made, _PACKET_LIMIT_BYTES)
                    found = reply(address.version, packet, raw=raw)
                    # A socket that is not raw has an identifier of the kernel's, and gets its own replies only.
                    if (
                        found is not None
                        and found[1:] == (number, payload)
                        and (not raw or found[0] == ident)
                    ):
                        return time.perf_counter() - began
        except TimeoutError:
            return Silence.TIMEOUT
        except OSError as error:
            return Silence.TOO_BIG if error.errno == errno.EMSGSIZE else Silence.UNREACHABLE
