"""The board: sums over places, slices that age, and processes that really share it."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.telemetry.histogram import bucket_of
from appliance.telemetry.network_counters import (
    SLICE_S,
    SLICES,
    Board,
    Channel,
    Counter,
    NetworkCounters,
    NetworkTotals,
    add_up,
    latencies,
)


class Time:
    """A clock that stands still, and a calendar."""

    def __init__(self) -> None:
        self.now, self.day = 1000.0, 1

    def counters(self, board: Board, place: int = 0) -> NetworkCounters:
        return NetworkCounters(board, place, clock=lambda: self.now, day=lambda: self.day)

    def sum(self, board: Board) -> NetworkTotals:
        return add_up(board, self.now, self.day)


def test_sums_over_all_processes() -> None:
    board, time = Board(4), Time()
    one, other = time.counters(board, 0), time.counters(board, 2)
    for counters, count in ((one, 3), (other, 4)):
        for _ in range(count):
            counters.row[Counter.ACCEPTED] += 1
            counters.took(Channel.HTTP, 0.02)
        counters.took(Channel.WEBSOCKET, 0.004)
        counters.tick((count, 1, 0))
    found = time.sum(board)
    assert found.open == [7, 2, 0]
    assert found.accepted_today == 7
    assert latencies(found.hour, Channel.HTTP)[bucket_of(0.02)] == 7
    assert sum(latencies(found.hour, Channel.WEBSOCKET)) == 2
    assert sum(latencies(found.hour, Channel.P2P)) == 0


@pytest.mark.parametrize(
    ("status", "counter"),
    [
        (200, None),
        (302, None),
        (400, Counter.CLIENT_ERRORS),
        (404, Counter.CLIENT_ERRORS),
        (408, Counter.TIMEOUTS),
        (429, Counter.RATE_LIMITED),
        (500, Counter.SERVER_ERRORS),
        (503, Counter.SERVER_ERRORS),
        (504, Counter.TIMEOUTS),
    ],
)
def test_errors_by_kind(status: int, counter: int | None) -> None:
    board, time = Board(1), Time()
    time.counters(board).failed(status)
    found = time.sum(board).hour[: Counter.ACCEPTED]
    assert found == [int(each == counter) for each in range(Counter.ACCEPTED)]


@given(st.lists(st.tuples(st.floats(0, 4000), st.integers(0, 5)), max_size=40))
def test_the_last_hour_and_all_since_the_start(steps: list[tuple[float, int]]) -> None:
    """Whatever passes between them: none is lost from all, and the hour has those of an hour, to five minutes."""
    board, time = Board(1), Time()
    counters = time.counters(board)
    events: list[float] = []
    for passed_s, count in steps:
        time.now += passed_s
        counters.tick((0, 0, 0))
        for _ in range(count):
            counters.failed(500)
            events.append(time.now)
    found = time.sum(board)
    assert found.ever[Counter.SERVER_ERRORS] == len(events)
    hour = found.hour[Counter.SERVER_ERRORS]
    assert sum(each > time.now - 3600 for each in events) <= hour
    assert hour <= sum(each > time.now - SLICES * SLICE_S for each in events)


def test_rates_and_the_peak_of_their_sum() -> None:
    board, time = Board(2), Time()
    both = [time.counters(board, place) for place in range(2)]
    for rate in (1000, 5000, 2000, 0, 0, 0, 0):
        time.now += 1
        for counters in both:
            counters.row[Counter.BYTES_IN] += rate
            counters.row[Counter.BYTES_OUT] += 2 * rate
            counters.tick((0, 0, 0))
        found = time.sum(board)
        assert (found.rate_in, found.rate_out) == (2 * rate, 4 * rate)
    assert (found.peak_in, found.peak_out) == (10_000, 20_000)
    time.day += 1
    time.now += 1
    for counters in both:
        counters.tick((0, 0, 0))
    assert time.sum(board).peak_in == 0
    assert time.sum(board).ever[Counter.BYTES_IN] == 2 * 8000


def test_a_loop_that_was_held_up_has_no_higher_rate() -> None:
    board, time = Board(1), Time()
    counters = time.counters(board)
    counters.row[Counter.BYTES_OUT] += 10_000
    time.now += 20
    counters.tick((0, 0, 0))
    time.now += 4
    counters.tick((0, 0, 0))
    assert time.sum(board).peak_out == 500


def test_a_day_begins_at_midnight() -> None:
    board, time = Board(1), Time()
    counters = time.counters(board)
    counters.row[Counter.ACCEPTED] += 5
    assert time.sum(board).accepted_today == 5
    time.day += 1
    assert time.sum(board).accepted_today == 0  # nobody has ticked yet
    counters.tick((0, 0, 0))
    counters.row[Counter.ACCEPTED] += 2
    assert time.sum(board).accepted_today == 2


def test_a_process_that_died_has_no_connections_and_its_successor_counts_on() -> None:
    board, time = Board(1), Time()
    counters = time.counters(board)
    counters.row[Counter.ACCEPTED] += 5
    counters.tick((5, 0, 0))
    time.now += 60
    assert time.sum(board).open == [0, 0, 0]
    assert time.sum(board).accepted_today == 5
    later = time.counters(board)
    later.row[Counter.ACCEPTED] += 1
    assert time.sum(board).accepted_today == 6
    later.tick((1, 0, 0))
    assert time.sum(board).open == [1, 0, 0]


def test_between_processes() -> None:
    board = Board(4)
    children = []
    for place in range(1, 4):
        if (child := os.fork()) == 0:
            try:
                counters = NetworkCounters(board, place)
                for _ in range(1000):
                    counters.took(Channel.HTTP, 0.001)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    own = NetworkCounters(board, 0)
    found = add_up(board, own._clock(), 1)
    assert sum(latencies(found.ever, Channel.HTTP)) == 3000
