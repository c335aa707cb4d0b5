"""What the kernel itself says of network devices, whoever configured them."""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
from collections.abc import Iterator
from ipaddress import ip_interface
from pathlib import Path

import psutil

#: rtnetlink(7): RTM_GETLINK with NLM_F_REQUEST and NLM_F_DUMP is answered by messages up to NLMSG_DONE.
_GETLINK, _DUMP, _DONE, _ERROR, _NEWLINK = 18, 0x301, 3, 2, 16
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ATTRIBUTE = struct.Struct("=HH")
_IFLA_IFNAME, _IFLA_MAX_MTU = 3, 51

#: Of this thread's network: address, number, prefix's length, scope, flags (all hexadecimal), name.
_IF_INET6 = Path("/proc/thread-self/net/if_inet6")
_TENTATIVE, _DAD_FAILED = 0x40, 0x08  # if_addr.h

#: linux/sockios.h; an interface's name is so long, and a zero more (IFNAMSIZ).
_SIOCGIFMTU = 0x8921
_NAME_BYTES = 15

_ANSWER_BYTES = 2**20
_ANSWER_TIMEOUT_S = 2.0


def addresses_of(interface: str) -> set[str]:
    """Its addresses as ADDRESS/PREFIX, without IPv6 ones that somebody else has, or may have for all it knows yet. None when
    there is no such device."""
    found = set()
    for each in psutil.net_if_addrs().get(interface, []):
        if each.family is socket.AF_INET and each.netmask:
            found.add(str(ip_interface(f"{each.address}/{each.netmask}")))
    try:
        lines = _IF_INET6.read_text("ascii").splitlines()
    except FileNotFoundError:  # a kernel without IPv6
        lines = []
    for line in lines:
        address, _, length, _, flags, name = line.split()
        if name == interface and not int(flags, 16) & (_TENTATIVE | _DAD_FAILED):
            found.add(str(ip_interface((bytes.fromhex(address), int(length, 16)))))
    return found


def mtu_of(interface: str) -> int:
    """0 when there is no such device. netdevice(7), SIOCGIFMTU: any socket will do, and the supervisor may make no other."""
    name = interface.encode()[:_NAME_BYTES]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking, _SIOCGIFMTU, struct.pack(f"{_NAME_BYTES + 1}si20x", name, 0))
        except OSError:
            return 0
    return int(struct.unpack_from("i", answer, _NAME_BYTES + 1)[0])


def mtu_limits() -> dict[str, int]:
    """The largest MTU that each device takes; without those that do not say. Empty when the kernel does not answer."""
    request = _HEADER.pack(_HEADER.size + _LINK.size, _GETLINK, _DUMP, 1, 0) + _LINK.pack(0, 0, 0, 0, 0)
    limits: dict[str, int] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as ask:
        ask.settimeout(_ANSWER_TIMEOUT_S)
        try:
            ask.sendto(request, (0, 0))
            while True:
                for kind, body in _messages(ask.recv(_ANSWER_BYTES)):
                    if kind in (_DONE, _ERROR):
                        return limits
                    if kind == _NEWLINK:
                        limits |= _limit(body)
        except OSError:
            return limits


def _limit(body: bytes) -> dict[str, int]:
    attributes = dict(_attributes(body[_LINK.size :]))
    name = attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "surrogateescape")
    limit = int.from_bytes(attributes.get(_IFLA_MAX_MTU, b"")[:4], sys.byteorder)
    return {name: limit} if name and limit else {}


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and the content of each; what is cut off is left out."""
    while len(data) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            return
        yield kind, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            return
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
