"""`coral-reef logs`: what the appliance said, and says."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from typing import Any

from appliance.paths import Paths
from appliance.telemetry.log_file import follow, last_lines

from .exit_status import ExitStatus, Failed
from .place import add_place_options, paths_of

LINES = 50


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "logs",
        help="show the log",
        description="Shows the newest lines of the appliance's log: from the journal on a tower, "
        "from the state folder where 'coral-reef run' runs.",
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    parser.add_argument(
        "-n", "--lines", type=_count, default=LINES, metavar="N", help="how many (default: %(default)s)"
    )
    add_place_options(parser)
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines: expected 0 to 1000000")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    paths = paths_of(arguments)
    if paths == Paths.system():
        return _journal(arguments)
    if not paths.log_file.exists() and not arguments.follow:
        raise Failed(
            f"there is no log in {paths.log_file.parent}: no appliance has run with {paths.state}",
            ExitStatus.UNAVAILABLE,
        )
    out = sys.stdout.buffer
    out.writelines(last_lines(paths.log_file, arguments.lines))
    out.flush()
    if arguments.follow:
        for data in follow(paths.log_file):
            out.write(data)
            out.flush()
    return ExitStatus.OK


def _journal(arguments: argparse.Namespace) -> int:
    """journalctl(1) knows the rest of what one could wish for."""
    program = shutil.which("journalctl")
    if program is None:
        raise Failed("there is no journalctl here: name a state folder with --state", ExitStatus.UNAVAILABLE)
    command = [program, "--unit=coral-reef*", f"--lines={arguments.lines}"]
    return subprocess.run([*command, "--follow"] if arguments.follow else command, check=False).returncode
