"""Repairs in words."""

from __future__ import annotations

import time
from collections.abc import Iterator

from appliance.wire.messages import Repair

from .amounts import duration


def repair_lines(repairs: list[Repair], *, command: str = "coral-reef ") -> Iterator[str]:
    """What, since when, what to do. `command` is what stands before the name of a command where the lines are read."""
    for repair in repairs:
        ago = duration(max(0.0, time.time() - repair.since))
        yield f"{repair.severity}: {repair.what}"
        yield f"  since {ago}. {repair.advice}"
        if repair.fix:
            yield f"  '{command}repair fix {repair.id}' {repair.fix}"
