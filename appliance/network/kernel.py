"""What the kernel itself says of a network device, whoever configured it."""

from __future__ import annotations

import socket
from ipaddress import ip_address, ip_interface
from pathlib import Path

import psutil


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
    """0 when there is no such device. From /sys: the supervisor may not make the socket that the ioctl would need."""
    try:
        return int((Path("/sys/class/net") / interface / "mtu").read_text("ascii"))
    except (OSError, ValueError):
        return 0
