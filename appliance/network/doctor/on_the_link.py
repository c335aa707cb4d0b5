"""Cable, addresses, and the router next door."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from ipaddress import IPv4Interface

from appliance.config.network import Port
from appliance.wire.messages import Check, Finding

from . import arp, facts
from .facts import Interface, Router
from .findings import failed, ok, skipped, warning
from .icmp import NoPing, ping

#: More damaged packets than one of so many are no chance.
_DAMAGE_SHARE = 1000
_DAMAGE_LEAST = 10

_PINGS = 3

_NEIGHBOUR_S = 5.0
_LOOK_S = 0.2

#: States of a neighbour that answered when it was last asked; ip-neighbour(8).
_THERE = frozenset({"REACHABLE", "STALE", "DELAY", "PROBE", "PERMANENT"})


def link(interface: Interface, port: Port | None) -> Finding:
    """Whether there is a cable, and as fast as expected. `port` is what network.yaml says of it, None when it says nothing."""
    name = interface.name
    if interface.carrier is None:
        if port is None or not port.enabled:
            return skipped(Check.LINK, name, "it is switched off, and network.yaml does not want it")
        return failed(
            Check.LINK,
            name,
            "the interface is switched off",
            "somebody has set it down, or NetworkManager does not manage it",
            f"'coral-reef net apply' brings it up; or: ip link set {name} up",
        )
    if not interface.carrier:
        if port is None or not port.enabled:
            return skipped(Check.LINK, name, "nothing is plugged in, and network.yaml expects nothing")
        return failed(
            Check.LINK,
            name,
            "no signal: nothing is at the other end",
            "the cable is not plugged in or broken, or the switch's port is off",
            "look at both plugs and the switch's lamp; try another cable, then another port of the switch",
        )
    speed = interface.speed_mbps
    if speed and port is not None and port.speed_mbps is not None and speed < port.speed_mbps:
        return warning(
            Check.LINK,
            name,
            f"the link has {_speed(speed)}, {_speed(port.speed_mbps)} was expected",
            "the cable, the module or the switch's port is made for less",
            "use a cable of the right category, or correct 'speed' in network.yaml",
        )
    if interface.errors >= _DAMAGE_LEAST and interface.errors * _DAMAGE_SHARE > interface.packets:
        return warning(
            Check.LINK,
            name,
            f"{interface.errors} damaged packets of {interface.packets}",
            "a bad cable or plug, or the two ends disagree about speed or duplex",
            "change the cable; let both ends negotiate by themselves",
        )
    return ok(Check.LINK, name, "there is a link" + (f" of {_speed(speed)}" if speed else ""))


def _speed(mbps: float) -> str:
    return f"{mbps / 1000:g} Gbit/s" if mbps >= 1000 else f"{mbps:g} Mbit/s"


async def address(interface: Interface, port: Port | None) -> list[Finding]:
    """Whether it has addresses, of its own, that nobody else has. Only for an interface with a link."""
    name = interface.name
    found: list[Finding] = []
    usable = [each for each in interface.addresses if not each.ip.is_link_local]
    if not usable:
        uses_dhcp = port is None or port.uses_dhcp
        assigned = [each for each in interface.addresses if each.version == 4]
        symptom = f"only {assigned[0].ip}, which it gave itself" if assigned else "it has no address"
        if uses_dhcp:
            cause, remedy = (
                "no DHCP server answers on this network",
                "see that the router is on and hands out addresses; or set 'ip' and 'gateway' in network.yaml",
            )
        else:
            cause, remedy = "network.yaml is not in effect on it", "'coral-reef net apply'"
        found.append(failed(Check.ADDRESS, name, symptom, cause, remedy))
    found += [_taken(name, each, "") for each in interface.duplicates]
    for each in usable:
        if isinstance(each, IPv4Interface) and interface.ethernet:
            try:
                other = await arp.duplicate(name, each.ip)
            except PermissionError:
                found.append(
                    skipped(
                        Check.ADDRESS, name, f"whether somebody else has {each.ip}, too: only root may ask"
                    )
                )
                continue
            except OSError as error:
                found.append(
                    skipped(
                        Check.ADDRESS,
                        name,
                        f"whether somebody else has {each.ip}, too: {error.strerror or error}",
                    )
                )
                continue
            if other is not None:
                found.append(_taken(name, str(each.ip), other))
    if not any(each.outcome == "failed" for each in found):
        found.insert(0, ok(Check.ADDRESS, name, ", ".join(str(each) for each in usable)))
    return found


def _taken(name: str, address: str, by: str) -> Finding:
    return failed(
        Check.ADDRESS,
        name,
        f"{address} is taken: another machine{f' ({by})' if by else ''} has it, too",
        "it was set by hand on both, or lies within what the router hands out",
        "give one of them another address, outside of the router's DHCP range",
    )


async def gateway(router: Router) -> Finding:
    """Whether the router is there: by ping, and if it does not like that, by whether the link knows its hardware address."""
    for _ in range(_PINGS):
        try:
            if isinstance(await ping(router.address), float):
                return ok(Check.GATEWAY, router.address, f"it answers on {router.interface}")
        except NoPing:
            _disturb(router.address)
            break
    if await _is_there(router):
        return ok(
            Check.GATEWAY,
            router.address,
            f"it is there on {router.interface}, though it does not answer pings",
        )
    return failed(
        Check.GATEWAY,
        router.address,
        f"the router does not answer on {router.interface}",
        "it is off, on another network or VLAN, or 'gateway' in network.yaml is not its address",
        "see that it is on and reached from other machines; compare its address with 'gateway'",
    )


async def _is_there(router: Router) -> bool:
    """Whether the kernel knows its hardware address; it asks three times, a second apart."""
    host = router.address.partition("%")[0]
    with suppress(TimeoutError):
        async with asyncio.timeout(_NEIGHBOUR_S):
            while (state := await facts.neighbour(host, router.interface)) not in _THERE:
                if state == "FAILED":
                    break
                await asyncio.sleep(_LOOK_S)
            return state in _THERE
    return False


def _disturb(address: str) -> None:
    """Sends it a datagram, so that the kernel asks for its hardware address."""
    host, _, scope = address.partition("%")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    to = (host, 9, 0, socket.if_nametoindex(scope) if scope else 0) if ":" in host else (host, 9)
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sending:
        sending.setblocking(False)
        sending.sendto(b"", to)
