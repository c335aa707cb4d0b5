"""What systemd hears from us: sd_notify(3), and the watchdog fed at half its period."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from sdnotify import SystemdNotifier

from appliance.process import watchdog_period_s

#: How much more time a stop asks for, and asks again long before it is over: enough for workers to end after the replies have.
EXTENSION_S = 20.0


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

    def extend_timeout(self, seconds: float) -> None:
        """Not to be killed for taking longer than the unit allows, as long as this is said again within `seconds`."""
        self._tell(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def watchdog(self) -> None:
        self._tell("WATCHDOG=1")


async def feed_watchdog(notify: Notify, alive: Callable[[], bool]) -> None:
    """Pings for as long as `alive` says so: a loop that hangs, or a subsystem that died, lets systemd restart us."""
    period_s = watchdog_period_s()
    while period_s is not None and alive():
        notify.watchdog()
        await asyncio.sleep(period_s)


async def extend_timeout(notify: Notify) -> None:
    """Asks for more time to stop until it is cancelled; a loop that hangs no longer asks, and is killed.

    The watchdog goes on meanwhile: what feeds it otherwise ends with the subsystems.
    """
    while True:
        notify.extend_timeout(EXTENSION_S)
        notify.watchdog()
        await asyncio.sleep(min(EXTENSION_S / 4, watchdog_period_s() or EXTENSION_S))
