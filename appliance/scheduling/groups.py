"""Which worker has which TPUs open: those of one tray, at most 16 together."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from appliance.wire.messages import TPUS_LIMIT


def group(trays: Mapping[str, str], before: Mapping[str, str], taken: Collection[str] = ()) -> dict[str, str]:
    """The worker of each TPU. `trays` names the tray of each TPU that is to be open, `before` the worker that each had.

    A TPU stays with its worker as long as all of the worker's are of one tray: another one plugged in moves none. Workers are
    called tpu-1, tpu-2, ...; a new one by the first name that is free and not `taken`.
    """
    workers: dict[str, str] = {}
    members: dict[str, int] = {}
    tray_of: dict[str, str] = {}

    def join(tpu: str, worker: str) -> bool:
        if tray_of.setdefault(worker, trays[tpu]) != trays[tpu] or members.get(worker, 0) >= TPUS_LIMIT:
            return False
        workers[tpu] = worker
        members[worker] = members.get(worker, 0) + 1
        return True

    for tpu in sorted(trays.keys() & before.keys()):
        join(tpu, before[tpu])
    for tpu in sorted(trays.keys() - workers.keys()):
        if any(join(tpu, worker) for worker, tray in sorted(tray_of.items()) if tray == trays[tpu]):
            continue
        number = 1
        while (name := f"tpu-{number}") in tray_of or name in taken:
            number += 1
        join(tpu, name)
    return workers
