"""`coral-reef user add|passwd|list|remove`: who may log in on a serial line."""

from __future__ import annotations

import argparse
import getpass
import sys
import time
from pathlib import Path
from typing import Any

from appliance.wire.messages import UserAdd, UserPassword, UserRemove

from .ask import REQUEST_ID, ask_users, order
from .exit_status import ExitStatus, Failed
from .place import add_place_options, paths_of
from .tables import print_json, print_table

#: A hash takes some 50 ms, and those who log in at the same moment take theirs.
CHANGE_TIMEOUT_S = 30.0

#: How long the shell's completion may take.
COMPLETION_TIMEOUT_S = 1.0

#: The longest line that is read as a password; a longer one is none.
LINE_LIMIT_BYTES = 4096


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "user",
        help="say who may log in on the serial console",
        description="Users of the serial console. Programs and the network use API keys instead.",
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list", help="list them", description="Lists every user and what they may do."
    )
    listing.add_argument("--json", action="store_true", help="print JSON for programs")
    listing.set_defaults(run=run_list)
    adding = actions.add_parser(
        "add",
        help="add one",
        description="Adds a user; asks for a password, twice, and does not show it. The first user must be an administrator.",
    )
    adding.add_argument("name", metavar="NAME", help="small letters, digits, '-' and '_'")
    adding.add_argument(
        "--role",
        choices=("admin", "user", "guest"),
        default="admin",
        help="admin may do everything, user and guest look and chat (default: admin)",
    )
    adding.set_defaults(run=run_add)
    changing = actions.add_parser(
        "passwd",
        help="give one another password",
        description="Asks for a user's new password, twice. What the user has open on a serial line ends.",
    )
    changing.set_defaults(run=run_passwd)
    removing = actions.add_parser(
        "remove",
        help="remove one",
        description="Removes a user. What the user has open on a serial line ends. The last administrator stays.",
    )
    removing.set_defaults(run=run_remove)
    for each in (changing, removing):
        named = each.add_argument("name", metavar="NAME", help="as 'coral-reef user list' shows it")
        named.completer = complete_user
    for each in (adding, changing):
        each.add_argument(
            "--password-stdin",
            action="store_true",
            help="read the password from the first line of standard input",
        )
    for each in (listing, adding, changing, removing):
        add_place_options(each)


def complete_user(*, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """The names that the running appliance knows, for the shell's completion."""
    try:
        return [user.name for user in ask_users(paths_of(parsed_args), timeout_s=COMPLETION_TIMEOUT_S)]
    except Failed:
        return []


def run_list(arguments: argparse.Namespace) -> int:
    users = ask_users(paths_of(arguments))
    if arguments.json:
        print_json(users)
    elif users:
        rows = [
            (user.name, user.role, time.strftime("%Y-%m-%d %H:%M", time.localtime(user.created_at)))
            for user in users
        ]
        print_table(("user", "role", "added"), rows)
    else:
        print("No user yet: 'coral-reef user add NAME' makes one, or whoever comes first on the USB line.")
    return ExitStatus.OK


def run_add(arguments: argparse.Namespace) -> int:
    message = UserAdd(
        request_id=REQUEST_ID, name=arguments.name, password=_password(arguments), role=arguments.role
    )
    print(order(paths_of(arguments), message, timeout_s=CHANGE_TIMEOUT_S))
    return ExitStatus.OK


def run_passwd(arguments: argparse.Namespace) -> int:
    message = UserPassword(request_id=REQUEST_ID, name=arguments.name, password=_password(arguments))
    print(order(paths_of(arguments), message, timeout_s=CHANGE_TIMEOUT_S))
    return ExitStatus.OK


def run_remove(arguments: argparse.Namespace) -> int:
    message = UserRemove(request_id=REQUEST_ID, name=arguments.name)
    print(order(paths_of(arguments), message, timeout_s=CHANGE_TIMEOUT_S))
    return ExitStatus.OK


def _password(arguments: argparse.Namespace) -> str:
    """What was typed, or piped in; never from the command line, which everybody on the machine can read. Failed when it will not
    do."""
    from appliance.identity.passwords import problem_of

    password = _piped() if arguments.password_stdin else _typed(arguments.name)
    if problem := problem_of(password):
        raise Failed(problem)
    return password


def _piped() -> str:
    line = sys.stdin.buffer.readline(LINE_LIMIT_BYTES)
    try:
        return line.rstrip(b"\r\n").decode("utf-8")
    except UnicodeDecodeError:
        raise Failed("the password on standard input is not UTF-8") from None


def _typed(name: str) -> str:
    try:
        Path("/dev/tty").open("rb").close()
    except OSError:
        raise Failed(
            "there is no terminal to ask for a password; pipe one in and say --password-stdin",
            ExitStatus.USAGE,
        ) from None
    try:
        password = getpass.getpass(f"Password for {name}: ")
        again = getpass.getpass("The same again: ")
    except EOFError:
        raise Failed("no password was typed") from None
    if again != password:
        raise Failed("the two passwords differ; nothing was changed")
    return password
