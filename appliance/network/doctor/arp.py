"""Whether somebody else has our IPv4 address: an ARP probe (RFC 5227), which needs CAP_NET_RAW."""

from __future__ import annotations

import asyncio
import socket
import struct
from ipaddress import IPv4Address

_ETHERNET = 0x0806
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_PROBES = 3


def probe(own: bytes, address: IPv4Address) -> bytes:
    """A frame to all: who has this address? Its sender has none, so that nobody's table changes by it."""
    frame = b"\xff" * 6 + own + struct.pack("!H", _ETHERNET)
    return frame + _ARP.pack(1, 0x0800, 6, 4, 1, own, bytes(4), bytes(6), address.packed)


def holder(frame: bytes, own: bytes, address: IPv4Address) -> bytes | None:
    """The hardware address of who says in this frame that the address is theirs; None when nobody else does."""
    if len(frame) < 14 + _ARP.size or frame[12:14] != struct.pack("!H", _ETHERNET):
        return None
    hardware, protocol, hardware_size, size, _, sender, sender_address, _, _ = _ARP.unpack_from(frame, 14)
    if (hardware, protocol, hardware_size, size) != (1, 0x0800, 6, 4):
        return None
    found = bytes(sender)
    return found if sender_address == address.packed and found != own else None


async def duplicate(interface: str, address: IPv4Address, *, timeout_s: float = 1.0) -> str | None:
    """The hardware address of another machine that has it, too. PermissionError without the right to ask; OSError when the
    interface is gone or no Ethernet."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETHERNET)) as asking:
        asking.setblocking(False)
        asking.bind((interface, _ETHERNET))
        own = bytes(asking.getsockname()[4])[:6]
        if len(own) != 6:
            raise OSError(f"{interface} is no Ethernet")
        for _ in range(_PROBES):
            asking.send(probe(own, address))
            try:
                async with asyncio.timeout(timeout_s / _PROBES):
                    while True:
                        other = holder(await loop.sock_recv(asking, 2048), own, address)
                        if other is not None:
                            return other.hex(":")
            except TimeoutError:
                continue
    return None
