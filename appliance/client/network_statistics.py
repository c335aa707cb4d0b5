"""The network's dashboard: numbers as they are, rates as they were a moment ago, each as a small curve."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator

import msgspec
from rich.text import Text

from appliance.telemetry.network_statistics import Bandwidth, Latency, NetworkStatistics
from appliance.wire.messages import InterfaceTraffic

from .amounts import bit_rate
from .screen import Part, printable

#: Where the numbers are asked for.
STATISTICS_PATH = "/api/v1/system/network/stats"

#: How often: rates are those of a second.
PERIOD_S = 1.0

#: Rates that are remembered, and the width of a curve.
KEPT = 60
CURVE_COLUMNS = 24

#: A curve whose highest rate is below this is flat: nobody wants to see a keepalive as a mountain.
FLAT_BYTES_PER_S = 1000

_LEVELS = "▁▂▃▄▅▆▇█"

_Rates = Bandwidth | InterfaceTraffic


def read(body: bytes) -> NetworkStatistics:
    """What the API answered. Raises msgspec.DecodeError."""
    return msgspec.json.decode(body, type=NetworkStatistics)


class History:
    """The rates of the last minute, in and out, of the gateway (``) and of each interface."""

    def __init__(self) -> None:
        self._rates: dict[str, tuple[deque[int], deque[int]]] = {}

    def add(self, statistics: NetworkStatistics) -> None:
        """Takes what is now; an interface that is gone is forgotten."""
        now: dict[str, _Rates] = {"": statistics.bandwidth} | {
            each.name: each for each in statistics.interfaces
        }
        self._rates = {name: self._rates.get(name, (deque(maxlen=KEPT), deque(maxlen=KEPT))) for name in now}
        for name, each in now.items():
            came, went = self._rates[name]
            came.append(each.in_bytes_per_s)
            went.append(each.out_bytes_per_s)

    def curves(self, name: str, columns: int = CURVE_COLUMNS) -> tuple[str, str]:
        """In and out, the newest on the right, in the same scale."""
        came, went = self._rates.get(name, (deque[int](), deque[int]()))
        highest = max([FLAT_BYTES_PER_S, *list(came)[-columns:], *list(went)[-columns:]])
        return curve(came, highest, columns), curve(went, highest, columns)


def curve(values: Iterable[int], highest: int, columns: int) -> str:
    """A column each of the last values, from nothing to `highest`, aligned right."""
    shown = list(values)[-columns:]
    levels = [min(round(each / highest * (len(_LEVELS) - 1)), len(_LEVELS) - 1) for each in shown]
    return "".join(_LEVELS[each] for each in levels).rjust(columns)


def statistics_parts(statistics: NetworkStatistics, history: History | None = None) -> Iterator[Part]:
    """The dashboard; without a history, without curves."""
    connections, errors = statistics.connections, statistics.errors
    yield _titled(
        "connections",
        f"{connections.http} HTTP, {connections.websocket} WebSocket, {connections.p2p} P2P now; "
        f"{connections.total_today:,} today",
    )
    yield from _rates("gateway", "", statistics.bandwidth, history)
    for each in statistics.interfaces:
        yield from _rates(printable(each.name), each.name, each, history)
    if statistics.host is None:
        yield "the supervisor is away: nobody tells what the interfaces carry"
    elif sum(each.port for each in statistics.interfaces) > 1:
        yield from _rates("all ports", None, statistics.host, None)
    yield _titled("latency", "p50 / p95 / p99 of the last hour")
    for name, latency in (
        ("API", statistics.latency.api),
        ("WebSocket", statistics.latency.websocket),
        ("P2P relay", statistics.latency.p2p),
    ):
        yield f"  {name:<12}{_latency(latency)}"
    yield _titled(
        "errors",
        f"{errors.client} 4xx, {errors.rate_limited} rate limited, {errors.server} 5xx, {errors.timeouts} timeouts "
        "in the last hour",
    )


def statistics_line(statistics: NetworkStatistics) -> str:
    """The dashboard in a line, where the cursor cannot be moved."""
    connections, api, errors = statistics.connections, statistics.latency.api, statistics.errors
    carried = statistics.host or statistics.bandwidth
    failed = errors.client + errors.rate_limited + errors.server + errors.timeouts
    return (
        f"{connections.http} HTTP, {connections.websocket} WebSocket; in {bit_rate(carried.in_bytes_per_s)}, "
        f"out {bit_rate(carried.out_bytes_per_s)}; API {_latency(api)}; {failed} errors in the last hour"
    )


def _titled(title: str, text: str) -> Text:
    return Text.assemble((f"{title:<14}", "bold"), text)


def _rates(title: str, name: str | None, rates: _Rates, history: History | None) -> Iterator[Text]:
    curves = ("", "") if history is None or name is None else history.curves(name)
    for number, (word, now, peak, drawn) in enumerate(
        (
            ("in", rates.in_bytes_per_s, rates.peak_in_bytes_per_s, curves[0]),
            ("out", rates.out_bytes_per_s, rates.peak_out_bytes_per_s, curves[1]),
        )
    ):
        yield Text.assemble(
            (f"{'' if number else title:<14}", "bold"),
            f"{word:<4}{bit_rate(now):>12}  ",
            (f"{drawn}  " if drawn else "", "cyan"),
            (f"at most {bit_rate(peak)} today", "dim"),
        )


def _latency(latency: Latency) -> str:
    if latency.p50_ms is None:
        return "nothing measured"
    figures = (latency.p50_ms, latency.p95_ms, latency.p99_ms)
    return " / ".join(f"{each:.3g} ms" for each in figures if each is not None)


async def show(
    fetch: Callable[[], Awaitable[NetworkStatistics]],
    draw: Callable[[list[Part]], Awaitable[None]],
    sleep: Callable[[float], Awaitable[None]],
) -> None:
    """Asks and draws until it is cancelled. `draw` puts all of it in place of what it drew before."""
    history = History()
    while True:
        statistics = await fetch()
        history.add(statistics)
        await draw(list(statistics_parts(statistics, history)))
        await sleep(PERIOD_S)
