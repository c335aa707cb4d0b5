"""What the kernel shows of Edge TPUs below `root`/sys. Every attribute may be missing: drivers differ, and devices vanish while
one reads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from appliance.wire.messages import TpuBus

from .access import User, why_denied

#: (vendor, product) of the Coral USB accelerator, before and after something has opened it.
BOOT_LOADER = ("1a6e", "089a")
RUNNING = ("18d1", "9302")

#: (vendor, device) of the PCIe and M.2 modules.
PCIE = ("1ac1", "089a")

USB_DEVICES = "sys/bus/usb/devices"
APEX_CLASS = "sys/class/apex"
PCI_DEVICES = "sys/bus/pci/devices"

#: The longest attribute that is read; those that we read have a line.
ATTRIBUTE_LIMIT_BYTES = 4096

#: A port path as the kernel names it: bus, then port by port. Interfaces (`1-1:1.0`) and root hubs (`usb1`) are none.
USB_NAME = re.compile(r"[0-9]{1,3}-[0-9]{1,3}(?:\.[0-9]{1,3}){0,6}")
PCI_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


class Lack(StrEnum):
    """What a TPU that the kernel shows needs before anybody can use it."""

    NODE = "node"  # its file in /dev
    PERMISSION = "permission"
    DRIVER = "driver"


@dataclass(frozen=True)
class Sighting:
    """A TPU as it was seen at one moment. `node` and `sysfs` are paths without `root`; `lack` says in `detail` what it lacks."""

    id: str
    bus: TpuBus
    sysfs: str
    node: str = ""
    boot_loader: bool = False
    speed_mbps: int = 0
    lack: Lack | None = None
    detail: str = ""


class Sysfs:
    """The tree below `root`, seen for `user`, who will open what is found."""

    def __init__(self, root: Path, user: User) -> None:
        self.root, self._user = root, user

    def scan(self) -> dict[str, Sighting]:
        """All TPUs that are there, by id."""
        found = [self.usb(name) for name in self._names(USB_DEVICES)]
        return {seen.id: seen for seen in found if seen} | self.scan_pcie()

    def usb(self, name: str) -> Sighting | None:
        """The TPU at a port, None when there is none."""
        if not USB_NAME.fullmatch(name):
            return None
        folder = f"{USB_DEVICES}/{name}"
        uevent = self._uevent(folder)
        ids = self._text(folder, "idVendor").lower(), self._text(folder, "idProduct").lower()
        if "" in ids:  # the event's own words: PRODUCT=1a6e/89a/100
            vendor, _, rest = uevent.get("PRODUCT", "").partition("/")
            ids = vendor.lower().zfill(4), rest.partition("/")[0].lower().zfill(4)
        if ids not in (BOOT_LOADER, RUNNING):
            return None
        bus, device = self._number(folder, "busnum"), self._number(folder, "devnum")
        node = f"/dev/bus/usb/{bus:03}/{device:03}" if bus and device else ""
        if not node and (named := uevent.get("DEVNAME", "")):
            node = named if named.startswith("/") else f"/dev/{named}"
        lack, detail = self._lack(node)
        return Sighting(
            f"usb-{name}",
            TpuBus.USB,
            f"/{folder}",
            node,
            boot_loader=ids == BOOT_LOADER,
            speed_mbps=self._number(folder, "speed"),
            lack=lack,
            detail=detail,
        )

    def scan_pcie(self) -> dict[str, Sighting]:
        """Those on PCI, by id: with the driver, then without."""
        found: dict[str, Sighting] = {}
        for name in self._names(APEX_CLASS):
            folder = f"{APEX_CLASS}/{name}"
            node = f"/dev/{name}"
            lack, detail = self._lack(node)
            seen = Sighting(f"pci-{self._address(folder, name)}", TpuBus.PCIE, f"/{folder}", node)
            found[seen.id] = Sighting(
                seen.id, seen.bus, seen.sysfs, node if lack is not Lack.NODE else "", lack=lack, detail=detail
            )
        for address in self._names(PCI_DEVICES):
            folder = f"{PCI_DEVICES}/{address}"
            if f"pci-{address}" in found or self._text(folder, "vendor") != f"0x{PCIE[0]}":
                continue
            if self._text(folder, "device") == f"0x{PCIE[1]}":
                found[f"pci-{address}"] = Sighting(
                    f"pci-{address}",
                    TpuBus.PCIE,
                    f"/{folder}",
                    lack=Lack.DRIVER,
                    detail=f"{address} is there, but no driver has taken it",
                )
        return found

    def temperature_millicelsius(self, sysfs: str) -> int | None:
        """What the chip's sensor says, None when the driver does not tell."""
        try:
            return int(self._text(sysfs.lstrip("/"), "temp"))
        except ValueError:
            return None

    def _address(self, folder: str, name: str) -> str:
        """The PCI address, from the driver or from the link to the device; the device's own name when neither tells."""
        told = self._text(folder, "pci_address").lower()
        if PCI_ADDRESS.fullmatch(told):
            return told
        try:
            linked = (self.root / folder / "device").resolve().name.lower()
        except OSError:
            return name
        return linked if PCI_ADDRESS.fullmatch(linked) else name

    def _lack(self, node: str) -> tuple[Lack | None, str]:
        if not node:
            return Lack.NODE, "the kernel does not say yet where its node is"
        try:
            denied = why_denied(self.root / node.lstrip("/"), node, self._user)
        except FileNotFoundError:
            return Lack.NODE, f"{node} does not exist"
        except OSError as error:
            return Lack.PERMISSION, f"{node}: {error.strerror}"
        return (Lack.PERMISSION, denied) if denied else (None, "")

    def _names(self, folder: str) -> list[str]:
        try:
            return sorted(entry.name for entry in (self.root / folder).iterdir())
        except OSError:
            return []

    def _text(self, folder: str, attribute: str) -> str:
        """An attribute's text; empty when it is missing, or goes away meanwhile."""
        try:
            with (self.root / folder / attribute).open("rb") as file:
                return file.read(ATTRIBUTE_LIMIT_BYTES).decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def _number(self, folder: str, attribute: str) -> int:
        """A count, 0 when it is missing or none."""
        text = self._text(folder, attribute)
        return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0

    def _uevent(self, folder: str) -> dict[str, str]:
        lines = self._text(folder, "uevent").splitlines()
        return {name: value for name, _, value in (line.partition("=") for line in lines)}
