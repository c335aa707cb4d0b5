"""Texts that have a form: what is accepted, and how to say what was expected."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

#: Prefix of an address that has none: a home's subnet, and every IPv6 link's (RFC 4291, section 2.5.1).
DEFAULT_PREFIX = {4: 24, 6: 64}

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MEGABITS = {"m": 1.0, "g": 1000.0}


@dataclass(frozen=True)
class Form:
    """`expected` completes "expected ..."; `accepts` decides."""

    expected: str
    accepts: Callable[[str], bool]


def form(pattern: str, expected: str, also: Callable[[str], bool] = lambda _: True) -> Meta:
    """Metadata of a text that matches all of `pattern`, and `also`.

    Not msgspec's own `pattern`: a text that still holds an unset `${NAME}` has to pass through, in the JSON
    Schema too.
    """
    compiled = re.compile(pattern)
    return Meta(
        extra={"form": Form(expected, lambda text: compiled.fullmatch(text) is not None and also(text))},
        extra_json_schema={"pattern": rf"\$\{{|^(?:{pattern})$"},
    )


def interface_address(text: str) -> Interface:
    """`192.168.1.100`, `10.0.0.1/16`, `fd00::1/64` with its network. Raises ValueError."""
    address, slash, prefix = text.partition("/")
    version = ipaddress.ip_address(address).version
    return ipaddress.ip_interface(f"{address}/{prefix if slash else DEFAULT_PREFIX[version]}")


def same_port(one: str, other: str) -> bool:
    """Whether two `TpuPort`s can mean one port: `*` is any bus."""
    if one == other:
        return True
    (_, bus, port), (_, other_bus, other_port) = ((*text.split("-", 2), "", "")[:3] for text in (one, other))
    return (
        one.startswith("usb-") and other.startswith("usb-") and port == other_port and "*" in (bus, other_bus)
    )


def duration_s(text: str) -> int:
    """`30m` as 1800 seconds."""
    return int(text[:-1]) * _SECONDS[text[-1]]


def speed_mbps(text: str) -> float:
    """`2.5gbps` as 2500 megabits a second."""
    return float(text[:-4]) * _MEGABITS[text[-4]]


def _is_host_address(text: str) -> bool:
    """An address that one interface can have: neither a network's own, nor its broadcast, nor a group's."""
    try:
        found = interface_address(text)
    except ValueError:
        return False
    address, network = found.ip, found.network
    if address.is_unspecified or address.is_multicast or address.is_loopback or network.prefixlen == 0:
        return False
    # A subnet of two has no spare addresses (RFC 3021).
    edges = {network.network_address, network.broadcast_address}
    return address.version == 6 or network.prefixlen >= 31 or address not in edges


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _is_visible(text: str) -> bool:
    """What the kernel takes as an interface's name: dev_valid_name()."""
    return text not in {".", ".."} and text.isascii() and text.isprintable()


def _is_port_range(text: str) -> bool:
    first, _, last = text.partition("-")
    return 1 <= int(first) <= int(last or first) <= 65_535


def _fits_ssid(text: str) -> bool:
    return len(text.encode()) <= 32


def _has_port_in_range(text: str) -> bool:
    """Of `host:port` and URLs that end so. Patterns alone would be unreadable."""
    match = re.search(r":([0-9]{1,5})(?:\?.*)?$", text.rpartition("]")[2] if "]" in text else text)
    return match is None or 1 <= int(match[1]) <= 65_535


_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])"
_HOST_PORT = _HOST + r"(?::[0-9]{1,5})?"

HostAddress = Annotated[
    str,
    form(
        r"[0-9A-Fa-f.:]{2,45}(?:/[0-9]{1,3})?",
        "a host's IP address like 192.168.1.100, 10.0.0.1/16 or fd00::1/64",
        _is_host_address,
    ),
]
Address = Annotated[
    str, form(r"[0-9A-Fa-f.:]{2,45}", "an IP address like 127.0.0.1, 0.0.0.0 or ::", _is_address)
]
Host = Annotated[str, form(r"[A-Za-z0-9_.:-]{1,253}", "a host name or an IP address")]
HostPort = Annotated[str, form(_HOST_PORT, "a host and port like stun.example.org:3478", _has_port_in_range)]
IceUrl = Annotated[
    str,
    form(
        rf"(?:stuns?|turns?):{_HOST_PORT}(?:\?transport=(?:udp|tcp))?",
        "a URL like stun:stun.example.org:3478 or turns:turn.example.org:5349?transport=tcp",
        _has_port_in_range,
    ),
]
Discovery = Annotated[
    str,
    form(rf"etcd://{_HOST_PORT}(?:,{_HOST_PORT}){{0,8}}", "a URL like etcd://10.0.0.5:2379"),
]
Speed = Annotated[str, form(r"[1-9][0-9]{0,3}(?:\.[0-9])?[mg]bps", "a speed like 5gbps, 2.5gbps or 100mbps")]
Duration = Annotated[str, form(r"[1-9][0-9]{0,4}[smhd]", "a duration like 24h, 30m or 7d")]
Name = Annotated[
    str,
    form(
        r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}",
        "a name of at most 63 letters, digits, dots, dashes and underscores",
    ),
]
ModelName = Annotated[
    str,
    form(
        r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}",
        "a model's name of at most 128 letters, digits and any of . _ : / -",
    ),
]
FilePath = Annotated[
    str, form(r"/[^\x00-\x1f]{0,4094}", "a path from the root like /etc/coral-reef/certs/server.crt")
]
OptionalName = Annotated[
    str,
    form(
        r"(?:[A-Za-z0-9][A-Za-z0-9_.-]{0,62})?",
        "a name of at most 63 letters, digits, dots, dashes and underscores, or nothing",
    ),
]
OptionalFilePath = Annotated[
    str,
    form(r"(?:/[^\x00-\x1f]{0,4094})?", "a path from the root like /etc/coral-reef/tray.json, or nothing"),
]
TpuPort = Annotated[
    str,
    form(
        r"usb-(?:[0-9]{1,3}|\*)-[0-9]{1,3}(?:\.[0-9]{1,3}){0,5}|pci-[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]",
        "a USB port like usb-1-2.4, or usb-*-2.4 on any bus, or a PCI address like pci-0000:03:00.0",
    ),
]
NetworkAddress = Annotated[
    str,
    form(
        r"[0-9A-Fa-f.:]{2,45}/[0-9]{1,3}",
        "a network like 10.20.0.0/16 or fd00:1::/64, or 0.0.0.0/0 for everywhere",
        _is_network,
    ),
]
MacAddress = Annotated[
    str, form(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}", "a MAC address like 52:54:00:12:34:56")
]
InterfaceName = Annotated[
    str, form(r"[^\s/:\x00-\x20]{1,15}", "the name of an interface like eth0, enp3s0 or wlan0", _is_visible)
]
PciPath = Annotated[
    str, form(r"[A-Za-z0-9_.:*-]{1,128}", "a path like pci-0000:03:00.0, as 'udevadm info' calls it")
]
PortRange = Annotated[
    str,
    form(r"[0-9]{1,5}(?:-[0-9]{1,5})?", "a port like 8080, or a range like 5000-5010", _is_port_range),
]
Ssid = Annotated[str, form(r"[^\x00]{1,32}", "the name of a Wi-Fi network, of at most 32 bytes", _fits_ssid)]
Text = Annotated[str, form(r"[^\x00-\x1f]{1,1024}", "a text of 1 to 1024 characters on one line")]
