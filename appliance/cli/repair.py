"""`coral-reef repair list|fix`: what is wrong, and what to do about it."""

from __future__ import annotations

import argparse
from typing import Any

from appliance.client.repairs import repair_lines
from appliance.wire.messages import RepairFix

from .ask import REQUEST_ID, ask_status, order
from .exit_status import ExitStatus
from .place import add_place_options, paths_of
from .tables import print_json, show

#: The longest fix restarts a worker.
FIX_TIMEOUT_S = 600.0


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "repair",
        help="show what is wrong, and repair it",
        description="Repairs: what you should know and may have to do.",
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list",
        help="list them",
        description="Lists what is wrong, worst first. Exit status 1 when anything is.",
    )
    listing.add_argument("--json", action="store_true", help="print JSON for programs")
    add_place_options(listing)
    listing.set_defaults(run=run_list)
    fixing = actions.add_parser(
        "fix",
        help="let the appliance repair one",
        description="Does what the repair offers, and waits for it.",
    )
    fixing.add_argument("id", metavar="ID", help="as 'coral-reef repair list' shows it")
    add_place_options(fixing)
    fixing.set_defaults(run=run_fix)


def run_list(arguments: argparse.Namespace) -> int:
    repairs = ask_status(paths_of(arguments)).repairs
    if arguments.json:
        print_json(repairs)
    else:
        show(repair_lines(repairs))
        if not repairs:
            print("Nothing needs a repair.")
    return ExitStatus.FAILED if repairs else ExitStatus.OK


def run_fix(arguments: argparse.Namespace) -> int:
    print(
        order(paths_of(arguments), RepairFix(request_id=REQUEST_ID, id=arguments.id), timeout_s=FIX_TIMEOUT_S)
    )
    return ExitStatus.OK
