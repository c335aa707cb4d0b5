"""The workers as a table."""

from __future__ import annotations

from rich.table import Table

from appliance.wire.messages import WorkerStatus

from .amounts import duration, size
from .screen import table


def workers_table(workers: list[WorkerStatus]) -> Table:
    """A row a worker."""
    rows = [
        (
            worker.name,
            worker.model,
            worker.state,
            f"{worker.leases}/{worker.slots}",
            size(worker.rss_bytes),
            duration(worker.since_s),
            str(worker.restarts),
            worker.detail,
        )
        for worker in workers
    ]
    return table(("worker", "model", "state", ">replies", ">memory", ">since", ">restarts", "note"), rows)
