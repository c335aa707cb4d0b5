"""What a desktop is shown: the descriptors of the composite device."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from appliance.network.machine_id import MachineId

#: The Linux Foundation's "Multifunction Composite Gadget": the ids that are free to use for one.
VENDOR, PRODUCT = 0x1D6B, 0x0104

MANUFACTURER = "Coral-Reef"

SERIAL_BYTES = 8


class Function(StrEnum):
    """Part of the device, by the kernel's name."""

    SERIAL = "acm"
    NETWORK = "ncm"


#: bcdDevice for each set of functions. Windows remembers, for each release of a device, which drivers it needs: a set that
#: changes gets a number that no other set has had.
RELEASES = {
    (Function.SERIAL,): 0x0100,
    (Function.SERIAL, Function.NETWORK): 0x0101,
}


@dataclass(frozen=True)
class Gadget:
    """`max_speed` is the controller's, in the kernel's words (`super-speed`); empty leaves the kernel's choice."""

    functions: tuple[Function, ...]
    serial: str
    device_mac: str
    host_mac: str
    max_speed: str = ""

    @property
    def release(self) -> int:
        return RELEASES[self.functions]

    @property
    def product(self) -> str:
        """What the desktop's list of devices shows."""
        return "Coral-Reef tower"


def describe(machine: MachineId, *, network: bool, max_speed: str = "") -> Gadget:
    """The device of this machine, with or without the network interface."""
    return Gadget(
        functions=(Function.SERIAL, Function.NETWORK) if network else (Function.SERIAL,),
        serial=machine.derived("usb serial number", SERIAL_BYTES).hex().upper(),
        device_mac=machine.mac("usb device MAC"),
        host_mac=machine.mac("usb host MAC"),
        max_speed=max_speed,
    )
