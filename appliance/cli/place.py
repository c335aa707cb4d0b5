"""Which appliance a command means: its folders, its address and its key."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from appliance.client.address import gateway_url
from appliance.paths import Paths

from .exit_status import ExitStatus, Failed

#: The longest key file that is read: a key has some sixty characters.
KEY_LIMIT_BYTES = 1024


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that talks to an appliance."""
    parser.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        default=None,
        help="state folder (default: $CORAL_REEF_STATE, else .state if there is one here, else the system's)",
    )


def paths_of(arguments: argparse.Namespace) -> Paths:
    """The folders that the options and the environment name."""
    if arguments.state is not None:
        return Paths.under(arguments.state)
    if not os.environ.get("CORAL_REEF_STATE") and Path(".state").is_dir():
        return Paths.under(Path(".state"))
    return Paths.from_environment()


def url_of(arguments: argparse.Namespace, paths: Paths) -> str:
    """The gateway's address: `--url`, $CORAL_REEF_URL, or what the running appliance left in its folder."""
    given = arguments.url or os.environ.get("CORAL_REEF_URL")
    if given:
        return str(given).rstrip("/")
    found = gateway_url(paths)
    if found is None:
        raise Failed(
            f"no appliance is running with {paths.state}: start one with 'make run', or name its address with --url",
            ExitStatus.UNAVAILABLE,
        )
    return found


def key_of(arguments: argparse.Namespace, paths: Paths) -> str:
    """The API key: `--key-file`, $CORAL_REEF_KEY, or the appliance's first key. Never taken from the command line."""
    if arguments.key_file is None and os.environ.get("CORAL_REEF_KEY"):
        return _plain(os.environ["CORAL_REEF_KEY"].strip(), "$CORAL_REEF_KEY")
    path = arguments.key_file or paths.admin_key
    try:
        with path.open("rb") as file:
            return _plain(file.read(KEY_LIMIT_BYTES).decode("ascii", "replace").strip(), str(path))
    except OSError as error:
        raise Failed(
            f"cannot read the API key in {path}: {error.strerror}; name another with --key-file",
            ExitStatus.REFUSED,
        ) from None


def _plain(key: str, source: str) -> str:
    """A key goes into a header: printable ASCII without spaces, or it is none."""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise Failed(f"{source} holds no API key; name another file with --key-file", ExitStatus.REFUSED)
    return key
