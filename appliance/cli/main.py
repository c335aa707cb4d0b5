"""`coral-reef`: parses the command line and runs one subcommand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import argcomplete

from appliance import __version__

from . import (
    chat,
    completion,
    config,
    console,
    logs,
    model,
    net,
    reload,
    repair,
    run,
    status,
    tpu,
    user,
    worker,
)
from .exit_status import MEANINGS, ExitStatus, Failed


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; every subcommand adds its own part."""
    statuses = "\n".join(f"  {status:>3}  {meaning}" for status, meaning in MEANINGS.items())
    parser = argparse.ArgumentParser(
        prog="coral-reef",
        description="The Coral-Reef appliance: chat with AI personas that run on your own tower.",
        epilog=f"exit status:\n{statuses}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"coral-reef {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for module in (
        run,
        status,
        chat,
        console,
        model,
        worker,
        tpu,
        net,
        user,
        repair,
        logs,
        config,
        reload,
        completion,
    ):
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's own) and returns its exit status."""
    parser = build_parser()
    argcomplete.autocomplete(parser)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except Failed as error:
        print(f"coral-reef: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep the interpreter from complaining at exit.
        sys.stderr.close()
        return ExitStatus.OK
