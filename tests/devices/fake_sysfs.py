"""A tree like the kernel's /sys and /dev below a folder, to be changed at will."""

from __future__ import annotations

import shutil
from pathlib import Path


class FakeSysfs:
    """`root` is what `Sysfs` is given."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("sys/bus/usb/devices", "sys/bus/pci/devices", "sys/class/apex", "dev"):
            (root / folder).mkdir(parents=True, exist_ok=True)

    def usb(
        self,
        port: str,
        number: int = 2,
        *,
        running: bool = False,
        bus: int = 1,
        mode: int | None = 0o660,
        **attributes: str | None,
    ) -> Path:
        """A TPU at a port; attributes of None are missing, a mode of None leaves its node out. Returns its folder."""
        vendor, product = ("18d1", "9302") if running else ("1a6e", "089a")
        node = f"dev/bus/usb/{bus:03}/{number:03}"
        values = {
            "idVendor": vendor,
            "idProduct": product,
            "busnum": str(bus),
            "devnum": str(number),
            "speed": "5000",
            "uevent": f"DEVTYPE=usb_device\nDEVNAME={node.removeprefix('dev/')}\nPRODUCT={vendor}/{product.lstrip('0')}/100\n",
            **attributes,
        }
        if mode is not None:
            self.node(node, mode)
        return self._folder(f"sys/bus/usb/devices/{port}", values)

    def apex(self, number: int, address: str, *, driver: bool = True, **attributes: str | None) -> Path:
        """A PCIe TPU; without its driver, only PCI has it. Returns the folder of the attributes."""
        pci = self._folder(f"sys/bus/pci/devices/{address}", {"vendor": "0x1ac1", "device": "0x089a"})
        if not driver:
            return pci
        self.node(f"dev/apex_{number}", 0o660)
        values = {"pci_address": address, "temp": "41000", "status": "ALIVE", **attributes}
        folder = self._folder(f"sys/class/apex/apex_{number}", values)
        if not (folder / "device").is_symlink():
            (folder / "device").symlink_to(pci)
        return folder

    def node(self, path: str, mode: int) -> Path:
        node = self.root / path
        node.parent.mkdir(parents=True, exist_ok=True)
        node.touch()
        node.chmod(mode)
        return node

    def remove(self, path: str) -> None:
        """A folder, by its path below the root."""
        shutil.rmtree(self.root / path)

    def _folder(self, path: str, values: dict[str, str | None]) -> Path:
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            if value is None:
                (folder / name).unlink(missing_ok=True)
            else:
                (folder / name).write_text(f"{value}\n")
        return folder
