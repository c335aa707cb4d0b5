"""Guessing passwords takes time: after a few wrong ones, a line and a name are not heard for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

#: So many wrong passwords cost nothing: people mistype.
FREE = 2

#: The first wait; each further wrong password doubles it, up to a bound. A name is waited for less long than a line: who tries
#: a name again and again on one line leaves it to others on theirs.
FIRST_S = 1.0
LINE_LIMIT_S = 30.0
NAME_LIMIT_S = 8.0

#: A line or name that has been quiet for this long begins anew.
FORGET_S = 900.0

#: Lines and names that are remembered; the one that was quiet the longest is forgotten first.
REMEMBERED = 1024


class _Counts:
    """Wrong passwords in a row, by line or by name."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def heard_at(self, key: str, now: float) -> float:
        count, since = self._of(key, now)
        return since + self._wait_s(count)

    def add(self, key: str, now: float) -> None:
        count, _ = self._of(key, now)
        self._wrong[key] = count + 1, now
        self._wrong.move_to_end(key)
        while len(self._wrong) > REMEMBERED:
            self._wrong.popitem(last=False)

    def forget(self, key: str) -> None:
        self._wrong.pop(key, None)

    def _of(self, key: str, now: float) -> tuple[int, float]:
        count, since = self._wrong.get(key, (0, now))
        return (count, since) if now - since < FORGET_S else (0, now)

    def _wait_s(self, count: int) -> float:
        if count <= FREE:
            return 0.0
        doubled = min(count - FREE - 1, 16)
        return min(FIRST_S * 2.0**doubled, self._limit_s)


class Throttle:
    """Who is heard when. `clock` gives seconds and never goes back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lines, self._names = _Counts(LINE_LIMIT_S), _Counts(NAME_LIMIT_S)

    def line_wait_s(self, line: str) -> float:
        """How long nothing that comes on a line is heard; 0: it is heard now."""
        now = self._clock()
        return max(0.0, self._lines.heard_at(line, now) - now)

    def wait_s(self, line: str, name: str) -> float:
        """How long this name is not heard on this line; 0: it is heard now."""
        now = self._clock()
        return max(0.0, self._lines.heard_at(line, now) - now, self._names.heard_at(name, now) - now)

    def wrong(self, line: str, name: str) -> None:
        """That was a wrong password."""
        now = self._clock()
        self._lines.add(line, now)
        self._names.add(name, now)

    def right(self, line: str, name: str) -> None:
        """That was the right one."""
        self._lines.forget(line)
        self._names.forget(name)
