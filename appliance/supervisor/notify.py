"""What systemd hears from us: sd_notify(3), and the watchdog fed at half its period."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from sdnotify import SystemdNotifier


class Notify:
    """Says READY, STATUS, STOPPING and WATCHDOG; silent without a NOTIFY_SOCKET."""

    def __init__(self) -> None:
        # Without systemd there is nobody to tell, and the library would leave a socket open.
        self._notifier = SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None
        self._status = ""

    def _tell(self, message: str) -> None:
        if self._notifier is not None:
            self._notifier.notify(message)

    def ready(self, status: str) -> None:
        self._tell(f"READY=1\nSTATUS={status}")
        self._status = status

    def status(self, status: str) -> None:
        """Sent when it changed."""
        if status != self._status:
            self._tell(f"STATUS={status}")
            self._status = status

    def reloading(self) -> None:
        """Before `ready` is said again; sd_notify(3) wants the time to tell several apart."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        self._tell(f"STOPPING=1\nSTATUS={status}")

    def watchdog(self) -> None:
        self._tell("WATCHDOG=1")


def watchdog_period_s() -> float | None:
    """Half of what systemd wants to hear from us, None when it does not: sd_watchdog_enabled(3)."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2_000_000


async def feed_watchdog(notify: Notify, alive: Callable[[], bool]) -> None:
    """Pings for as long as `alive` says so: a loop that hangs, or a subsystem that died, lets systemd restart us."""
    period_s = watchdog_period_s()
    while period_s is not None and alive():
        notify.watchdog()
        await asyncio.sleep(period_s)
