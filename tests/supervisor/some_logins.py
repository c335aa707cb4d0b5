"""Logins on a file of their own, for tests of the control socket."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from appliance.supervisor.logins import Logins
from appliance.supervisor.power import not_ours


def some_logins(
    folder: Path,
    *,
    clock: Callable[[], float] = time.monotonic,
    unreadable: Callable[[str], None] = lambda _: None,
    ended: Callable[[], None] = lambda: None,
) -> Logins:
    """Without users, on a machine that is not the appliance's own."""
    return Logins(folder / "users.json", clock=clock, power=not_ours, unreadable=unreadable, ended=ended)
