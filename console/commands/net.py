"""`net`: the network as it is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import psutil

from appliance.client.screen import table
from console.context import Context

from .command import Command, only

_FAMILIES = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}


async def run(context: Context, words: Sequence[str]) -> None:
    only(COMMAND, words, "")
    mode = (await context.status()).mode
    rows = await asyncio.to_thread(_rows)
    context.terminal.show([f"mode {mode}; this machine is called {socket.gethostname()}"])
    context.terminal.show([table(("interface", "link", ">Mbit/s", ">MTU", "address"), rows)])


def _rows() -> list[tuple[str, str, str, str, str]]:
    """A row an address; an interface without any has one, too. What goes meanwhile is left out."""
    states, rows = psutil.net_if_stats(), []
    for name, addresses in sorted(psutil.net_if_addrs().items()):
        state = states.get(name)
        if state is None:
            continue
        link = "up" if state.isup else "down"
        speed = str(state.speed) if state.speed else ""
        found = [_address(each.address, each.netmask) for each in addresses if each.family in _FAMILIES]
        for number, address in enumerate(found or [""]):
            first = number == 0
            rows.append((name, link, speed, str(state.mtu), address) if first else ("", "", "", "", address))
    return rows


def _address(address: str, netmask: str | None) -> str:
    """With the length of its prefix."""
    if not netmask:
        return address
    family = socket.AF_INET6 if ":" in netmask else socket.AF_INET
    bits = sum(each.bit_count() for each in socket.inet_pton(family, netmask))
    return f"{address.partition('%')[0]}/{bits}"


COMMAND = Command(
    "net",
    "interfaces, links and addresses",
    (("net", "shows what there is"),),
    run,
    aliases=("network",),
)
