"""What commands print: lines and tables for people, JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import msgspec

from appliance.client.screen import Part


def print_json(value: object) -> None:
    """Prints a struct, or a list of them, as programs want to read it."""
    print(msgspec.json.format(msgspec.json.encode(value)).decode())


def show(parts: Iterable[Part]) -> None:
    """Prints for people; in a pipe there is no edge to fold at."""
    from rich.console import Console

    from appliance.client import screen

    width = None if sys.stdout.isatty() else 1000
    screen.show(parts, Console(highlight=False, width=width))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table as `screen.table` makes it."""
    from appliance.client.screen import table

    show([table(columns, rows)])
