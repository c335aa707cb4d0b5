"""`coral-reef tpu list|show|watch|reset|quarantine`: the Edge TPUs and the trays that they are in."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import msgspec

from appliance.client.tpus import change_line, tpu_lines, tpus_parts
from appliance.paths import Paths
from appliance.wire.errors import Disconnected, WireError
from appliance.wire.messages import (
    EventsLost,
    Status,
    StatusRequest,
    Subscribe,
    Topic,
    TpuChanged,
    TpuQuarantine,
    TpuReset,
)

from .ask import REQUEST_ID, ask_status, connected, order
from .exit_status import ExitStatus, Failed
from .place import add_place_options, paths_of
from .tables import print_json, show

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
        show(tpus_parts(status))
    return ExitStatus.OK


def run_show(arguments: argparse.Namespace) -> int:
    found = [tpu for tpu in ask_status(paths_of(arguments)).tpus if tpu.id == arguments.id]
    if not found:
        raise Failed(f"no TPU is called {arguments.id!r}; 'coral-reef tpu list' shows them")
    if arguments.json:
        print_json(found[0])
    else:
        show(tpu_lines(found[0]))
    return ExitStatus.OK


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
                            print(
                                msgspec.json.encode(tpu).decode() if as_json else change_line(tpu), flush=True
                            )
                    case TpuChanged(tpu=tpu):
                        print(msgspec.json.encode(tpu).decode() if as_json else change_line(tpu), flush=True)
                    case EventsLost(count=count) if not as_json:
                        print(f"({count} changes were too fast to be told)", flush=True)
    except Disconnected as error:
        raise Failed(f"the appliance does not run (any more): {error}", ExitStatus.UNAVAILABLE) from None
    except WireError as error:
        raise Failed(str(error)) from None


def run_reset(arguments: argparse.Namespace) -> int:
    message = TpuReset(request_id=REQUEST_ID, id=arguments.id)
    print(order(paths_of(arguments), message, timeout_s=RESET_TIMEOUT_S))
    return ExitStatus.OK


def run_quarantine(arguments: argparse.Namespace) -> int:
    message = TpuQuarantine(request_id=REQUEST_ID, id=arguments.id)
    print(order(paths_of(arguments), message, timeout_s=QUARANTINE_TIMEOUT_S))
    return ExitStatus.OK
