"""What the specification's dashboard shows, as the API answers it: made of what the gateway's processes count together
(`network_counters`) and of what the supervisor sees of the interfaces (`interfaces`)."""

from __future__ import annotations

import msgspec

from appliance.wire.messages import InterfaceTraffic, Traffic

from .histogram import quantile_s
from .network_counters import Channel, Counter, NetworkTotals, latencies


class Connections(msgspec.Struct, frozen=True, kw_only=True):
    """Those that are open, by what they carry; and how many came today, in local time."""

    http: int
    websocket: int
    p2p: int
    total_today: int


class Bandwidth(msgspec.Struct, frozen=True, kw_only=True):
    """Of the last second, the highest of today, and bytes in all (`since`)."""

    in_bytes_per_s: int
    out_bytes_per_s: int
    peak_in_bytes_per_s: int
    peak_out_bytes_per_s: int
    bytes_in: int
    bytes_out: int


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Of the last hour, off by at most 6 % (logarithmic buckets); null when nothing was measured."""

    count: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class Latencies(msgspec.Struct, frozen=True, kw_only=True):
    """`api`: from a request's head until its answer begins, here in the appliance. `websocket`: the round trip of our pings, the
    network included. `p2p`: through the relay."""

    api: Latency
    websocket: Latency
    p2p: Latency


class Errors(msgspec.Struct, frozen=True, kw_only=True):
    """Of the last hour, to five minutes. `client`: 4xx, but for `rate_limited` (429) and 408; `server`: 5xx, but for 504;
    `timeouts`: 408, 504, and who was cut off because it read nothing. Errors of streams and of WebSockets count as the status
    that they have elsewhere."""

    client: int
    rate_limited: int
    server: int
    timeouts: int


class NetworkStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds since 1970. `bandwidth` is the gateway's own traffic; `host` all that the machine's ports carry and
    `interfaces` each of them (empty and null when the supervisor is away)."""

    at: float
    since: float
    connections: Connections
    bandwidth: Bandwidth
    host: InterfaceTraffic | None
    interfaces: list[InterfaceTraffic]
    latency: Latencies
    errors: Errors


def statistics(
    totals: NetworkTotals, traffic: Traffic | None, *, at: float, since: float
) -> NetworkStatistics:
    """The answer that these numbers make."""
    return NetworkStatistics(
        at=at,
        since=since,
        connections=Connections(
            http=totals.open[Channel.HTTP],
            websocket=totals.open[Channel.WEBSOCKET],
            p2p=totals.open[Channel.P2P],
            total_today=totals.accepted_today,
        ),
        bandwidth=Bandwidth(
            in_bytes_per_s=totals.rate_in,
            out_bytes_per_s=totals.rate_out,
            peak_in_bytes_per_s=totals.peak_in,
            peak_out_bytes_per_s=totals.peak_out,
            bytes_in=totals.ever[Counter.BYTES_IN],
            bytes_out=totals.ever[Counter.BYTES_OUT],
        ),
        host=None if traffic is None else traffic.total,
        interfaces=[] if traffic is None else traffic.interfaces,
        latency=Latencies(
            api=_latency(latencies(totals.hour, Channel.HTTP)),
            websocket=_latency(latencies(totals.hour, Channel.WEBSOCKET)),
            p2p=_latency(latencies(totals.hour, Channel.P2P)),
        ),
        errors=errors_of(totals),
    )


def errors_of(totals: NetworkTotals) -> Errors:
    """Those of the last hour."""
    return Errors(
        client=totals.hour[Counter.CLIENT_ERRORS],
        rate_limited=totals.hour[Counter.RATE_LIMITED],
        server=totals.hour[Counter.SERVER_ERRORS],
        timeouts=totals.hour[Counter.TIMEOUTS],
    )


def _latency(counts: list[int]) -> Latency:
    def ms(share: float) -> float | None:
        seconds = quantile_s(counts, share)
        return None if seconds is None else float(f"{seconds * 1000:.3g}")

    return Latency(count=sum(counts), p50_ms=ms(0.5), p95_ms=ms(0.95), p99_ms=ms(0.99))
