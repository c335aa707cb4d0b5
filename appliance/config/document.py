"""A file's content as plain values, with the line of each key."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from appliance.config.errors import Problem, Severity

#: Where a value stands: names of keys and, in lists, numbers from 0.
KeyPath = tuple[str | int, ...]

#: Levels of nesting that a file may have. Our settings need 4; Python's stack has room for hundreds.
DEPTH_LIMIT = 32

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SHOWN_CHARS = 80


class _Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"


#: Stands for a value that could not be read and has been complained about already.
UNKNOWN: Final = _Unknown()


class TooDeep(Exception):
    """A text is nested beyond `DEPTH_LIMIT` at `line`."""

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


class LineIndex:
    """Turns offsets into a text into line numbers. Only a line feed ends a line, as for `grep -n`."""

    def __init__(self, text: str) -> None:
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def line(self, offset: int) -> int:
        """The line, counted from 1, that holds the character at `offset`."""
        return bisect_right(self._starts, offset)


@dataclass(frozen=True)
class Document:
    """One file, parsed. `problems` are those that left the rest readable.

    `table_word` is what the format calls a mapping.
    """

    file: str
    data: dict[str, Any]
    lines: Mapping[KeyPath, int]
    table_word: str
    problems: tuple[Problem, ...] = ()

    def line(self, path: KeyPath) -> int:
        """The line of `path` or, where it is missing, of the nearest table around it, else 1."""
        for length in range(len(path), 0, -1):
            if found := self.lines.get(path[:length]):
                return found
        return 1

    def problem(self, path: KeyPath, message: str, severity: Severity = Severity.ERROR) -> Problem:
        """A problem of the value at `path`."""
        return Problem(self.file, self.line(path), dotted(path), message, severity)


def dotted(path: KeyPath) -> str:
    """`("ice_servers", 1, "url")` as `ice_servers[1].url`; keys that are no plain words stand in quotes."""
    parts: list[str] = []
    for part in path:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        else:
            parts.append(("." if parts else "") + (part if _BARE.fullmatch(part) else quoted(part)))
    return "".join(parts)


def quoted(text: str) -> str:
    """A text of the file inside a message: in quotes, shortened, without control characters."""
    if len(text) > _SHOWN_CHARS:
        text = text[: _SHOWN_CHARS - 3] + "..."
    shown = json.dumps(text, ensure_ascii=False)
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in shown
    )
