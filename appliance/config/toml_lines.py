"""The line of each key of a TOML text, which `tomli` does not tell.

This reads only as much of TOML as places need: headers, keys, and where values end. It never judges: at the
first thing it does not understand it stops, and `tomli` says what is wrong.
"""

from __future__ import annotations

import contextlib
import re

from appliance.config.document import DEPTH_LIMIT, KeyPath, LineIndex, TooDeep

_BLANKS = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACES = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# No possessive quantifiers: before 3.11.5 Python matches them wrongly around alternatives (gh-106052).
# Longest first: `""` is empty only when no third quote follows. Two quotes may touch the closing three.
_STRING = re.compile(
    r'"""(?:[^\\"]|\\[\s\S]|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}"
    r'|"(?:[^\\"\n]|\\[^\n])*"'
    r"|'[^'\n]*'"
)
_SCALAR = re.compile(r"[^,\]}#\n]+")


def toml_lines(text: str) -> dict[KeyPath, int]:
    """Every key path of `text`, items of lists included, with its line. Raises TooDeep."""
    scanner = _Scanner(text)
    with contextlib.suppress(_Stop):  # tomli finds the same place and explains it
        scanner.scan()
    return scanner.lines


class _Stop(Exception):
    """Not TOML from here on."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._text = text
        self._at = 0
        self._index = LineIndex(text)
        self._lengths: dict[KeyPath, int] = {}  # of arrays of tables

    def scan(self) -> None:
        table: KeyPath = ()
        while True:
            self._skip(_BLANKS)
            if self._at == len(self._text):
                return
            if self._text.startswith("[", self._at):
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> KeyPath:
        line = self._index.line(self._at)
        repeated = self._text.startswith("[[", self._at)
        self._at += 2 if repeated else 1
        parts = [part for part, _ in self._key(0)]
        self._expect("]]" if repeated else "]")
        path: KeyPath = ()
        for part in parts[:-1]:
            path = self._inside((*path, part))
            self.lines.setdefault(path, line)
        path = (*path, parts[-1])
        if not repeated:
            path = self._inside(path)
            self.lines[path] = line  # wins over a header of its sub-table further up
            return path
        self.lines.setdefault(path, line)
        self._lengths[path] = self._lengths.get(path, 0) + 1
        path = self._inside(path)
        self.lines[path] = line
        return path

    def _inside(self, path: KeyPath) -> KeyPath:
        """A header that names an array of tables means its last item."""
        length = self._lengths.get(path)
        return path if length is None else (*path, length - 1)

    def _pair(self, table: KeyPath) -> None:
        path = table
        for part, line in self._key(len(table)):
            path = (*path, part)
            self.lines.setdefault(path, line)
        self._expect("=")
        self._skip(_SPACES)
        self._value(path)

    def _key(self, depth: int) -> list[tuple[str, int]]:
        parts: list[tuple[str, int]] = []
        while True:
            self._skip(_SPACES)
            line = self._index.line(self._at)
            if match := _BARE_KEY.match(self._text, self._at):
                name = match[0]
            elif (match := _STRING.match(self._text, self._at)) and not match[0].startswith(('"""', "'''")):
                name = _unquoted(match[0])
            else:
                raise _Stop
            self._at = match.end()
            parts.append((name, line))
            if depth + len(parts) > DEPTH_LIMIT:
                raise TooDeep(line)
            self._skip(_SPACES)
            if not self._text.startswith(".", self._at):
                return parts
            self._at += 1

    def _value(self, path: KeyPath) -> None:
        if self._text.startswith("[", self._at):
            self._array(path)
        elif self._text.startswith("{", self._at):
            self._inline_table(path)
        elif match := _STRING.match(self._text, self._at) or _SCALAR.match(self._text, self._at):
            self._at = match.end()
        else:
            raise _Stop

    def _array(self, path: KeyPath) -> None:
        if len(path) >= DEPTH_LIMIT:
            raise TooDeep(self._index.line(self._at))
        self._at += 1
        number = 0
        while not self._closes("]"):
            item = (*path, number)
            self.lines[item] = self._index.line(self._at)
            self._value(item)
            self._comma("]")
            number += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        while not self._closes("}"):
            self._pair(path)
            self._comma("}")

    def _closes(self, bracket: str) -> bool:
        self._skip(_BLANKS)
        if not self._text.startswith(bracket, self._at):
            return False
        self._at += 1
        return True

    def _comma(self, bracket: str) -> None:
        self._skip(_BLANKS)
        if self._text.startswith(",", self._at):
            self._at += 1
        elif not self._text.startswith(bracket, self._at):
            raise _Stop

    def _skip(self, pattern: re.Pattern[str]) -> None:
        if match := pattern.match(self._text, self._at):
            self._at = match.end()

    def _expect(self, mark: str) -> None:
        if not self._text.startswith(mark, self._at):
            raise _Stop
        self._at += len(mark)


def _unquoted(literal: str) -> str:
    """The key that a quoted key means."""
    if literal.startswith("'") or "\\" not in literal:
        return literal[1:-1]
    import tomli  # it knows the escapes

    try:
        return str(tomli.loads(f"key = {literal}")["key"])
    except ValueError:
        raise _Stop from None
