"""Edge TPUs on USB that are none, for the virtual machine: gadgets of FunctionFS on the ports of dummy_hcd.

Each begins as its boot loader (1a6e:089a, DFU), takes a firmware, and comes back on the same port as what it is when it runs
(18d1:9302), as the real one does. Runs in the machine as root, with its own Python and nothing else: `fake_coral.py COUNT FIFO`.
From the FIFO it takes lines: `plug N`, `unplug N`, N from 0; `plug N running` leaves the boot loader out.
"""

from __future__ import annotations

import errno
import os
import selectors
import struct
import subprocess
import sys
from pathlib import Path

GADGETS = Path("/sys/kernel/config/usb_gadget")
MOUNTS = Path("/run/fake-coral")

BOOT_LOADER = (0x1A6E, 0x089A)
RUNNING = (0x18D1, 0x9302)

# linux/usb/functionfs.h
DESCRIPTORS_MAGIC_V2, STRINGS_MAGIC = 3, 2
HAS_FULL_SPEED, HAS_HIGH_SPEED, HAS_SUPER_SPEED = 1, 2, 4
EVENT_BYTES, EVENT_SETUP = 12, 4

# USB 2.0, table 9-12 and 9-13; USB 3.1, table 9-26
INTERFACE, ENDPOINT, COMPANION = 4, 5, 0x30
BULK, INTERRUPT = 2, 3

# USB DFU 1.1, tables 3.2 and A.2.1
DFU_DOWNLOAD, DFU_GET_STATUS = 1, 3
DFU_IDLE, DFU_DOWNLOAD_IDLE, DFU_MANIFEST = 2, 5, 7
TO_DEVICE, TO_HOST = 0x21, 0xA1


def descriptors(kind: tuple[int, int, int], endpoints: list[tuple[int, int]]) -> bytes:
    """One interface of (class, subclass, protocol) with endpoints of (address, type), at each of the three speeds."""
    parts, counts = [], []
    for bulk_bytes, companions in ((64, False), (512, False), (1024, True)):
        found = [struct.pack("9B", 9, INTERFACE, 0, 0, len(endpoints), *kind, 1)]
        for address, transfer in endpoints:
            size, interval = (bulk_bytes, 0) if transfer == BULK else (8, 4)
            found.append(struct.pack("<4BHB", 7, ENDPOINT, address, transfer, size, interval))
            if companions:
                found.append(struct.pack("<4BH", 6, COMPANION, 0, 0, 0 if transfer == BULK else 8))
        parts.append(b"".join(found))
        counts.append(len(found))
    body = struct.pack("<3I", *counts) + b"".join(parts)
    flags = HAS_FULL_SPEED | HAS_HIGH_SPEED | HAS_SUPER_SPEED
    return struct.pack("<3I", DESCRIPTORS_MAGIC_V2, 12 + len(body), flags) + body


def strings(name: bytes) -> bytes:
    """One string in American English."""
    return struct.pack("<4IH", STRINGS_MAGIC, 16 + 2 + len(name) + 1, 1, 1, 0x409) + name + b"\0"


class Gadget:
    """A USB device that is not plugged in yet; `ep0` tells what its host asks for."""

    def __init__(self, name: str, ids: tuple[int, int], content: bytes) -> None:
        self._folder = GADGETS / name
        for each in ("strings/0x409", "configs/c.1", f"functions/ffs.{name}"):
            (self._folder / each).mkdir(parents=True)
        for attribute, value in (("idVendor", ids[0]), ("idProduct", ids[1]), ("bcdUSB", 0x0310)):
            (self._folder / attribute).write_text(hex(value))
        (self._folder / "configs/c.1/MaxPower").write_text("500")
        (self._folder / f"configs/c.1/ffs.{name}").symlink_to(self._folder / f"functions/ffs.{name}")
        mount = MOUNTS / name
        mount.mkdir(parents=True)
        subprocess.run(["mount", "-t", "functionfs", name, str(mount)], check=True)
        self.ep0 = os.open(mount / "ep0", os.O_RDWR)
        os.write(self.ep0, content)
        os.write(self.ep0, strings(b"Coral"))

    def plug(self, controller: str) -> None:
        (self._folder / "UDC").write_text(controller)

    def unplug(self) -> None:
        (self._folder / "UDC").write_text("\n")


class Coral:
    """One on its port: what it is depends on what it has been sent."""

    def __init__(self, number: int) -> None:
        self._controller = f"dummy_udc.{number}"
        boot = descriptors((0xFE, 1, 2), [])
        run = descriptors((0xFF, 0xFF, 0xFF), [(0x01, BULK), (0x81, BULK), (0x82, BULK), (0x83, INTERRUPT)])
        self.boot = Gadget(f"coral{number}-boot", BOOT_LOADER, boot)
        self.run = Gadget(f"coral{number}-run", RUNNING, run)
        self._plugged: Gadget | None = None
        self._state = DFU_IDLE
        self._firmware_bytes = 0

    def plug(self, *, running: bool) -> None:
        self._state, self._firmware_bytes = DFU_IDLE, 0
        self._plugged = self.run if running else self.boot
        self._plugged.plug(self._controller)

    def unplug(self) -> None:
        if self._plugged is not None:
            self._plugged.unplug()
            self._plugged = None

    def hear(self, gadget: Gadget) -> None:
        """One event of one of its identities."""
        event = os.read(gadget.ep0, EVENT_BYTES)
        request_type, request, _, _, length, kind = struct.unpack("<BBHHHB", event[:9])
        if kind != EVENT_SETUP:
            return
        if gadget is self.boot and (request_type, request) == (TO_DEVICE, DFU_DOWNLOAD):
            self._firmware_bytes += len(os.read(gadget.ep0, length))
            self._state = DFU_DOWNLOAD_IDLE if length else DFU_MANIFEST
        elif gadget is self.boot and (request_type, request) == (TO_HOST, DFU_GET_STATUS):
            os.write(gadget.ep0, struct.pack("<B3sBB", 0, b"\1\0\0", self._state, 0)[:length])
            if self._state == DFU_MANIFEST and self._firmware_bytes:
                self.unplug()
                self.plug(running=True)
        elif request_type & 0x80:
            os.write(gadget.ep0, bytes(length))
        else:
            os.read(gadget.ep0, length)


def main(count: int, fifo: Path) -> None:
    corals = [Coral(number) for number in range(count)]
    os.mkfifo(fifo)
    orders = os.open(fifo, os.O_RDWR)
    waiting = selectors.DefaultSelector()
    waiting.register(orders, selectors.EVENT_READ)
    for coral in corals:
        for gadget in (coral.boot, coral.run):
            waiting.register(gadget.ep0, selectors.EVENT_READ, (coral, gadget))
    while True:
        for key, _ in waiting.select():
            if key.data:
                coral, gadget = key.data
                try:
                    coral.hear(gadget)
                except OSError as error:  # the host has changed its mind, or the cable is out
                    if error.errno not in (errno.EIDRM, errno.EL2HLT, errno.ESHUTDOWN):
                        raise
                continue
            for line in os.read(orders, 4096).decode().splitlines():
                what, number, *more = line.split()
                if what == "plug":
                    corals[int(number)].plug(running="running" in more)
                else:
                    corals[int(number)].unplug()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
