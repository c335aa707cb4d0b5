"""`net`: the network as it is, its firewall, and the last word on a change."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from appliance.client.network import firewall_lines, network_parts, revisions_part
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

from . import net_doctor, net_stats
from .command import Command, only, wrong_usage

TIMEOUT_S = 600.0

ACTIONS = ("show", "stats", "doctor", "firewall", "history", "confirm", "cancel")


async def run(context: Context, words: Sequence[str]) -> None:
    action, host = only(COMMAND, words, *ACTIONS, names=1)
    if host and action != "doctor":
        raise wrong_usage(COMMAND)
    match action:
        case "show":
            state = await context.control.ask(NetworkLook(request_id="-"), NetworkState)
            context.say(f"mode {state.mode}; this machine is called {socket.gethostname()}")
            context.terminal.show(network_parts(state, columns=context.terminal.size().columns))
        case "stats":
            await net_stats.run(context)
        case "doctor":
            context.require_admin()
            await net_doctor.run(context, host[0] if host else None)
        case "firewall":
            found = await context.control.ask(FirewallLook(request_id="-"), FirewallState)
            context.terminal.show(firewall_lines(found))
        case "history":
            context.require_admin()
            past = await context.control.ask(NetworkPast(request_id="-"), NetworkRevisions)
            context.terminal.show([revisions_part(past)])
        case "confirm":
            context.require_admin()
            await context.order(NetworkConfirm(request_id="-"), timeout_s=TIMEOUT_S)
        case "cancel":
            context.require_admin()
            await context.order(NetworkCancel(request_id="-"), timeout_s=TIMEOUT_S)


def complete(words: Sequence[str], _known: object) -> Sequence[str]:
    return () if words else ACTIONS


COMMAND = Command(
    "net",
    "ports, addresses, firewall",
    (
        ("net", "draws the ports and shows what they have"),
        ("net stats", "connections, bandwidth, latency and errors, live"),
        ("net doctor [HOST]", "finds out what is wrong, and says what to do"),
        ("net firewall", "says what it lets through, and how often"),
        ("net history", "lists what was in effect"),
        ("net confirm", "keeps what was applied for a time"),
        ("net cancel", "takes it back now"),
    ),
    run,
    complete,
    aliases=("network",),
)
