"""The loop around the keeper: what wakes it, and what the world is told. No threads and no asyncio: it waits, and looks."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
from systemd import daemon

from appliance.wire.messages import UsbLink

from .keeper import Keeper

log = logging.getLogger(__name__)


class Service:
    """`publish(content)` puts the state where others read it, whenever it changed."""

    def __init__(self, keeper: Keeper, udc: Path, *, publish: Callable[[bytes], None]) -> None:
        self._keeper, self._udc, self._publish = keeper, udc, publish
        self._stopping = False
        self._said: UsbLink | None = None
        self._wake = (-1, -1)

    def stop(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """As a signal's handler: ends `run`."""
        self._stopping = True

    def run(self) -> None:
        """Until `stop`; then everything is taken down. READY after the first look, whatever it found: to wait for a controller is
        no failure."""
        self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake[1])
        monitor = _monitor()
        try:
            while not self._stopping:
                with self._watched() as states:
                    patience_s = self._keeper.look()
                    self._tell()
                    daemon.notify("WATCHDOG=1")
                    self._wait(states, monitor, patience_s)
        finally:
            daemon.notify("STOPPING=1\nSTATUS=taking the gadget down")
            self._keeper.close()
            signal.set_wakeup_fd(-1)
            for descriptor in self._wake:
                os.close(descriptor)

    def _tell(self) -> None:
        status = self._keeper.status()
        if status == self._said:
            return
        self._publish(msgspec.json.encode(status))
        daemon.notify(f"READY=1\nSTATUS={status.in_words}")
        self._said = status

    def _wait(self, states: list[int], monitor: Any, patience_s: float) -> None:
        poll = select.poll()
        poll.register(self._wake[0], select.POLLIN)
        for descriptor in states:
            poll.register(descriptor, select.POLLPRI)
        if monitor is not None:
            poll.register(monitor.fileno(), select.POLLIN)
        poll.poll(patience_s * 1000)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake[0], 4096)
        if monitor is not None:
            # What it says is looked at anyway; an overflow is no loss.
            with contextlib.suppress(OSError):
                while monitor.poll(timeout=0) is not None:
                    pass

    @contextlib.contextmanager
    def _watched(self) -> Iterator[list[int]]:
        """The controllers' states, open and read: from then on poll(2) tells of a change (POLLPRI), before the next look too."""
        descriptors: list[int] = []
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                for folder in self._udc.iterdir():
                    descriptor = os.open(folder / "state", os.O_RDONLY | os.O_CLOEXEC)
                    stack.callback(os.close, descriptor)
                    os.read(descriptor, 256)
                    descriptors.append(descriptor)
            yield descriptors


def _monitor() -> Any:
    """udev's events of controllers; None where there are none, and then looking again and again has to do."""
    try:
        import pyudev

        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="udev")
        monitor.filter_by("udc")
        monitor.start()
    except (ImportError, OSError) as error:
        log.warning("no events of device controllers: %s", error)
        return None
    return monitor
