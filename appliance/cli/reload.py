"""`coral-reef reload`: the running appliance reads its configuration again."""

from __future__ import annotations

import argparse
from typing import Any

from appliance.wire.messages import Reload

from .ask import REQUEST_ID, order
from .exit_status import ExitStatus
from .place import add_place_options, paths_of

#: Reading the files takes milliseconds; a changed model is loaded.
RELOAD_TIMEOUT_S = 120.0


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "reload",
        help="read the configuration again",
        description="Has the running appliance read its configuration again, waits, and says what changed. "
        "A configuration with errors is refused with its lines; the one that runs stays.",
    )
    add_place_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    print(order(paths_of(arguments), Reload(request_id=REQUEST_ID), timeout_s=RELOAD_TIMEOUT_S))
    return ExitStatus.OK
