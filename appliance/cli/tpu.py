"""`coral-reef tpu list|show|watch|reset|quarantine`: the Edge TPUs and the trays that they are in."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import msgspec

from appliance.paths import Paths
from appliance.wire.errors import Disconnected, WireError
from appliance.wire.messages import (
    EventsLost,
    Status,
    StatusRequest,
    Subscribe,
    Topic,
    Tpu,
    TpuChanged,
    TpuQuarantine,
    TpuReset,
)

from .ask import REQUEST_ID, ask_status, connected, order
from .exit_status import ExitStatus, Failed
from .place import add_place_options, paths_of
from .tables import duration, print_json, print_table
from .tower import print_tower

#: A reset takes some tenths of a second; a port that hangs, much longer.
RESET_TIMEOUT_S = 60.0
QUARANTINE_TIMEOUT_S = 10.0

#: How long the shell's completion may take.
COMPLETION_TIMEOUT_S = 1.0


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "tpu", help="show the Edge TPUs, take one out of use", description="The Edge TPUs and their trays."
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list",
        help="list them",
        description="Lists every TPU, then draws the tower: a row a tray, the highest on top, a place a slot.",
    )
    listing.set_defaults(run=run_list)
    showing = actions.add_parser("show", help="show one", description="Shows all that is known of one TPU.")
    showing.set_defaults(run=run_show)
    watching = actions.add_parser(
        "watch",
        help="show what changes",
        description="Prints a line for each TPU, then one whenever one changes, until Ctrl-C; with --json, an object a line.",
    )
    watching.set_defaults(run=run_watch)
    for each in (listing, showing, watching):
        each.add_argument("--json", action="store_true", help="print JSON for programs")
    resetting = actions.add_parser(
        "reset",
        help="reset one and use it again",
        description="Resets a TPU, forgets how often it has failed, and uses it again, also when it was in quarantine.",
    )
    resetting.set_defaults(run=run_reset)
    quarantining = actions.add_parser(
        "quarantine",
        help="use one no more",
        description="Takes a TPU out of use until 'coral-reef tpu reset'.",
    )
    quarantining.set_defaults(run=run_quarantine)
    for each in (showing, resetting, quarantining):
        named = each.add_argument("id", metavar="TPU", help="as 'coral-reef tpu list' shows it")
        named.completer = complete_tpu
    for each in (listing, showing, watching, resetting, quarantining):
        add_place_options(each)


def complete_tpu(*, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """The ids of the running appliance's TPUs, for the shell's completion."""
    try:
        return [tpu.id for tpu in ask_status(paths_of(parsed_args), timeout_s=COMPLETION_TIMEOUT_S).tpus]
    except Failed:
        return []


def run_list(arguments: argparse.Namespace) -> int:
    status = ask_status(paths_of(arguments))
    if arguments.json:
        print_json({"tpus": status.tpus, "trays": status.trays, "hotplug": status.hotplug})
    else:
        show_tpus(status)
    return ExitStatus.OK


def show_tpus(status: Status) -> None:
    """Prints them for people."""
    if status.tpus:
        print_table(
            ("tpu", "tray", ">slot", "role", "state", ">temp", "worker", ">since", "note"),
            [
                (
                    tpu.id,
                    tpu.tray,
                    str(tpu.slot),
                    f"{tpu.role} (reserve)" if tpu.stands_in else tpu.role,
                    in_words(tpu),
                    celsius(tpu),
                    tpu.worker,
                    duration(tpu.since_s),
                    tpu.detail,
                )
                for tpu in status.tpus
            ],
        )
    else:
        print("No TPU is attached: the processor runs all models.")
    print_tower(status)


def run_show(arguments: argparse.Namespace) -> int:
    found = [tpu for tpu in ask_status(paths_of(arguments)).tpus if tpu.id == arguments.id]
    if not found:
        raise Failed(f"no TPU is called {arguments.id!r}; 'coral-reef tpu list' shows them")
    if arguments.json:
        print_json(found[0])
    else:
        show_tpu(found[0])
    return ExitStatus.OK


def show_tpu(tpu: Tpu) -> None:
    """Prints one for people, line by line."""
    speed = f"USB, {tpu.speed_mbps:,} Mbit/s" if tpu.speed_mbps else str(tpu.bus)
    if 0 < tpu.speed_mbps < 5000:
        speed += " (slow: use a USB 3 port and cable)"
    lines = (
        ("tpu", tpu.id),
        ("place", f"{tpu.tray}, slot {tpu.slot}"),
        ("role", f"{tpu.role}, in place of one that failed" if tpu.stands_in else tpu.role),
        ("state", f"{in_words(tpu)} for {duration(tpu.since_s)}{f': {tpu.detail}' if tpu.detail else ''}"),
        ("worker", tpu.worker or "none"),
        ("may work", f"{tpu.load_limit:.0%}"),
        ("temperature", celsius(tpu) or "not told"),
        ("bus", speed),
        ("node", tpu.node or "none"),
        ("sysfs", tpu.sysfs or "none"),
    )
    for label, text in lines:
        print(f"{label:<13}{text}")


def run_watch(arguments: argparse.Namespace) -> int:
    asyncio.run(_watch(paths_of(arguments), as_json=arguments.json))
    return ExitStatus.OK


async def _watch(paths: Paths, *, as_json: bool) -> None:
    try:
        async with connected(paths) as connection:
            await connection.send(Subscribe(topics=[Topic.TPU]))
            await connection.send(StatusRequest())
            while True:
                match await connection.receive():
                    case Status(tpus=tpus):
                        for tpu in tpus:
                            print(msgspec.json.encode(tpu).decode() if as_json else line(tpu), flush=True)
                    case TpuChanged(tpu=tpu):
                        print(msgspec.json.encode(tpu).decode() if as_json else line(tpu), flush=True)
                    case EventsLost(count=count) if not as_json:
                        print(f"({count} changes were too fast to be told)", flush=True)
    except Disconnected as error:
        raise Failed(f"the appliance does not run (any more): {error}", ExitStatus.UNAVAILABLE) from None
    except WireError as error:
        raise Failed(str(error)) from None


def line(tpu: Tpu) -> str:
    """A change in a line."""
    parts = [f"{tpu.id:<20} {tpu.tray} slot {tpu.slot}: {in_words(tpu)}"]
    if tpu.worker:
        parts.append(f"worker {tpu.worker}")
    if tpu.stands_in:
        parts.append(f"stands in as {tpu.role}")
    if warmth := celsius(tpu):
        parts.append(warmth)
    return ", ".join(parts) + (f": {tpu.detail}" if tpu.detail else "")


def run_reset(arguments: argparse.Namespace) -> int:
    message = TpuReset(request_id=REQUEST_ID, id=arguments.id)
    print(order(paths_of(arguments), message, timeout_s=RESET_TIMEOUT_S))
    return ExitStatus.OK


def run_quarantine(arguments: argparse.Namespace) -> int:
    message = TpuQuarantine(request_id=REQUEST_ID, id=arguments.id)
    print(order(paths_of(arguments), message, timeout_s=QUARANTINE_TIMEOUT_S))
    return ExitStatus.OK


def in_words(tpu: Tpu) -> str:
    """Its state as people say it."""
    return tpu.state.replace("_", " ")


def celsius(tpu: Tpu) -> str:
    """Its temperature; empty when the driver does not tell."""
    return "" if tpu.temperature_c is None else f"{tpu.temperature_c:.0f} °C"
