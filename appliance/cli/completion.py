"""`coral-reef completion SHELL`: prints what makes the shell complete this command."""

from __future__ import annotations

import argparse
from typing import Any

from argcomplete.shell_integration import shellcode

from .exit_status import ExitStatus


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "completion",
        help="print the shell completion",
        description='Prints the completion for your shell: eval "$(coral-reef completion bash)"',
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    print(shellcode(["coral-reef"], shell=arguments.shell))
    return ExitStatus.OK
