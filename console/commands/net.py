"""`net`: the network as it is, its firewall, and the last word on a change."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from appliance.client.network import network_parts, revisions_part
from appliance.wire.messages import (
    FirewallLook,
    FirewallState,
    NetworkCancel,
    NetworkConfirm,
    NetworkLook,
    NetworkPast,
    NetworkRevisions,
    NetworkState,
)
from console.context import Context

from . import net_stats
from .command import Command, only

TIMEOUT_S = 600.0


async def run(context: Context, words: Sequence[str]) -> None:
    action, _ = only(COMMAND, words, "show", "stats", "firewall", "history", "confirm", "cancel")
    match action:
        case "show":
            state = await context.control.ask(NetworkLook(request_id="-"), NetworkState)
            context.say(f"mode {state.mode}; this machine is called {socket.gethostname()}")
            context.terminal.show(network_parts(state))
        case "stats":
            await net_stats.run(context)
        case "firewall":
            found = await context.control.ask(FirewallLook(request_id="-"), FirewallState)
            context.terminal.show(found.lines)
        case "history":
            past = await context.control.ask(NetworkPast(request_id="-"), NetworkRevisions)
            context.terminal.show([revisions_part(past)])
        case "confirm":
            context.require_admin()
            await context.order(NetworkConfirm(request_id="-"), timeout_s=TIMEOUT_S)
        case "cancel":
            context.require_admin()
            await context.order(NetworkCancel(request_id="-"), timeout_s=TIMEOUT_S)


def complete(words: Sequence[str], _known: object) -> Sequence[str]:
    return () if words else ("show", "stats", "firewall", "history", "confirm", "cancel")


COMMAND = Command(
    "net",
    "ports, addresses, firewall",
    (
        ("net", "draws the ports and shows what they have"),
        ("net stats", "connections, bandwidth, latency and errors, live"),
        ("net firewall", "says what it lets through, and how often"),
        ("net history", "lists what was in effect"),
        ("net confirm", "keeps what was applied for a time"),
        ("net cancel", "takes it back now"),
    ),
    run,
    complete,
    aliases=("network",),
)
