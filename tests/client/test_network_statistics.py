"""The network's dashboard as it is drawn."""

from __future__ import annotations

import asyncio
import io

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from appliance.client import screen
from appliance.client.amounts import bit_rate
from appliance.client.network_statistics import (
    CURVE_COLUMNS,
    FLAT_BYTES_PER_S,
    History,
    curve,
    read,
    show,
    statistics_line,
    statistics_parts,
)
from appliance.client.screen import Part
from appliance.telemetry.histogram import BUCKETS, bucket_of
from appliance.telemetry.network_counters import LATENCIES, Channel, Counter, NetworkTotals
from appliance.telemetry.network_statistics import NetworkStatistics, statistics
from appliance.wire.messages import InterfaceTraffic, Traffic


def carried(name: str, rate: int) -> InterfaceTraffic:
    return InterfaceTraffic(
        name=name,
        port=True,
        bytes_in=10,
        bytes_out=20,
        in_bytes_per_s=rate,
        out_bytes_per_s=2 * rate,
        peak_in_bytes_per_s=100_000_000,
        peak_out_bytes_per_s=rate,
    )


def some(rate: int = 5_625_000, *, traffic: bool = True, name: str = "eth0") -> NetworkStatistics:
    totals = NetworkTotals(open=[124, 45, 12], accepted_today=12_456, rate_in=rate, rate_out=rate)
    totals.hour[Counter.CLIENT_ERRORS], totals.hour[Counter.RATE_LIMITED] = 4, 23
    totals.hour[Counter.SERVER_ERRORS], totals.hour[Counter.TIMEOUTS] = 2, 1
    totals.hour[LATENCIES + Channel.HTTP * BUCKETS + bucket_of(0.005)] = 99
    interfaces = Traffic(request_id="r", total=carried("", rate), interfaces=[carried(name, rate)])
    return statistics(totals, interfaces if traffic else None, at=2.0, since=1.0)


def drawn(parts: list[Part]) -> str:
    page = io.StringIO()
    screen.show(parts, Console(file=page, width=200, color_system=None, highlight=False))
    return page.getvalue()


def test_the_specifications_dashboard() -> None:
    text = drawn(list(statistics_parts(some())))
    assert "124 HTTP, 45 WebSocket, 12 P2P now; 12,456 today" in text
    assert "45 Mbit/s" in text
    assert "at most 800 Mbit/s today" in text
    assert "API         4.73 ms / 4.73 ms / 4.73 ms" in text, "within 6 %"
    assert "WebSocket   nothing measured" in text
    assert "4 4xx, 23 rate limited, 2 5xx, 1 timeouts in the last hour" in text
    line = statistics_line(some())
    assert "\n" not in line
    assert line.startswith("124 HTTP, 45 WebSocket; in 45 Mbit/s, out 90 Mbit/s; API 4.73 ms")
    assert line.endswith("30 errors in the last hour")


def test_without_the_supervisor() -> None:
    text = drawn(list(statistics_parts(some(traffic=False))))
    assert "the supervisor is away" in text
    assert "in 45 Mbit/s" in statistics_line(some(traffic=False))


def test_a_name_that_would_steer_the_terminal() -> None:
    assert "\x1b" not in drawn(list(statistics_parts(some(name="e\x1b[2J"))))


def test_curves_of_the_last_seconds() -> None:
    history = History()
    for rate in (0, 500_000, 1_000_000):
        history.add(some(rate))
    came, went = history.curves("eth0")
    assert (came.strip(), went.strip()) == ("▁▃▅", "▁▅█")
    assert len(came) == len(went) == CURVE_COLUMNS
    text = drawn(list(statistics_parts(some(1_000_000), history)))
    assert "▁▅█" in text
    history.add(some(1, name="eth1"))
    assert history.curves("eth0")[0].strip() == ""
    assert history.curves("eth1")[0].strip() == "▁", f"below {FLAT_BYTES_PER_S} it is flat"


@given(st.lists(st.integers(0, 2**40), max_size=100), st.integers(1, 2**40), st.integers(1, 80))
def test_a_curve_is_as_wide_as_it_may_be(values: list[int], highest: int, columns: int) -> None:
    drawn = curve(values, highest, columns)
    assert len(drawn) == columns
    assert set(drawn) <= set(" ▁▂▃▄▅▆▇█")


@pytest.mark.parametrize(
    ("bytes_per_s", "words"),
    [
        (0, "0 bit/s"),
        (1, "8 bit/s"),
        (125, "1 kbit/s"),
        (12_500, "100 kbit/s"),
        (5_625_000, "45 Mbit/s"),
        (28_750_000, "230 Mbit/s"),
        (1_250_000_000, "10 Gbit/s"),
    ],
)
def test_rates_in_words(bytes_per_s: int, words: str) -> None:
    assert bit_rate(bytes_per_s) == words


def test_what_the_api_answers_is_read_back() -> None:
    assert read(msgspec.json.encode(some())) == some()
    with pytest.raises(msgspec.DecodeError):
        read(b"<html>")


async def test_showing_it_until_nobody_looks() -> None:
    drawings: list[list[Part]] = []
    pauses: list[float] = []

    async def fetch() -> NetworkStatistics:
        return some(len(drawings) * 1_000_000)

    async def draw(parts: list[Part]) -> None:
        drawings.append(parts)

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await show(fetch, draw, sleep)
    assert len(drawings) == 3
    assert "▁▃▅" in drawn(drawings[-1])
