"""`coral-reef model list`: the models that the appliance has."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from appliance.inference import models
from appliance.inference.errors import InferenceError
from appliance.paths import Paths
from appliance.wire.messages import ModelStatus

from .ask import ask_status
from .exit_status import ExitStatus, Failed
from .place import add_place_options, paths_of
from .tables import print_table, size


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "model", help="show the models", description="The models that the appliance has."
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list", help="list them", description="Lists every model and which worker runs it."
    )
    listing.add_argument("--json", action="store_true", help="print JSON for programs")
    add_place_options(listing)
    listing.set_defaults(run=run_list)


def run_list(arguments: argparse.Namespace) -> int:
    found = known(paths_of(arguments))
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
        return ExitStatus.OK
    rows = [
        (
            model.name,
            model.kind,
            size(model.size_bytes),
            str(model.context_tokens or ""),
            "ships" if model.shipped else "yours",
            ", ".join(model.loaded_by) or "-",
            model.problem,
        )
        for model in found
    ]
    print_table(("model", "kind", ">size", ">window", "from", "runs on", "note"), rows)
    return ExitStatus.OK


def known(paths: Paths) -> list[ModelStatus]:
    """What the running appliance says; when none runs, what lies on disk."""
    try:
        return ask_status(paths).models
    except Failed as error:
        if error.status is not ExitStatus.UNAVAILABLE:
            raise
    try:
        return [
            ModelStatus(
                name=model.name,
                kind=model.entry.kind,
                size_bytes=model.entry.size_bytes,
                sha256=model.entry.sha256,
                shipped=model.shipped,
                loaded_by=[],
                context_tokens=model.entry.context_tokens,
            )
            for model in models.catalogue(paths).values()
        ]
    except InferenceError as error:
        raise Failed(str(error)) from None
