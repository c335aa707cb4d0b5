"""Events of devices from udev, for an event loop. Their source is `udev`, not the kernel: rules have run, permissions are set."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

#: Some 10,000 events. The kernel gives what `net.core.rmem_max` allows.
BUFFER_BYTES = 8 * 1024 * 1024

#: (subsystem, device type) of what is listened to.
FILTERS = (("usb", "usb_device"), ("apex", None), ("pci", None))


@dataclass(frozen=True)
class Event:
    """Something happened to a device; `node` is the one that the event names."""

    action: str
    subsystem: str
    name: str
    node: str


class Overflow(Exception):
    """Events were lost: whatever was known may be wrong."""


class Monitor:
    """A subscription. OSError when there cannot be one."""

    def __init__(self) -> None:
        try:
            import pyudev  # late: 25 ms that nobody needs to wait for who only asks for help

            self._monitor: Any = pyudev.Monitor.from_netlink(pyudev.Context(), source="udev")
        except ImportError as error:  # so pyudev says that libudev is not there
            raise OSError(str(error)) from None
        for subsystem, kind in FILTERS:
            self._monitor.filter_by(subsystem, kind)
        with contextlib.suppress(OSError):
            self._monitor.set_receive_buffer_size(BUFFER_BYTES)
        self._monitor.start()

    def fileno(self) -> int:
        """Readable when there are events."""
        return int(self._monitor.fileno())

    def take(self, most: int) -> list[Event]:
        """The events that are there, `most` at once. Overflow when some were lost; the monitor is then of no more use."""
        found: list[Event] = []
        while len(found) < most:
            try:
                device = self._monitor.poll(timeout=0)
            except OSError as error:
                raise Overflow(str(error)) from None
            if device is None:
                break
            node = device.properties.get("DEVNAME") or ""
            found.append(Event(device.action or "", device.subsystem or "", device.sys_name, node))
        return found
