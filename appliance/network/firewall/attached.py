"""Which networks are directly attached, as the kernel's routes say: those that no router is in between.

Packets do not tell, and nft's `fib` does not either: it knows by which interface an answer would leave, which is the same for
everybody behind the router. The tower's addresses do not tell of IPv6, where DHCP gives single ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_network

import msgspec

from appliance.network.errors import CommandFailed
from appliance.network.usb_interface import Run, run_command

from .zones import AnyNetwork, Zone, is_tunnel

#: Of what ip says: a tower has a few dozen routes.
_LIMIT_BYTES = 4 * 2**20


class _Route(msgspec.Struct):
    """Of what `ip -json route` says."""

    dst: str = ""
    dev: str = ""
    type: str = "unicast"
    gateway: str = ""
    via: dict[str, str] | None = None
    nexthops: list[dict[str, object]] | None = None


def with_attached(zones: Iterable[Zone], run: Run = run_command) -> tuple[Zone, ...]:
    """The same zones with what is attached to them now, and those of tunnels that are up. CommandFailed."""
    found = attached_networks(run)
    named = list(zones)
    others = sorted(found.keys() - {zone.interface for zone in named})
    tunnels = [Zone(each, "vpn") for each in others if is_tunnel(each)]
    return tuple(
        replace(zone, networks=tuple(dict.fromkeys((*zone.networks, *found.get(zone.interface, ())))))
        for zone in (*named, *tunnels)
    )


def attached_networks(run: Run = run_command) -> dict[str, list[AnyNetwork]]:
    """By interface, in a fixed order. CommandFailed."""
    found: dict[str, list[AnyNetwork]] = {}
    for family in ("-4", "-6"):
        # All tables: a port whose routes are in one of its own is attached no less.
        for interface, network in parse_routes(run("ip", "-json", family, "route", "show", "table", "all")):
            found.setdefault(interface, []).append(network)
    return {name: sorted(set(networks), key=_order) for name, networks in found.items()}


def parse_routes(said: str) -> list[tuple[str, AnyNetwork]]:
    """Interface and network of each route without a router. CommandFailed when it is nothing that we understand."""
    if len(said) > _LIMIT_BYTES:
        raise CommandFailed(f"ip spoke of routes for {len(said)} bytes, expected at most {_LIMIT_BYTES}")
    try:
        routes = msgspec.json.decode(said or "[]", type=list[_Route])
        return [
            (route.dev, ip_network(route.dst))
            for route in routes
            if route.type == "unicast"
            and route.dev not in {"", "lo"}
            and route.dst != "default"
            and not (route.gateway or route.via or route.nexthops)
        ]
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise CommandFailed(f"ip said something unexpected: {error}") from None


def _order(network: AnyNetwork) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen
