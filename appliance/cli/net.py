"""`coral-reef net ...`: the network as it is, what network.yaml would change, and changing it without locking oneself out."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any, TypeVar

from appliance.client.network import firewall_lines, network_parts, revisions_part
from appliance.config.errors import ConfigError
from appliance.config.source import FILE_LIMIT_BYTES, read_source
from appliance.network.doctor.visit import roles_of
from appliance.wire.messages import (
    FirewallLook,
    FirewallState,
    Message,
    NetworkApply,
    NetworkBack,
    NetworkCancel,
    NetworkConfirm,
    NetworkDiff,
    NetworkLook,
    NetworkPast,
    NetworkPlan,
    NetworkRevisions,
    NetworkRevisionShown,
    NetworkRevisionText,
    NetworkState,
)

from . import net_doctor, net_stats
from .ask import REQUEST_ID, ask, order
from .exit_status import ExitStatus, Failed
from .place import add_place_options, paths_of
from .tables import print_json, show

T = TypeVar("T", bound=Message)

LOOK_TIMEOUT_S = 20.0

#: DHCP may take 45 s a port, Wi-Fi with a wrong password 30 s; then everything goes back.
APPLY_TIMEOUT_S = 600.0


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "net",
        help="show the network, change it safely",
        description="The network: what there is, what network.yaml would change, and a change that goes back by itself.",
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)

    def action(name: str, run: Any, short: str, long: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = actions.add_parser(name, help=short, description=long)
        made.set_defaults(run=run)
        return made

    showing = action(
        "show",
        run_show,
        "show the ports",
        "Draws the rear panel, then lists interfaces, addresses and traffic.",
    )
    showing.add_argument("--json", action="store_true", help="print JSON for programs")
    comparing = action(
        "diff",
        run_diff,
        "show what applying would change",
        "Shows what 'net apply' would do, and touches nothing. Nothing is printed when nothing would change.",
    )
    applying = action(
        "apply",
        run_apply,
        "make it so",
        "Makes the network as network.yaml says, checks that it is so, and puts everything back when it is not. "
        "With FILE, that file takes the place of network.yaml when all went well.",
    )
    for each in (comparing, applying):
        each.add_argument(
            "file", metavar="FILE", nargs="?", type=Path, help="instead of network.yaml; - for standard input"
        )
    applying.add_argument("--why", metavar="TEXT", default="", help="for the history")
    going_back = action(
        "rollback",
        run_rollback,
        "go back to what was before",
        "Applies what was in effect STEPS changes ago. 'net history' lists them.",
    )
    going_back.add_argument(
        "steps", metavar="STEPS", type=int, nargs="?", default=1, help="1 unless said otherwise"
    )
    for each in (applying, going_back):
        each.add_argument(
            "--confirm",
            metavar="SECONDS",
            type=float,
            default=0.0,
            help="go back by itself unless 'net confirm' follows within this time",
        )
    history = action(
        "history", run_history, "list what was in effect", "Lists what was in effect, newest first."
    )
    history.add_argument(
        "--show", metavar="STEPS", type=int, help="print the text of that one, secrets included"
    )
    confirming = action(
        "confirm", run_confirm, "keep what was applied", "What was applied with --confirm stays."
    )
    cancelling = action(
        "cancel", run_cancel, "do not keep it", "What was applied with --confirm goes back now."
    )
    firewall = action(
        "firewall", run_firewall, "explain the firewall", "Says each rule in words, with what it has counted."
    )
    statistics = action("stats", net_stats.main, "show the traffic, live", net_stats.DESCRIPTION)
    net_stats.add_arguments(statistics)
    examining = action("doctor", run_doctor, "find out what is wrong", net_doctor.DESCRIPTION)
    examining.epilog = net_doctor.COMMANDS
    examining.formatter_class = argparse.RawDescriptionHelpFormatter
    net_doctor.add_arguments(examining)
    for each in (showing, comparing, applying, going_back, history, confirming, cancelling, firewall):
        add_place_options(each)


def run_show(arguments: argparse.Namespace) -> int:
    state = _asked(arguments, NetworkLook(request_id=REQUEST_ID), NetworkState)
    if arguments.json:
        print_json(state)
    else:
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        show(network_parts(state, columns=columns))
    return ExitStatus.OK


def run_diff(arguments: argparse.Namespace) -> int:
    found = _asked(arguments, NetworkDiff(request_id=REQUEST_ID, text=_text(arguments.file)), NetworkPlan)
    for line in found.warnings:
        print(f"coral-reef: {line}", file=sys.stderr)
    show(found.lines)
    return ExitStatus.OK


def run_apply(arguments: argparse.Namespace) -> int:
    message = NetworkApply(
        request_id=REQUEST_ID,
        text=_text(arguments.file),
        confirm_s=_seconds(arguments.confirm),
        why=arguments.why[:256],
    )
    print(order(paths_of(arguments), message, timeout_s=APPLY_TIMEOUT_S))
    return ExitStatus.OK


def run_rollback(arguments: argparse.Namespace) -> int:
    message = NetworkBack(
        request_id=REQUEST_ID, steps=_steps(arguments.steps), confirm_s=_seconds(arguments.confirm)
    )
    print(order(paths_of(arguments), message, timeout_s=APPLY_TIMEOUT_S))
    return ExitStatus.OK


def run_history(arguments: argparse.Namespace) -> int:
    if arguments.show is not None:
        message = NetworkRevisionText(request_id=REQUEST_ID, steps=_steps(arguments.show))
        sys.stdout.write(_asked(arguments, message, NetworkRevisionShown).text)
        return ExitStatus.OK
    show([revisions_part(_asked(arguments, NetworkPast(request_id=REQUEST_ID), NetworkRevisions))])
    return ExitStatus.OK


def run_confirm(arguments: argparse.Namespace) -> int:
    print(order(paths_of(arguments), NetworkConfirm(request_id=REQUEST_ID), timeout_s=APPLY_TIMEOUT_S))
    return ExitStatus.OK


def run_cancel(arguments: argparse.Namespace) -> int:
    print(order(paths_of(arguments), NetworkCancel(request_id=REQUEST_ID), timeout_s=APPLY_TIMEOUT_S))
    return ExitStatus.OK


def run_firewall(arguments: argparse.Namespace) -> int:
    show(firewall_lines(_asked(arguments, FirewallLook(request_id=REQUEST_ID), FirewallState)))
    return ExitStatus.OK


def run_doctor(arguments: argparse.Namespace) -> int:
    try:
        state = _asked(arguments, NetworkLook(request_id=REQUEST_ID), NetworkState)
    except Failed:  # it is called when something does not work
        return net_doctor.main(arguments)
    return net_doctor.main(arguments, roles_of(state))


def _asked(arguments: argparse.Namespace, message: Message, answer: type[T]) -> T:
    return ask(paths_of(arguments), message, answer, timeout_s=LOOK_TIMEOUT_S)


def _text(file: Path | None) -> str | None:
    if file is None:
        return None
    if str(file) == "-":
        text: str | None = sys.stdin.read(FILE_LIMIT_BYTES + 1)
    else:
        try:
            text = read_source(file)
        except ConfigError as error:
            raise Failed(str(error), ExitStatus.BAD_CONFIGURATION) from None
    if text is None:
        raise Failed(f"{file} does not exist", ExitStatus.USAGE)
    if len(text.encode()) > FILE_LIMIT_BYTES:
        raise Failed(
            f"{file} is larger than {FILE_LIMIT_BYTES // 1024} KiB, expected less",
            ExitStatus.BAD_CONFIGURATION,
        )
    return text


def _seconds(given: float) -> float:
    if not 0 <= given <= 86_400:
        raise Failed(f"--confirm is {given:g}, expected seconds from 1 to 86400", ExitStatus.USAGE)
    return given


def _steps(given: int) -> int:
    if not 0 <= given <= 1000:
        raise Failed(
            f"STEPS is {given}, expected 0 or more; 'coral-reef net history' lists them", ExitStatus.USAGE
        )
    return given
