"""`coral-reef model add|remove|verify`: the owner's own models on disk. The appliance need not run for it."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from appliance.client.amounts import size
from appliance.inference import library, models
from appliance.inference.choice import chosen_model
from appliance.inference.errors import (
    GgufBroken,
    InferenceError,
    LibraryBusy,
    ModelCorrupt,
    ModelRefused,
    NameTaken,
    NoSpace,
)
from appliance.paths import Paths

from .ask import ask_status
from .config import load_or_explain
from .exit_status import ExitStatus, Failed
from .model_names import complete_model, complete_own_model
from .place import add_place_options, paths_of
from .tables import print_json, print_table

_STATUS: dict[type[InferenceError], ExitStatus] = {
    GgufBroken: ExitStatus.BAD_MODEL,
    ModelCorrupt: ExitStatus.BAD_MODEL,
    NoSpace: ExitStatus.CANNOT_CREATE,
    LibraryBusy: ExitStatus.IN_USE,
    NameTaken: ExitStatus.FAILED,
    ModelRefused: ExitStatus.BAD_MODEL,
}


def add_parsers(actions: Any) -> None:
    adding = actions.add_parser(
        "add",
        help="add your own model",
        description="Checks a GGUF file and copies it into the appliance. It is used once it is loaded.",
    )
    adding.add_argument("file", type=Path, metavar="FILE", help="a model in one GGUF file")
    of_model = adding.add_argument(
        "--for", dest="base", default="", metavar="MODEL", help="the file is a LoRA adapter of this model"
    )
    of_model.completer = complete_model
    adding.add_argument(
        "--name", default="", metavar="NAME", help="what to call it (default: the file's name)"
    )
    adding.add_argument(
        "--replace", action="store_true", help="put it in the place of the model of that name"
    )
    adding.add_argument(
        "--sha256",
        type=_sha256,
        metavar="HEX",
        help="its checksum as its publisher says, to be compared",
    )
    adding.add_argument("--load", action="store_true", help="then let it write the replies")
    adding.add_argument("--json", action="store_true", help="print JSON for programs")
    add_place_options(adding)
    adding.set_defaults(run=run_add)

    removing = actions.add_parser(
        "remove", help="remove one of yours", description="Removes a model of your own and deletes its copy."
    )
    named = removing.add_argument("name", metavar="NAME", help="as 'coral-reef model list' shows it")
    named.completer = complete_own_model
    removing.add_argument("--json", action="store_true", help="print JSON for programs")
    add_place_options(removing)
    removing.set_defaults(run=run_remove)

    verifying = actions.add_parser(
        "verify",
        help="read them and compare checksums",
        description="Reads each model from the disk and compares its SHA-256. Exit status 65 when one is damaged.",
    )
    names = verifying.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    names.completer = complete_model
    verifying.add_argument("--json", action="store_true", help="print JSON for programs")
    add_place_options(verifying)
    verifying.set_defaults(run=run_verify)


def _sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no SHA-256: expected 64 hexadecimal digits")
    return text.lower()


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Errors of the library as one line and a status."""
    try:
        yield
    except InferenceError as error:
        raise Failed(str(error), _STATUS.get(type(error), ExitStatus.FAILED)) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise Failed(f"{where}{error.strerror or error}", ExitStatus.CANNOT_CREATE) from None


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal's standard error; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def run_add(arguments: argparse.Namespace) -> int:
    from . import model, model_load

    paths = paths_of(arguments)
    with explained(), progress_bar(f"copying {arguments.file.name}") as progress:
        added, head = library.add(
            paths,
            arguments.file,
            name=arguments.name,
            base=arguments.base,
            replace=arguments.replace,
            sha256=arguments.sha256 or "",
            progress=progress,
        )
    if not arguments.json:
        model.show(added, head)
    if not arguments.base and not head.chat_template.strip():
        print(
            "coral-reef: warning: the file has no chat template, so the engine takes a general one (ChatML): "
            "replies may be poor",
            file=sys.stderr,
        )
    loaded = None
    if arguments.load:
        loaded = model_load.load(paths, arguments.base or added.name)
    elif not arguments.json:
        what = "use it" if arguments.base else "let it write the replies"
        print(f"\nTo {what}: coral-reef model load {arguments.base or added.name}")
    if arguments.json:
        model.show_json(added, head)
    elif loaded is not None:
        model_load.show(loaded)
    return ExitStatus.OK


def run_remove(arguments: argparse.Namespace) -> int:
    paths = paths_of(arguments)
    name: str = arguments.name
    if name == _in_use(paths) and name not in models.shipped():
        raise Failed(
            f"{name} is the model that writes the replies: load another one first, with 'coral-reef model load NAME'",
            ExitStatus.IN_USE,
        )
    with explained():
        removed = library.remove(paths, name)
    if arguments.json:
        print_json(removed.entry)
    else:
        print(f"removed {name}: {size(removed.entry.size_bytes)} are free again")
    return ExitStatus.OK


def _in_use(paths: Paths) -> str:
    """The model that the appliance uses, or will use when it starts."""
    try:
        return ask_status(paths).model
    except Failed as error:
        if error.status is not ExitStatus.UNAVAILABLE:
            raise
    settings = load_or_explain(paths)
    if settings is None:
        raise Failed("which model is in use cannot be told: see above", ExitStatus.BAD_CONFIGURATION)
    return chosen_model(paths, settings.appliance.text.model)


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What `verify` found; `problem` is empty for a model that is whole."""

    name: str
    ok: bool
    problem: str = ""


def run_verify(arguments: argparse.Namespace) -> int:
    paths = paths_of(arguments)
    with explained():
        chosen = [models.find(paths, name) for name in arguments.names] or list(
            models.catalogue(paths).values()
        )
    found = [_verify(model) for model in chosen]
    if arguments.json:
        print_json(found)
    else:
        print_table(
            ("model", "state", "note"),
            [(each.name, "OK" if each.ok else "corrupt", each.problem) for each in found],
        )
    return ExitStatus.OK if all(each.ok for each in found) else ExitStatus.BAD_MODEL


def _verify(model: models.Model) -> Verified:
    total = model.entry.size_bytes
    try:
        with progress_bar(f"reading {model.name}") as progress:
            models.verify(model, lambda done: progress(done, total))
    except InferenceError as error:
        return Verified(name=model.name, ok=False, problem=str(error))
    return Verified(name=model.name, ok=True)
