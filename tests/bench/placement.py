"""What a decision of the scheduler costs: `python -m tests.bench.placement`.

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


def main() -> None:
    print(f"a decision among {SESSIONS:,} sessions, in CPU time; at most {LIMIT_US:.0f} us")
    for title, ours in figures(5):
        print(f"{title:<44} {ours:9.1f} us {ours / LIMIT_US:7.2f}")


if __name__ == "__main__":
    main()
