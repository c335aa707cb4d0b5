"""What is drawn for people: lines and tables, first made, then shown on whatever screen there is."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

#: A `str` is a line as it is: nothing in it is markup.
Part = str | Text | Table


def show(parts: Iterable[Part], screen: Console) -> None:
    """Draws one below the other. Tables fold at the edge of the screen; lines are the terminal's to break."""
    for part in parts:
        screen.print(renderable(part), soft_wrap=not isinstance(part, Table))


def renderable(part: Part) -> Text | Table:
    """What rich draws."""
    return Text(part) if isinstance(part, str) else part


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> Table:
    """A table as wide as its content; columns whose name starts with `>` are numbers, aligned right."""
    made = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        made.add_column(
            name.lstrip(">"), justify="right" if name.startswith(">") else "left", overflow="fold"
        )
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def printable(text: str) -> str:
    """Text without control characters but line ends and tabs: neither a model nor a file may steer the terminal."""
    return "".join(each for each in text if each in "\n\t" or unicodedata.category(each) != "Cc")
