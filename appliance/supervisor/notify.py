"""What systemd hears from us: sd_notify(3), and the watchdog fed at half its period."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable

from sdnotify import SystemdNotifier

from appliance.process import watchdog_period_s

from .errors import SubsystemDead

log = logging.getLogger(__name__)

#: How often the subsystems are looked at when no watchdog says how often.
LOOK_PERIOD_S = 5.0

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


async def feed_watchdog(notify: Notify, prove: Callable[[], Awaitable[None]]) -> None:
    """Pings each time that `prove` has shown, within half of what systemd waits, that every subsystem lives; until cancelled.

    A loop that hangs, or a subsystem that died (`prove` raises SubsystemDead), lets systemd restart us.
    """
    period_s = watchdog_period_s() or LOOK_PERIOD_S
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        try:
            async with asyncio.timeout(period_s):
                await prove()
            notify.watchdog()
        except TimeoutError:
            log.error("a part of the supervisor has not answered within %.1f s", period_s)
        except SubsystemDead as error:
            log.error("%s", error)
        await asyncio.sleep(max(0.0, began + period_s - loop.time()))


async def extend_timeout(notify: Notify) -> None:
    """Asks for more time to stop until it is cancelled; a loop that hangs no longer asks, and is killed.

    The watchdog goes on meanwhile: what feeds it otherwise ends with the subsystems.
    """
    while True:
        notify.extend_timeout(EXTENSION_S)
        notify.watchdog()
        await asyncio.sleep(min(EXTENSION_S / 4, watchdog_period_s() or EXTENSION_S))
