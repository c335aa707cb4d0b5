"""The USB port towards a desktop, as its own service (coral-reef-gadget) tells of it: for the status, and for repairs."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec

from appliance.wire.messages import UsbLink, UsbState

from .repairs import Kind, Repairs

log = logging.getLogger(__name__)

LOOK_S = 5.0

_LIMIT_BYTES = 64 * 1024

#: One port a tower.
SUBJECT = "port"


class Usb:
    """`path` is where the service says how it is; nobody else can write there."""

    def __init__(self, path: Path, repairs: Repairs) -> None:
        self._path, self._repairs = path, repairs

    async def run(self) -> None:
        """Opens and closes repairs until it is cancelled. That a machine has no controller, or nobody plugs in, is none."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """What is wrong now becomes a repair."""
        link = self.link()
        detail = "" if link is None else link.detail
        state = None if link is None else link.state
        for kind, bad in ((Kind.USB_GADGET, UsbState.FAILED), (Kind.USB_FROZEN, UsbState.FROZEN)):
            self._repairs.when(kind, SUBJECT, f"the USB port: {detail}" if state is bad else "")
        trouble = "" if link is None else link.trouble
        self._repairs.when(
            Kind.USB_DIRECT_MODE, SUBJECT, f"no network on the USB port: {trouble}" if trouble else ""
        )

    def link(self) -> UsbLink | None:
        """None when the service does not run, or says what we do not understand."""
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(_LIMIT_BYTES), type=UsbLink)
        except (OSError, msgspec.MsgspecError):
            return None
