"""The serial ports of this machine that lead to a tower: what its cable looks like from the other end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: Of the tower's USB gadget: the Linux Foundation's composite gadget, with our name on it.
VENDOR, PRODUCT = "1d6b", "0104"
NAME = "Coral-Reef"

ATTRIBUTE_LIMIT_BYTES = 256


@dataclass(frozen=True)
class Port:
    """A serial port of a tower: `/dev/ttyACM0`, the tower's serial number, and the USB port that its cable is in."""

    device: Path
    serial: str
    place: str


def find_ports(sys: Path = Path("/sys"), dev: Path = Path("/dev")) -> list[Port]:
    """All of them, by device. A port has the ids and the name of a tower; others have ttyACM as well."""
    found = []
    for tty in sorted((sys / "class/tty").glob("ttyACM*"), key=_number):
        try:
            usb = (tty / "device").resolve(strict=True).parent  # the device of the interface
        except OSError:
            continue
        if (_read(usb / "idVendor"), _read(usb / "idProduct")) != (VENDOR, PRODUCT):
            continue
        if NAME.lower() not in f"{_read(usb / 'manufacturer')} {_read(usb / 'product')}".lower():
            continue
        found.append(Port(dev / tty.name, _read(usb / "serial"), usb.name))
    return found


def _number(tty: Path) -> int:
    digits = tty.name.removeprefix("ttyACM")
    return int(digits) if digits.isdecimal() else 0


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(ATTRIBUTE_LIMIT_BYTES).decode("utf-8", "replace").strip()
    except OSError:
        return ""
