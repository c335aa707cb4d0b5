"""Whether somebody can be at the other end of a line.

The serial gadget knows neither carrier nor DTR: a session that was begun on it would go on for whoever plugs in next. The truth
is the USB device controller's state. `configured` is a cable with a running machine at its other end; dwc2 reports an unplugged
cable as `suspended` and nothing else, so that ends a session too, though the desktop may only sleep.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from appliance.paths import Paths

#: How often a cable is looked at: nobody plugs one out and in again within that, and three attributes are read each time.
LOOK_S = 0.2

#: An attribute of ours has a word or a number.
ATTRIBUTE_LIMIT_BYTES = 256

#: The state of a controller whose gadget a running machine uses: Documentation/ABI/stable/sysfs-class-udc.
CONFIGURED = "configured"


class Cable(Protocol):
    """The truth about a line."""

    def attached(self) -> bool:
        """Whether somebody can be there now."""
        ...


class UsbCable:
    """The serial gadget's: that of the controller which its gadget is bound to."""

    def __init__(self, paths: Paths, line: str) -> None:
        """`line` is the device's name, `ttyGS0`."""
        self._gadgets, self._controllers = paths.gadgets, paths.usb_controllers
        self._port = line.removeprefix("ttyGS")
        self._gadget: Path | None = None

    def attached(self) -> bool:
        bound = self._bound_to()
        if bound is not None:
            return bool(bound) and _in_use(self._controllers / bound)
        # No gadget of configfs has this line: one that was built otherwise, on whichever controller.
        try:
            return any(map(_in_use, self._controllers.iterdir()))
        except OSError:
            return False

    def _bound_to(self) -> str | None:
        """The controller of the gadget whose function is this line; empty when it is not bound, None when no gadget has it."""
        if self._gadget is None or _read(self._gadget / "UDC") is None:
            numbers = self._gadgets.glob("*/functions/*/port_num")
            self._gadget = next((each.parents[2] for each in numbers if _read(each) == self._port), None)
        return None if self._gadget is None else _read(self._gadget / "UDC") or ""


class TerminalCable:
    """A pseudo-terminal's: whether somebody has opened it. poll(2) says POLLHUP on our end when nobody has."""

    def __init__(self, descriptor: int) -> None:
        self._poll = select.poll()
        self._poll.register(descriptor, 0)

    def attached(self) -> bool:
        return not any(events & select.POLLHUP for _, events in self._poll.poll(0))


class NoCable:
    """A UART's: nobody knows, so somebody may always be there."""

    def attached(self) -> bool:
        return True


def is_usb(line: str) -> bool:
    """Whether a line is a serial gadget's."""
    return line.startswith("ttyGS")


def cable_of(paths: Paths, line: str) -> Cable:
    """The truth about a hardware line."""
    return UsbCable(paths, line) if is_usb(line) else NoCable()


async def until(condition: Callable[[], bool]) -> None:
    """Returns when it holds."""
    while not condition():  # noqa: ASYNC110 (sysfs and a terminal tell nobody)
        await asyncio.sleep(LOOK_S)


def _in_use(controller: Path) -> bool:
    """Whether a running machine uses the gadget of this controller. Some controllers stay `configured` when the bus falls asleep;
    then the gadget alone tells, as every composite one does (composite.c, `suspended`)."""
    asleep = (controller / "device").glob("gadget*/suspended")
    return _read(controller / "state") == CONFIGURED and all(_read(each) != "1" for each in asleep)


def _read(path: Path) -> str | None:
    """An attribute; None when there is none (any more)."""
    try:
        with path.open("rb") as file:
            return file.read(ATTRIBUTE_LIMIT_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return None
