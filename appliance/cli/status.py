"""`coral-reef status`: what runs, what it does, what is wrong."""

from __future__ import annotations

import argparse
from typing import Any

from appliance.client.status import status_parts

from .ask import ask_status
from .exit_status import ExitStatus
from .place import add_place_options, paths_of
from .tables import print_json, show


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "status", help="show what the appliance does", description="Shows workers, requests and repairs."
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    add_place_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    status = ask_status(paths_of(arguments))
    if arguments.json:
        print_json(status)
    else:
        show(status_parts(status))
    return ExitStatus.OK if status.ready else ExitStatus.FAILED
