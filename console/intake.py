"""How much of what comes in is taken: somebody may paste a megabyte, or be a program that speaks no language of ours. Lines, and
what waits to be read, are bounded; what is beyond is refused as a whole, and what comes after it is not lost."""

from __future__ import annotations

import re
from enum import Enum, auto

#: The longest line. Editing takes more than linear time: 40 KB took 7.7 s.
LINE_LIMIT_BYTES = 4096

#: What may be typed ahead while a command runs.
WAITING_LIMIT_BYTES = 8192

#: A paste is over when nothing has come for so long; a person then may type at once.
QUIET_S = 0.3

CTRL_C = b"\x03"
#: Ctrl-C ends a line, too: what was typed before it is void.
_LINE_END = re.compile(rb"[\r\n\x03]")
_ENDS_FLOOD = re.compile(rb"\x03")


class _Refusing(Enum):
    """What is being refused, and so what ends it; silence ends either."""

    LINE = auto()  # until its end
    FLOOD = auto()  # lines over lines


class Intake:
    """Bytes in as they come, lines out as they are wanted. Time is passed in, in seconds."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._length = 0  # of the last line so far, whether it was read or waits
        self._refusing: _Refusing | None = None
        self._last_at = 0.0
        self._after_cr = False
        self.refused = 0  # bytes, of the paste that goes on or has just ended
        self.spoilt = False  # the beginning of a refused line had been read already

    @property
    def waiting(self) -> int:
        """How many bytes can be read."""
        return len(self._waiting)

    @property
    def refusing(self) -> bool:
        """Whether what comes now is refused."""
        return self._refusing is not None

    def feed(self, data: bytes, now: float) -> None:
        """Takes what has come in, or refuses it."""
        self.rest(now)
        self._last_at = now
        at = 0
        while at < len(data):
            at = self._take(data, at) if self._refusing is None else self._refuse(data, at)

    def rest(self, now: float) -> bool:
        """Whether nothing is being refused (any more): silence ends a paste."""
        if self._refusing is not None and now - self._last_at > QUIET_S:
            self._refusing = None
        return self._refusing is None

    def read(self) -> bytes:
        """The next line with its end, or what there is of it; takes it out."""
        found = _LINE_END.search(self._waiting)
        end = found.end() if found else len(self._waiting)
        piece = bytes(self._waiting[:end])
        del self._waiting[:end]
        return piece

    def clear(self) -> None:
        """Forgets what waits, as a terminal does at Ctrl-C."""
        self._waiting.clear()
        self._length, self._refusing, self._after_cr = 0, None, False

    def report(self) -> int:
        """How many bytes were refused since the last report."""
        count, self.refused = self.refused, 0
        return count

    def _take(self, data: bytes, at: int) -> int:
        if self._after_cr and data[at : at + 1] == b"\n":  # the second half of a line end
            self._after_cr = False
            return at + 1
        found = _LINE_END.search(data, at)
        end = found.end() if found else len(data)
        content = (found.start() if found else end) - at
        if self._length + content > LINE_LIMIT_BYTES:
            self._spoil(_Refusing.LINE)
            return at
        if len(self._waiting) + end - at > WAITING_LIMIT_BYTES:
            self._spoil(_Refusing.FLOOD)
            return at
        self._waiting += data[at:end]
        self._length = 0 if found else self._length + content
        self._after_cr = found is not None and found.group() == b"\r"
        return end

    def _spoil(self, refusing: _Refusing) -> None:
        """Begins to refuse; what waits of the line that has begun goes too."""
        begun = len(self._waiting) - max(map(self._waiting.rfind, (b"\r", b"\n", CTRL_C))) - 1
        del self._waiting[len(self._waiting) - begun :]
        self.spoilt = self.spoilt or self._length > begun
        self.refused += self._length
        self._length, self._refusing, self._after_cr = 0, refusing, False

    def _refuse(self, data: bytes, at: int) -> int:
        found = (_LINE_END if self._refusing is _Refusing.LINE else _ENDS_FLOOD).search(data, at)
        if found is None:
            self.refused += len(data) - at
            return len(data)
        self.refused += found.start() - at
        self._refusing = None
        if found.group() == CTRL_C:
            return found.start()
        self._after_cr = found.group() == b"\r"
        return found.end()
