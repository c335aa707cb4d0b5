"""The truth about a cable, in a /sys of our own."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.paths import Paths
from console.link import NoCable, UsbCable, cable_of

STATES = (
    "not attached",
    "attached",
    "powered",
    "reconnecting",
    "unauthenticated",
    "default",
    "addressed",
    "configured",
    "suspended",
    "UNKNOWN",
)


class Usb:
    """Controllers and gadgets as the kernel shows them below /sys."""

    def __init__(self, root: Path) -> None:
        self._sys = root / "sys"
        self.paths = Paths.system(root)

    def controller(self, name: str, state: str) -> None:
        folder = self._sys / "class/udc" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state").write_text(f"{state}\n")

    def gadget(self, name: str, controller: str, *, port: int = 0) -> None:
        function = self._sys / "kernel/config/usb_gadget" / name / "functions/acm.usb0"
        function.mkdir(parents=True, exist_ok=True)
        (function / "port_num").write_text(f"{port}\n")
        (function.parents[1] / "UDC").write_text(f"{controller}\n")


@pytest.fixture
def usb(tmp_path: Path) -> Usb:
    return Usb(tmp_path)


@pytest.mark.parametrize("state", STATES)
def test_only_configured_is_attached(usb: Usb, state: str) -> None:
    """dwc2 tells of an unplugged cable as `suspended` and nothing else."""
    usb.controller("dummy_udc.0", state)
    usb.gadget("coral-reef", "dummy_udc.0")
    assert cable_of(usb.paths, "ttyGS0").attached() == (state == "configured")


@pytest.mark.parametrize(("suspended", "attached"), [("0", True), ("1", False)])
def test_a_gadget_that_sleeps_on_a_controller_that_does_not_tell(
    usb: Usb, suspended: str, *, attached: bool
) -> None:
    usb.controller("dummy_udc.0", "configured")
    usb.gadget("coral-reef", "dummy_udc.0")
    gadget = usb.paths.usb_controllers / "dummy_udc.0/device/gadget.0"
    gadget.mkdir(parents=True)
    (gadget / "suspended").write_text(f"{suspended}\n")
    assert cable_of(usb.paths, "ttyGS0").attached() == attached


def test_the_controller_is_that_of_the_line(usb: Usb) -> None:
    """Other gadgets of the machine have cables of their own."""
    usb.controller("dummy_udc.0", "not attached")
    usb.controller("dummy_udc.1", "configured")
    usb.gadget("other", "dummy_udc.1", port=1)
    usb.gadget("coral-reef", "dummy_udc.0", port=0)
    assert not UsbCable(usb.paths, "ttyGS0").attached()
    assert UsbCable(usb.paths, "ttyGS1").attached()


def test_a_gadget_that_is_bound_later_and_elsewhere(usb: Usb) -> None:
    cable = UsbCable(usb.paths, "ttyGS0")
    assert not cable.attached()
    usb.controller("a", "configured")
    usb.controller("b", "configured")
    usb.gadget("coral-reef", "")
    assert not cable.attached()
    usb.gadget("coral-reef", "a")
    assert cable.attached()
    usb.controller("a", "suspended")
    assert not cable.attached()
    usb.gadget("coral-reef", "b")
    assert cable.attached()


def test_a_gadget_that_configfs_does_not_know(usb: Usb) -> None:
    usb.controller("a", "suspended")
    cable = UsbCable(usb.paths, "ttyGS0")
    assert not cable.attached()
    usb.controller("b", "configured")
    assert cable.attached()


def test_a_controller_that_vanishes(usb: Usb) -> None:
    usb.gadget("coral-reef", "gone")
    assert not UsbCable(usb.paths, "ttyGS0").attached()


def test_a_uart_cannot_tell(usb: Usb) -> None:
    cable = cable_of(usb.paths, "ttyS0")
    assert isinstance(cable, NoCable)
    assert cable.attached()
