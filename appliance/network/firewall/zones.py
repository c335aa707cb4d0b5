"""The parts of the network that the firewall tells apart."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv4Network, IPv6Network

AnyNetwork = IPv4Network | IPv6Network

#: What a zone can be for: the roles of network.yaml, the uses of its VLANs, and tunnels.
ROLES = frozenset(
    {"primary", "secondary", "management", "usb", "wifi", "cluster", "api", "storage", "none", "vpn"}
)

#: Clients are here: "LAN/VPN" in the specification's table.
CLIENTS = ("primary", "secondary", "wifi", "api", "vpn")

#: Tunnels are made by others (WireGuard, OpenVPN) when they like, so that they are known by their names. In nft's words.
TUNNELS = ("wg*", "tun*")

#: A name that can stand between quotes; a * at its end would mean any name that begins so.
_NAME = re.compile(r'[^\s"*\\/:]{1,15}')


@dataclass(frozen=True)
class Zone:
    """An interface and what it is for. `networks` are those directly attached to it, as far as they are known. ValueError."""

    interface: str
    role: str
    networks: tuple[AnyNetwork, ...] = ()

    def __post_init__(self) -> None:
        if not (
            _NAME.fullmatch(self.interface) and self.interface.isascii() and self.interface.isprintable()
        ):
            raise ValueError(f"{self.interface!r} is no interface's name that nft can be told")
        if self.role not in ROLES:
            raise ValueError(f"{self.role!r} is no role, expected one of {', '.join(sorted(ROLES))}")


def is_tunnel(interface: str) -> bool:
    """Whether its name is one of a tunnel's."""
    return any(fnmatchcase(interface, tunnel) for tunnel in TUNNELS)


def interfaces(zones: Iterable[Zone], *roles: str) -> tuple[str, ...]:
    """Names of those that are for one of `roles`, each once, tunnels too."""
    found = [zone.interface for zone in zones if zone.role in roles]
    if "vpn" in roles:
        # A set of intervals refuses a name that another one stands for already.
        found = [*(each for each in found if not is_tunnel(each)), *TUNNELS]
    return tuple(dict.fromkeys(found))
