"""`coral-reef config`: check the owner's files, show what holds, print their schema."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from appliance.config.errors import ConfigError, Problem, Severity
from appliance.config.load import check, load
from appliance.config.schema import schema
from appliance.config.show import show
from appliance.paths import Paths

from .exit_status import ExitStatus
from .place import add_place_options, paths_of
from .tables import print_json


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "config", help="check or show the configuration", description="appliance.toml and network.yaml."
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)

    checking = actions.add_parser(
        "check",
        help="say what is wrong with the files",
        description="Prints every problem of each file as FILE:LINE: key: what is wrong, what was expected.",
    )
    checking.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="default: the appliance's own two"
    )
    checking.add_argument("--json", action="store_true", help="print JSON for programs")
    add_place_options(checking)
    checking.set_defaults(run=run_check)

    showing = actions.add_parser(
        "show",
        help="show what holds",
        description="Prints every setting with its value; secrets stay hidden.",
    )
    showing.add_argument("--json", action="store_true", help="print JSON for programs")
    add_place_options(showing)
    showing.set_defaults(run=run_show)

    printing = actions.add_parser(
        "schema", help="print the JSON Schema", description="Prints the JSON Schema of both files, or of one."
    )
    printing.add_argument("file", nargs="?", choices=("appliance.toml", "network.yaml"), metavar="FILE")
    printing.set_defaults(run=run_schema)


def run_check(arguments: argparse.Namespace) -> int:
    files: list[Path] = arguments.files
    if not files:
        paths = paths_of(arguments)
        files = [path for path in (paths.appliance_toml, paths.network_yaml) if path.exists()]
    problems = [problem for path in files for problem in check(path)]
    errors = sum(problem.severity is Severity.ERROR for problem in problems)
    if arguments.json:
        print_json(problems)
    else:
        for problem in problems:
            print(_line(problem))
        warned = len(problems) - errors
        if not files:
            print("no configuration files: every setting has its default")
        elif not problems:
            print(f"{', '.join(map(str, files))}: fine")
        else:
            print(f"{_count(errors, 'error')}, {_count(warned, 'warning')}", file=sys.stderr)
    return ExitStatus.BAD_CONFIGURATION if errors else ExitStatus.OK


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _line(problem: Problem) -> str:
    return str(problem) if problem.severity is Severity.ERROR else f"{problem} (a warning)"


def run_show(arguments: argparse.Namespace) -> int:
    settings = load_or_explain(paths_of(arguments))
    if settings is None:
        return ExitStatus.BAD_CONFIGURATION
    plain = show(settings)
    if arguments.json:
        print(json.dumps(plain, indent=2, ensure_ascii=False))
    else:
        for key, value in _flat("", plain):
            print(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    return ExitStatus.OK


def load_or_explain(paths: Paths) -> Any:
    """The settings; None, with every problem on standard error, when a file has errors."""
    try:
        return load(paths)
    except ConfigError as error:
        for problem in error.problems:
            print(_line(problem), file=sys.stderr)
        return None


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [
            item for key, each in value.items() for item in _flat(f"{prefix}.{key}" if prefix else key, each)
        ]
    return [(prefix, value)]


def run_schema(arguments: argparse.Namespace) -> int:
    found = schema()
    print(json.dumps(found[arguments.file] if arguments.file else found, indent=2, ensure_ascii=False))
    return ExitStatus.OK
