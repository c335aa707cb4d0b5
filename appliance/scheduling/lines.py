"""What the lease table is made of: requests, their sessions, the lines in which they wait, and the workers they wait for.

A *line* belongs to one model with one adapter, the key of placement. In it stands at most one request of each session; what a
session wants next waits behind the session.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from .placement import Load, Pool

Owner = Hashable

#: Withdrawn requests that may lie in a heap beyond as many as wait there, before it is built anew.
HEAP_SLACK = 64


@dataclass(frozen=True, slots=True)
class Request:
    """A wish for a place. `model` is empty for the default model, `adapter` for none."""

    owner: Owner
    request_id: str
    session_id: str
    model: str = ""
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """A place on `worker` for one request; the session is locked while it lasts."""

    lease_id: str
    request: Request
    worker: str


@dataclass(slots=True, eq=False)
class Entry:
    """A request from its arrival to its end. `number` counts arrivals; `worker` is set while it has a lease."""

    request: Request
    number: int
    line: Line
    session: Session = field(init=False)
    in_line: bool = False
    worker: Worker | None = None


@dataclass(slots=True, eq=False)
class Session:
    """A session with requests: `first` has a lease or stands in its line, the others wait behind it."""

    first: Entry
    behind: OrderedDict[Entry, None] = field(default_factory=OrderedDict)


@dataclass(slots=True, eq=False)
class Worker:
    """A worker that is kept. It is `open` while it takes leases, and `wanted` by a line that it is to change its adapter for."""

    name: str
    model: str
    lines: dict[str, Line]
    slots: int = 0
    open: bool = False
    adapter: str = ""
    wanted: Line | None = None
    turn: int = 0
    leases: dict[Entry, None] = field(default_factory=dict)
    _seats: tuple[Line, ...] = ()

    @property
    def line(self) -> Line:
        """The line of its present adapter."""
        return self.lines[self.adapter]

    def sit(self) -> tuple[Line, ...]:
        """Becomes a candidate wherever it can take a request now, and nowhere else; returns those lines.

        Engines run one adapter at a time: with leases it takes more of the same; idle it may change.
        """
        for line in self._seats:
            line.pool.leave(self.name)
        running = len(self.leases)
        if not self.open:
            self._seats = ()
        elif not running:
            self._seats = (self.wanted,) if self.wanted else tuple(self.lines.values())
        else:
            self._seats = (self.line,) if running < self.slots and not self.wanted else ()
        for line in self._seats:
            line.pool.enter(Load(running, line.adapter != self.adapter, self.turn, self.name))
        if self.open and running and not self.wanted:
            self.line.serving[self] = None
        else:
            self.line.serving.pop(self, None)
        return self._seats


class Line:
    """What waits for a model with an adapter, in the order of arrival, and who could take it."""

    def __init__(self, model: str, adapter: str) -> None:
        self.model, self.adapter = model, adapter
        #: All that waits, behind sessions too: the place in it is what a client is told.
        self.arrivals: dict[Entry, None] = {}
        self.pool = Pool()
        #: Workers that are kept for it, ready or not.
        self.kept: set[str] = set()
        #: Workers that have leases with this adapter and may be given more.
        self.serving: dict[Worker, None] = {}
        #: The worker that takes no more of its own adapter, to change to this one when it is idle.
        self.awaited: Worker | None = None
        self._heap: list[tuple[int, Entry]] = []
        self._standing = 0

    def stand(self, entry: Entry) -> None:
        """A request whose turn it is in its session joins the line, where its arrival places it."""
        entry.in_line = True
        self._standing += 1
        heapq.heappush(self._heap, (entry.number, entry))

    def leave(self, entry: Entry) -> None:
        """A request is done with waiting."""
        del self.arrivals[entry]
        if not entry.in_line:
            return
        entry.in_line = False
        self._standing -= 1
        # It stays in the heap until it comes up there, unless too many do.
        if len(self._heap) > 2 * self._standing + HEAP_SLACK:
            self._heap = [each for each in self._heap if each[1].in_line]
            heapq.heapify(self._heap)

    @property
    def head(self) -> Entry | None:
        """The oldest request in the line."""
        heap = self._heap
        while heap and not heap[0][1].in_line:
            heapq.heappop(heap)
        return heap[0][1] if heap else None

    def move_to(self, line: Line, entries: Iterable[Entry]) -> None:
        """Requests change to another line, where their arrival places them too."""
        for entry in entries:
            del self.arrivals[entry]
            entry.line = line
            line.arrivals[entry] = None
        self._put_in_order()
        line._put_in_order()

    def _put_in_order(self) -> None:
        self.arrivals = dict.fromkeys(sorted(self.arrivals, key=_number))
        self._heap = [(entry.number, entry) for entry in self.arrivals if entry.in_line]
        self._standing = len(self._heap)


def _number(entry: Entry) -> int:
    return entry.number
