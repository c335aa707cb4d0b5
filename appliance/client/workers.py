"""The workers as a table."""

from __future__ import annotations

from rich.table import Table

from appliance.wire.messages import WorkerStatus

from .amounts import duration, size
from .screen import table

#: Below so many columns what matters least is left out.
WIDE_COLUMNS = 100


def workers_table(workers: list[WorkerStatus], *, columns: int = WIDE_COLUMNS) -> Table:
    """A row a worker, for a screen of so many columns."""
    if columns < WIDE_COLUMNS:
        short = [
            (
                each.name,
                each.model,
                each.state,
                f"{each.leases}/{each.slots}",
                size(each.rss_bytes),
                "; ".join(
                    filter(None, (f"restarted {each.restarts} times" * bool(each.restarts), each.detail))
                ),
            )
            for each in workers
        ]
        return table(("worker", "model", "state", ">replies", ">memory", "note"), short)
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
