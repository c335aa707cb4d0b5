"""`coral-reef model`: the models that the appliance has, and what each of them is."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

from appliance.client.amounts import size
from appliance.client.models import models_table
from appliance.client.screen import printable
from appliance.inference import models
from appliance.inference.errors import InferenceError
from appliance.inference.gguf import Gguf, read_gguf
from appliance.paths import Paths
from appliance.wire.messages import ModelStatus

from . import model_files, model_load
from .ask import ask_status
from .exit_status import ExitStatus, Failed
from .model_names import complete_model
from .place import add_place_options, paths_of
from .tables import print_json
from .tables import show as show_parts

#: Of a chat template that is shown: enough to see for which roles it is and what marks a turn.
TEMPLATE_LINES = 8
TEMPLATE_COLUMNS = 100


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "model",
        help="list, add, check, load and remove models",
        description="The models that the appliance has: those that ship and your own.",
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list", help="list them", description="Lists every model and which worker runs it."
    )
    listing.add_argument("--json", action="store_true", help="print JSON for programs")
    add_place_options(listing)
    listing.set_defaults(run=run_list)

    showing = actions.add_parser(
        "show",
        help="show what one is",
        description="Shows what a model's file says of it, its size and its checksum.",
    )
    named = showing.add_argument("name", metavar="NAME", help="as 'coral-reef model list' shows it")
    named.completer = complete_model
    showing.add_argument("--json", action="store_true", help="print JSON for programs")
    add_place_options(showing)
    showing.set_defaults(run=run_show)

    model_files.add_parsers(actions)
    model_load.add_parser(actions)


def run_list(arguments: argparse.Namespace) -> int:
    found = known(paths_of(arguments))
    if arguments.json:
        print_json(found)
        return ExitStatus.OK
    show_parts([models_table(found)])
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


def run_show(arguments: argparse.Namespace) -> int:
    paths = paths_of(arguments)
    try:
        model = models.find(paths, arguments.name)
    except InferenceError as error:
        raise Failed(str(error)) from None
    with readable(model):
        if model.path.suffix == ".tflite":
            # Imported here: it takes a tenth of a second, and every command imports this file.
            from . import model_tflite

            model_tflite.run_show(model, as_json=arguments.json)
            return ExitStatus.OK
        head = read_gguf(model.path)
    if arguments.json:
        show_json(model, head)
    else:
        show(model, head)
    return ExitStatus.OK


@contextlib.contextmanager
def readable(model: models.Model) -> Iterator[None]:
    """Failed, with the model's name and file, when it cannot be read."""
    try:
        yield
    except InferenceError as error:
        raise Failed(f"the model {model.name}: {model.path}: {error}", ExitStatus.BAD_MODEL) from None
    except OSError as error:
        raise Failed(
            f"the model {model.name}: {model.path}: {error.strerror}", ExitStatus.BAD_MODEL
        ) from None


def show_json(model: models.Model, head: Gguf) -> None:
    """A model for programs: its entry in the manifest, where it lies, and what its file says."""
    found = {"model": model.entry, "path": str(model.path), "shipped": model.shipped, "gguf": head}
    print_json(found)


def show(model: models.Model, head: Gguf) -> None:
    """Prints a model for people; of its template the first lines."""
    lines = [
        ("model", whose(model)),
        ("adapter of", model.entry.base),
        ("title", head.name),
        (
            "architecture",
            ", ".join(filter(None, (head.architecture, count(head.parameters), head.quantisation))),
        ),
        ("window", "" if model.entry.base else _window(head.context_tokens)),
        *on_disk(model),
    ]
    print_lines(lines)
    if not model.entry.base:
        print("chat template " + template(head.chat_template))


def _window(tokens: int) -> str:
    return f"{tokens} tokens" if tokens else "the file does not say"


def whose(model: models.Model) -> str:
    """A model's name, and whose it is."""
    return f"{model.name} ({'ships with Coral-Reef' if model.shipped else 'yours'})"


def on_disk(model: models.Model) -> list[tuple[str, str]]:
    """The lines on a model's file."""
    entry = model.entry
    return [
        ("size", f"{size(entry.size_bytes)} ({entry.size_bytes} bytes)"),
        ("SHA-256", entry.sha256),
        ("file", str(model.path)),
    ]


def print_lines(lines: list[tuple[str, str]]) -> None:
    """Labels and texts; what is empty is left out."""
    for label, text in lines:
        if text:
            print(f"{label:<14}{printable(text)}")


def template(text: str) -> str:
    """The first lines of a chat template, indented; `none` when there is none."""
    if not text.strip():
        return "none"
    lines = printable(text).expandtabs(2).splitlines()
    shown = [
        f"  {line[:TEMPLATE_COLUMNS]}{'...' if len(line) > TEMPLATE_COLUMNS else ''}"
        for line in lines[:TEMPLATE_LINES]
    ]
    if len(lines) > TEMPLATE_LINES:
        shown.append(f"  ({len(lines) - TEMPLATE_LINES} more lines)")
    return "\n".join([f"{len(text)} characters", *shown])


def count(parameters: int) -> str:
    """`4.95 million parameters`."""
    for unit, word in ((10**9, "billion"), (10**6, "million")):
        if parameters >= unit:
            return f"{parameters / unit:.3g} {word} parameters"
    return f"{parameters} parameters"
