"""What was typed before, to be had again with the arrow keys: in memory, or in a file a user that outlives the session."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import History as ToolkitHistory

from appliance.client.screen import printable
from appliance.files import write_atomically

#: Lines that are kept, and how much of a file is read: each line has at most `intake.LINE_LIMIT_BYTES`.
LINES = 500
FILE_LIMIT_BYTES = 1024 * 1024

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class History(ToolkitHistory):
    """The newest lines, the last one last."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        self._path, self._changed = path, False
        self.lines: list[str] = [] if path is None else _read(path)

    def load_history_strings(self) -> Iterable[str]:
        return reversed(self.lines)

    def store_string(self, string: str) -> None:
        """Keeps a line, once where it is repeated."""
        if string.strip() and self.lines[-1:] != [string]:
            self.lines = [*self.lines, string][-LINES:]
            self._changed = True

    def save(self) -> None:
        """Writes the file, if there is one. A disk that is full must not keep anybody from logging out."""
        if self._path is None or not self._changed:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._path, "".join(f"{each}\n" for each in self.lines).encode(), mode=0o600)
            self._changed = False


def history_of(folder: Path, user: str) -> History:
    """A user's; in memory alone for a name that is none for a file."""
    return History(folder / user if _NAME.fullmatch(user) else None)


def _read(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            text = file.read(FILE_LIMIT_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    return [printable(line) for line in text.splitlines() if line.strip()][-LINES:]
