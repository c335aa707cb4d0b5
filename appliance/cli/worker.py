"""`coral-reef worker list|restart`: the processes that run the models."""

from __future__ import annotations

import argparse
from typing import Any

from appliance.client.workers import workers_table
from appliance.wire.messages import WorkerRestart

from .ask import REQUEST_ID, ask_status, order
from .exit_status import ExitStatus
from .place import add_place_options, paths_of
from .tables import print_json, show

#: Draining, then loading: a large model on a slow disk takes its minutes.
RESTART_TIMEOUT_S = 600.0


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "worker", help="show or restart the workers", description="The processes that run the models."
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list them", description="Lists every worker and what it does.")
    listing.add_argument("--json", action="store_true", help="print JSON for programs")
    add_place_options(listing)
    listing.set_defaults(run=run_list)
    restarting = actions.add_parser(
        "restart",
        help="restart one",
        description="Lets a worker's replies end (for at most supervisor.drain_s), starts it anew and waits until it is ready. "
        "Other workers go on undisturbed.",
    )
    restarting.add_argument("name", metavar="WORKER", help="as 'coral-reef worker list' shows it")
    add_place_options(restarting)
    restarting.set_defaults(run=run_restart)


def run_list(arguments: argparse.Namespace) -> int:
    workers = ask_status(paths_of(arguments)).workers
    if arguments.json:
        print_json(workers)
    else:
        show([workers_table(workers)])
    return ExitStatus.OK


def run_restart(arguments: argparse.Namespace) -> int:
    message = WorkerRestart(request_id=REQUEST_ID, name=arguments.name)
    print(order(paths_of(arguments), message, timeout_s=RESTART_TIMEOUT_S))
    return ExitStatus.OK
