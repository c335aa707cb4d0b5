"""What the kernel itself says of a network device, whoever configured it."""

from __future__ import annotations

import fcntl
import socket
import struct
from ipaddress import ip_address, ip_interface

import psutil

#: linux/sockios.h; an interface's name is so long, and a zero more (IFNAMSIZ).
_SIOCGIFMTU = 0x8921
_NAME_BYTES = 15


def addresses_of(interface: str) -> set[str]:
    """Its addresses as ADDRESS/PREFIX; none when there is no such device."""
    found = set()
    for each in psutil.net_if_addrs().get(interface, []):
        if each.family not in (socket.AF_INET, socket.AF_INET6) or not each.netmask:
            continue
        address = each.address.partition("%")[0]
        length = int(ip_address(each.netmask)).bit_count()
        found.add(str(ip_interface(f"{address}/{length}")))
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
