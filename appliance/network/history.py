"""What was in effect before: the last 50 texts of network.yaml that were applied and stayed, newest first.

A file each, numbered upwards, for root and the supervisor alone: an owner may have written a password into one.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import msgspec

from appliance.files import write_atomically

from .errors import NoSuchRevision

log = logging.getLogger(__name__)

KEPT = 50

#: As long as a text of network.yaml may be, twice escaped.
_LIMIT_BYTES = 4 * 1024 * 1024

_SUFFIX = ".json"


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """One text. `number` grows by one; `at` is seconds since the epoch; `by` is who applied it, `why` what they said."""

    number: int
    at: float
    text: str
    by: str = ""
    why: str = ""

    @property
    def digest(self) -> str:
        return digest(self.text)


def digest(text: str) -> str:
    """By which two texts are known to be the same, SHA-256 in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


class History:
    """The folder is made when there is something to keep."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, text: str, *, at: float, by: str = "", why: str = "") -> Revision:
        """Remembers a text that is in effect from now on; the same one again is no other revision. OSError."""
        numbers = self._numbers()
        newest = self._read(numbers[0]) if numbers else None
        if newest is not None and newest.text == text:
            return newest
        revision = Revision(number=(numbers[0] if numbers else 0) + 1, at=at, text=text, by=by, why=why)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(self._path(revision.number), msgspec.json.encode(revision), mode=0o600)
        for number in numbers[KEPT - 1 :]:
            self._path(number).unlink(missing_ok=True)
        return revision

    def all(self) -> list[Revision]:
        """Newest first. One that cannot be read is left out, and told in the log."""
        return [found for number in self._numbers() if (found := self._read(number)) is not None]

    def newest(self) -> Revision | None:
        """What is in effect; None before the first."""
        return next((found for number in self._numbers() if (found := self._read(number)) is not None), None)

    def back(self, steps: int) -> Revision:
        """0 is what is in effect, 1 what was before it. NoSuchRevision."""
        found = self.all()
        if not 0 <= steps < len(found):
            raise NoSuchRevision(
                f"there is no revision {steps}: the history has 0 to {len(found) - 1}"
                if found
                else "nothing was applied yet: the history is empty"
            )
        return found[steps]

    def _numbers(self) -> list[int]:
        try:
            names = [each.name for each in self._folder.iterdir() if each.name.endswith(_SUFFIX)]
        except OSError:
            return []
        texts = [name.removesuffix(_SUFFIX) for name in names]
        return sorted((int(text) for text in texts if text.isascii() and text.isdecimal()), reverse=True)

    def _read(self, number: int) -> Revision | None:
        path = self._path(number)
        try:
            with path.open("rb") as file:
                return msgspec.json.decode(file.read(_LIMIT_BYTES), type=Revision)
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s is left out of the history: %s", path, error)
            return None

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08}{_SUFFIX}"
