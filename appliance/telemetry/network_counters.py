"""What the processes of a gateway count of their connections, in memory that they share: a board with a place for each.

A process alone writes in its place, with plain additions; any of them reads all and adds up. Nothing is sent, nothing is locked,
and what a process has counted outlives it: its successor in the place goes on from there. Counters stand in slices of five
minutes for "the last hour", and what is older in one row, so that both that hour and all since the start are sums.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from operator import add

from .histogram import BUCKETS, bucket_of

#: More than the processes of one gateway, those that are being replaced included. 60 KiB each, taken when it is first used.
PLACES = 256

SLICE_S = 300
#: Those of the last hour, and the one that has begun.
SLICES = 13

#: A process that has not told how many connections it has for so long is gone, or as good as.
SILENCE_S = 10.0

#: Rates are kept by second for so long, until every process has told its own: the highest sum is the peak.
_SECONDS = 8
_SETTLED_S = 3


# Plain numbers: to look up a member of an enum takes 70 ns, which is a tenth of what all the counting of a request may take.


class Channel:
    """The kinds of connections, whose latency is measured."""

    HTTP = 0
    WEBSOCKET = 1
    P2P = 2
    COUNT = 3


class Counter:
    """What only ever grows, by its position in a row. The histograms of the channels follow."""

    CLIENT_ERRORS = 0  # 4xx, but for the two that have their own
    RATE_LIMITED = 1
    SERVER_ERRORS = 2
    TIMEOUTS = 3
    ACCEPTED = 4
    BYTES_IN = 5
    BYTES_OUT = 6
    COUNT = 7


LATENCIES = Counter.COUNT
_ROW = LATENCIES + Channel.COUNT * BUCKETS

# The words of a place: its state, rates by second, and rows. `_VERSION` is odd while a row moves.
_VERSION, _TICKED, _DAY, _ACCEPTED_BEFORE, _PEAK_DAY, _PEAK_IN, _PEAK_OUT, _OPEN = range(8)
_RATES = _OPEN + Channel.COUNT
_OLDER = _RATES + 3 * _SECONDS
_FIRST = _OLDER + _ROW
_SLICE = 1 + _ROW
_PLACE = _FIRST + SLICES * _SLICE
_PLACE_BYTES = 8 * _PLACE


class Board:
    """Made before processes are forked, which inherit it."""

    def __init__(self, places: int = PLACES) -> None:
        self.places = places
        self.since = time.time()
        self._words = memoryview(mmap.mmap(-1, places * _PLACE_BYTES)).cast("Q")

    def words(self, place: int) -> memoryview[int]:
        """Those of a place."""
        return self._words[place * _PLACE : (place + 1) * _PLACE]

    def snapshots(self) -> Iterator[memoryview[int]]:
        """A copy of each place that was ever used, whole: never from the middle of a moving row."""
        for place in range(self.places):
            words = self.words(place)
            if not words[_TICKED]:
                continue
            copy = words
            for _ in range(100):
                copy = memoryview(bytes(words)).cast("Q")
                if not copy[_VERSION] % 2 and copy[_VERSION] == words[_VERSION]:
                    break
            yield copy  # a process that died at that moment leaves its place so: some of it may be counted twice


def today() -> int:
    """The local day, as a number."""
    return date.today().toordinal()


class NetworkCounters:
    """A process's own place. `row` is where it counts now, at the positions of Counter and `LATENCIES`; `tick` once a second."""

    def __init__(
        self,
        board: Board,
        place: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        day: Callable[[], int] = today,
    ) -> None:
        self.board, self._clock, self._day = board, clock, day
        self._words = board.words(place)
        self._told = clock()
        self._in, self._out = self._total(Counter.BYTES_IN), self._total(Counter.BYTES_OUT)
        self.row: memoryview[int]
        self.tick((0,) * Channel.COUNT)

    def took(self, channel: int, seconds: float) -> None:
        """Counts a latency."""
        self.row[LATENCIES + channel * BUCKETS + bucket_of(seconds)] += 1

    def failed(self, status: int) -> None:
        """Counts an answer that is an error, by its HTTP status: what is below 400 is none."""
        if status in (408, 504):
            self.row[Counter.TIMEOUTS] += 1
        elif status == 429:
            self.row[Counter.RATE_LIMITED] += 1
        elif status >= 500:
            self.row[Counter.SERVER_ERRORS] += 1
        elif status >= 400:
            self.row[Counter.CLIENT_ERRORS] += 1

    def tick(self, open_now: tuple[int, ...]) -> None:
        """Tells how many connections of each channel there are, and the rates since it told last; begins a slice in time."""
        now, day, words = self._clock(), self._day(), self._words
        self._turn(int(now // SLICE_S))
        if words[_DAY] != day:
            words[_DAY], words[_ACCEPTED_BEFORE] = day, self._total(Counter.ACCEPTED)
        for channel, count in enumerate(open_now):
            words[_OPEN + channel] = count
        if int(now) > int(self._told):
            passed_s = now - self._told
            total_in, total_out = self._total(Counter.BYTES_IN), self._total(Counter.BYTES_OUT)
            rates = round((total_in - self._in) / passed_s), round((total_out - self._out) / passed_s)
            for second in range(max(int(self._told), int(now) - _SECONDS) + 1, int(now) + 1):
                at = _RATES + 3 * (second % _SECONDS)
                words[at], words[at + 1], words[at + 2] = second, *rates
            self._told, self._in, self._out = now, total_in, total_out
            self._find_peak(int(now) - _SETTLED_S, day)
        words[_TICKED] = int(now) + 1

    def _turn(self, number: int) -> None:
        at = _FIRST + (number % SLICES) * _SLICE
        words = self._words
        if words[at] != number + 1:
            words[_VERSION] |= 1
            for position in range(_ROW):
                if count := words[at + 1 + position]:
                    words[_OLDER + position] += count
                    words[at + 1 + position] = 0
            words[at] = number + 1
            words[_VERSION] += 1
        self.row = words[at + 1 : at + _SLICE]

    def _total(self, counter: int) -> int:
        words = self._words
        return words[_OLDER + counter] + sum(
            words[_FIRST + each * _SLICE + 1 + counter] for each in range(SLICES)
        )

    def _find_peak(self, second: int, day: int) -> None:
        """The highest sum of all processes: each keeps what it has seen, lest two overwrite each other's."""
        rate_in = rate_out = 0
        for place in range(self.board.places):
            words = self.board.words(place)
            if words[_TICKED]:
                one_in, one_out = _rate(words, second)
                rate_in, rate_out = rate_in + one_in, rate_out + one_out
        words = self._words
        if words[_PEAK_DAY] != day:
            words[_PEAK_DAY], words[_PEAK_IN], words[_PEAK_OUT] = day, 0, 0
        words[_PEAK_IN] = max(words[_PEAK_IN], rate_in)
        words[_PEAK_OUT] = max(words[_PEAK_OUT], rate_out)


def _rate(words: memoryview[int], second: int) -> tuple[int, int]:
    at = _RATES + 3 * (second % _SECONDS)
    return (words[at + 1], words[at + 2]) if words[at] == second else (0, 0)


@dataclass
class NetworkTotals:
    """The sums over all processes. `rate_*` and `peak_*` in bytes a second, the peaks today's; `hour` and `ever` are rows: of the
    last hour (to five minutes), and since the board was made."""

    open: list[int] = field(default_factory=lambda: [0] * Channel.COUNT)
    accepted_today: int = 0
    rate_in: int = 0
    rate_out: int = 0
    peak_in: int = 0
    peak_out: int = 0
    hour: list[int] = field(default_factory=lambda: [0] * _ROW)
    ever: list[int] = field(default_factory=lambda: [0] * _ROW)


def add_up(board: Board, now: float, day: int) -> NetworkTotals:
    """All that the processes of a gateway have counted, at this time of `time.monotonic()` on this local day."""
    found = NetworkTotals()
    number = int(now // SLICE_S)
    # The newest second that every process which lives has told; one that has not is taken at its last word.
    seconds = range(int(now) - _SETTLED_S, int(now) + 1)
    for words in board.snapshots():
        if now - words[_TICKED] <= SILENCE_S:
            found.open = list(map(add, found.open, words[_OPEN:_RATES]))
            told = [_rate(words, each) for each in seconds if words[_RATES + 3 * (each % _SECONDS)] == each]
            if told:
                found.rate_in, found.rate_out = found.rate_in + told[-1][0], found.rate_out + told[-1][1]
        found.ever = list(map(add, found.ever, words[_OLDER:_FIRST]))
        accepted = words[_OLDER + Counter.ACCEPTED]
        for each in range(SLICES):
            at = _FIRST + each * _SLICE
            row = words[at + 1 : at + _SLICE]
            accepted += row[Counter.ACCEPTED]
            found.ever = list(map(add, found.ever, row))
            if number - SLICES < words[at] - 1 <= number:
                found.hour = list(map(add, found.hour, row))
        if words[_DAY] == day:
            found.accepted_today += accepted - words[_ACCEPTED_BEFORE]
        if words[_PEAK_DAY] == day:
            found.peak_in = max(found.peak_in, words[_PEAK_IN])
            found.peak_out = max(found.peak_out, words[_PEAK_OUT])
    # A rate that is still too new to be in the peak may be higher.
    found.peak_in, found.peak_out = max(found.peak_in, found.rate_in), max(found.peak_out, found.rate_out)
    return found


def latencies(row: list[int], channel: int) -> list[int]:
    """A channel's histogram in a row, for `telemetry.histogram`."""
    at = LATENCIES + channel * BUCKETS
    return row[at : at + BUCKETS]
