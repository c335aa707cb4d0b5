"""Which worker takes a request: the ways to decide, and the order in which the candidates are kept.

A way to decide is a pure function of a `View`, which is read only. A `Pool` keeps one up to date, so that a decision looks at the
front of a list however many workers there are; to enter or leave it takes two searches by halves.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from appliance.config.appliance import PlacementName


class Load(NamedTuple):
    """A candidate, as `least_loaded` compares it: field by field."""

    leases: int
    switches: bool  # whether it would have to change its adapter first
    turn: int  # number of the newest lease that it was given; 0: none yet
    worker: str


class Turn(NamedTuple):
    """A candidate, as `round_robin` compares it."""

    turn: int
    worker: str


class View(NamedTuple):
    """The workers that could take a request at this moment, at least one, in ascending order."""

    by_load: Sequence[Load]
    by_turn: Sequence[Turn]
    last: str | None  # the one among them that the session had last, if it is there


Placement = Callable[[View], str]


def round_robin(view: View) -> str:
    """Each in its turn: the one whose newest lease is the oldest."""
    return view.by_turn[0].worker


def least_loaded(view: View) -> str:
    """The one with the fewest leases; among equals one that need not change its adapter, then the one whose turn it is."""
    return view.by_load[0].worker


def affinity(view: View) -> str:
    """The one that the session had last (its KV cache is warm) if it is free, else the least loaded."""
    return view.last or least_loaded(view)


PLACEMENTS: Mapping[PlacementName, Placement] = {
    PlacementName.AFFINITY: affinity,
    PlacementName.LEAST_LOADED: least_loaded,
    PlacementName.ROUND_ROBIN: round_robin,
}


class Pool:
    """The candidates for one model and adapter, in order."""

    def __init__(self) -> None:
        self._by_load: list[Load] = []
        self._by_turn: list[Turn] = []
        self._loads: dict[str, Load] = {}

    def __bool__(self) -> bool:
        return bool(self._loads)

    def enter(self, load: Load) -> None:
        """A worker that is not in it becomes a candidate."""
        self._loads[load.worker] = load
        insort(self._by_load, load)
        insort(self._by_turn, Turn(load.turn, load.worker))

    def leave(self, worker: str) -> None:
        """A candidate is none any more."""
        load = self._loads.pop(worker)
        del self._by_load[bisect_left(self._by_load, load)]
        del self._by_turn[bisect_left(self._by_turn, Turn(load.turn, worker))]

    def view(self, last: str | None = None) -> View:
        """What a placement sees. `last` is the worker that the session had last, candidate or not."""
        return View(self._by_load, self._by_turn, last if last in self._loads else None)
