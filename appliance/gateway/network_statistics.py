"""`GET /api/v1/system/network/stats`. The interfaces are the supervisor's to see: the gateway's network namespace has none."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from litestar import Request, get
from litestar.di import NamedDependency

from appliance.chat.errors import ChatError
from appliance.telemetry.network_counters import NetworkCounters, add_up, today
from appliance.telemetry.network_statistics import NetworkStatistics, statistics
from appliance.wire.messages import Traffic

from .auth import Caller
from .generator import LeasedGenerator
from .rest import only_admins


@get("/api/v1/system/network/stats", summary="Connections, bandwidth, latency and errors", tags=["system"])
async def network_stats(
    request: Request[Caller, None, Any],
    counters: NamedDependency[NetworkCounters],
    generator: NamedDependency[LeasedGenerator],
) -> NetworkStatistics:
    """Of all gateway processes together, up to a second old. For administrators."""
    only_admins(request)
    traffic: Traffic | None = None
    with contextlib.suppress(ChatError):  # what we count ourselves is worth having without it
        traffic = await generator.traffic()
    return statistics(
        add_up(counters.board, time.monotonic(), today()),
        traffic,
        at=time.time(),
        since=counters.board.since,
    )
