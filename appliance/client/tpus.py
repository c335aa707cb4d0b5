"""Edge TPUs in words and as a table."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.wire.messages import Status, Tpu

from .amounts import duration
from .screen import Part, table
from .tower import tower_parts


def tpus_parts(status: Status) -> Iterator[Part]:
    """A table of all, then the tower."""
    if status.tpus:
        yield table(
            ("tpu", "tray", ">slot", "role", "state", ">temp", "worker", ">since", "note"),
            [
                (
                    tpu.id,
                    tpu.tray,
                    str(tpu.slot),
                    f"{tpu.role} (reserve)" if tpu.stands_in else tpu.role,
                    in_words(tpu),
                    celsius(tpu),
                    tpu.worker,
                    duration(tpu.since_s),
                    tpu.detail,
                )
                for tpu in status.tpus
            ],
        )
    else:
        yield "No TPU is attached: the processor runs all models."
    yield from tower_parts(status)


def tpu_lines(tpu: Tpu) -> Iterator[str]:
    """All that is known of one."""
    speed = f"USB, {tpu.speed_mbps:,} Mbit/s" if tpu.speed_mbps else str(tpu.bus)
    if 0 < tpu.speed_mbps < 5000:
        speed += " (slow: use a USB 3 port and cable)"
    lines = (
        ("tpu", tpu.id),
        ("place", f"{tpu.tray}, slot {tpu.slot}"),
        ("role", f"{tpu.role}, in place of one that failed" if tpu.stands_in else tpu.role),
        ("state", f"{in_words(tpu)} for {duration(tpu.since_s)}{f': {tpu.detail}' if tpu.detail else ''}"),
        ("worker", tpu.worker or "none"),
        ("may work", f"{tpu.load_limit:.0%}"),
        ("temperature", celsius(tpu) or "not told"),
        ("bus", speed),
        ("node", tpu.node or "none"),
        ("sysfs", tpu.sysfs or "none"),
    )
    for label, text in lines:
        yield f"{label:<13}{text}"


def change_line(tpu: Tpu) -> str:
    """A change in a line."""
    parts = [f"{tpu.id:<20} {tpu.tray} slot {tpu.slot}: {in_words(tpu)}"]
    if tpu.worker:
        parts.append(f"worker {tpu.worker}")
    if tpu.stands_in:
        parts.append(f"stands in as {tpu.role}")
    if warmth := celsius(tpu):
        parts.append(warmth)
    return ", ".join(parts) + (f": {tpu.detail}" if tpu.detail else "")


def in_words(tpu: Tpu) -> str:
    """Its state as people say it."""
    return tpu.state.replace("_", " ")


def celsius(tpu: Tpu) -> str:
    """Its temperature; empty when the driver does not tell."""
    return "" if tpu.temperature_c is None else f"{tpu.temperature_c:.0f} °C"
