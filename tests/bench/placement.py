"""What a decision of the scheduler costs.

A decision is a request with the end of another, which makes room for it; CPU time of this process, the median of batches.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator

from appliance.config.appliance import PlacementName
from appliance.scheduling.leases import LeaseTable
from appliance.scheduling.lines import Request
from appliance.scheduling.placement import PLACEMENTS

from .report import row

WORKERS = (8, 128)
SESSIONS = 10_000
SLOTS = 16
WAITING = 5_000
BATCH = 1_000
LIMIT_US = 20.0


def decision_us(name: PlacementName, workers: int, *, waiting: int, batches: int) -> float:
    """Microseconds a decision, with three quarters of all slots in use, or all of them and `waiting` requests in the queue."""
    table = LeaseTable(queue_limit=10_000, placement=PLACEMENTS[name])
    for number in range(workers):
        table.worker_ready(f"text-{number}", model="m", slots=SLOTS)
    draw = random.Random(7)
    slots = workers * SLOTS
    live: list[str] = []
    for number in range(slots + waiting if waiting else slots * 3 // 4):
        request = Request("gateway", f"r{number}", f"s{draw.randrange(SESSIONS)}")
        table.request(request)
        live.append(request.request_id)
    taken = []
    for batch in range(batches):
        work = [
            (
                draw.randrange(len(live)),
                Request("gateway", f"r{batch}-{number}", f"s{draw.randrange(SESSIONS)}"),
            )
            for number in range(BATCH)
        ]
        began = time.process_time_ns()
        for index, request in work:
            table.settle("gateway", live[index])
            live[index] = request.request_id
            table.request(request)
        taken.append((time.process_time_ns() - began) / BATCH / 1000)
    return statistics.median(taken)


def figures(rounds: int) -> Iterator[tuple[str, float]]:
    """Each figure's name with its microseconds."""
    for name in PlacementName:
        for workers in WORKERS:
            for waiting in (0, WAITING) if name is PlacementName.AFFINITY else (0,):
                queue = f", {waiting:,} waiting" if waiting else ""
                title = f"{name}: {workers} workers{queue}"
                yield title, decision_us(name, workers, waiting=waiting, batches=4 * rounds)


def measure(rounds: int) -> None:
    """Prints each figure beside the limit."""
    for title, ours in figures(rounds):
        row(f"a decision, {title}", f"{ours:.1f} us", f"{LIMIT_US:.0f} us", ours / LIMIT_US)
