"""What the keeper does as controllers and desktops come and go."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.network.direct_mode import DirectMode
from appliance.network.errors import CommandFailed
from appliance.network.gadget.controllers import Controller, Phase
from appliance.network.gadget.description import describe
from appliance.network.gadget.keeper import (
    FROZEN_AFTER,
    FROZEN_S,
    RETRY_LIMIT_S,
    RETRY_S,
    Action,
    Keeper,
    Patience,
    decide,
)
from appliance.network.gadget.plan import NAME
from appliance.network.machine_id import MachineId
from appliance.network.usb_interface import UsbInterface
from appliance.wire.messages import UsbState
from tests.network.fake_configfs import FakeConfigfs, Killed
from tests.network.programs import Programs

MACHINE = MachineId(b"0123456789abcdef0123456789abcdef\n")
UDC = "dummy_udc.0"


class Bench:
    """A keeper on a fake tree, with a clock that the test turns."""

    def __init__(self, root: Path, *, network: bool = True) -> None:
        self.tree, self.now, self.network = FakeConfigfs(root), 1000.0, network
        self.programs = Programs()
        self.keeper = self.another()

    def another(self) -> Keeper:
        """As a process that has just been started."""
        return Keeper(
            self.tree.gadgets,
            self.tree.udc,
            describe=lambda speed: describe(MACHINE, network=self.network, max_speed=speed),
            interface=UsbInterface(DirectMode(), self.programs.run) if self.network else None,
            release_line=self.release_line,
            clock=lambda: self.now,
            tree=self.tree,
        )

    def release_line(self) -> None:
        self.tree.line_open = False

    def look(self, after_s: float = 0.0) -> UsbState:
        self.now += after_s
        self.keeper.look()
        return self.keeper.status().state

    @property
    def bound_to(self) -> str:
        return self.tree.read(self.tree.gadgets / NAME / "UDC")

    def binds(self) -> int:
        return sum(each.startswith("write UDC dummy") for each in self.tree.log)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_no_controller_is_a_state(bench: Bench) -> None:
    assert bench.look() is UsbState.WAITING
    assert list(bench.tree.gadgets.iterdir()) == []
    bench.tree.add_controller(UDC, max_speed="super-speed")
    assert bench.look() is UsbState.UNPLUGGED
    assert bench.bound_to == UDC
    assert bench.tree.read(bench.tree.gadgets / NAME / "max_speed") == "super-speed"


def test_a_desktop_comes_and_goes(bench: Bench) -> None:
    bench.tree.add_controller(UDC)
    bench.look()
    bench.tree.set_state(UDC, "configured")
    assert bench.look(1) is UsbState.CONNECTED
    status = bench.keeper.status()
    assert (status.controller, status.speed, status.functions) == (UDC, "high-speed", ["acm", "ncm"])
    assert (status.interface, status.address, status.trouble) == ("usb0", "10.67.82.1/28", "")
    bench.tree.set_state(UDC, "suspended")
    assert bench.look(1) is UsbState.UNPLUGGED
    assert bench.binds() == 1


def test_the_controller_goes_and_comes_back(bench: Bench) -> None:
    bench.tree.add_controller(UDC)
    bench.look()
    bench.tree.remove_controller(UDC)
    assert bench.look(1) is UsbState.WAITING
    bench.tree.line_open = True
    bench.tree.add_controller(UDC)
    assert bench.look(1) is UsbState.UNPLUGGED
    assert bench.bound_to == UDC
    assert bench.binds() == 2
    assert bench.tree.read(bench.tree.udc / UDC / "function") == NAME


def test_another_controller_when_the_first_is_taken(bench: Bench) -> None:
    bench.tree.add_controller("dummy_udc.0")
    bench.tree.add_controller("dummy_udc.1")
    bench.tree.taken.add("dummy_udc.0")
    bench.look()
    assert bench.bound_to == "dummy_udc.1"


def test_all_are_taken(bench: Bench) -> None:
    bench.tree.add_controller(UDC)
    bench.tree.taken.add(UDC)
    assert bench.look() is UsbState.FAILED
    assert "Device or resource busy" in bench.keeper.status().detail
    bench.tree.taken.clear()
    assert bench.look(RETRY_S / 2) is UsbState.FAILED
    assert bench.look(RETRY_S / 2) is UsbState.UNPLUGGED
    assert bench.keeper.status().detail.startswith("nothing is plugged in")


def test_a_kernel_without_gadgets(bench: Bench) -> None:
    bench.tree.gadgets.rmdir()
    assert bench.look() is UsbState.WAITING
    bench.tree.add_controller(UDC)
    assert bench.look() is UsbState.FAILED
    assert "libcomposite" in bench.keeper.status().detail


def test_frozen_is_bound_again_ever_more_rarely_and_said(bench: Bench) -> None:
    bench.tree.add_controller(UDC)
    bench.look()
    bench.tree.set_state(UDC, "addressed")
    state, waited = bench.look(), []
    for _ in range(FROZEN_AFTER):
        before, begun = bench.binds(), bench.now
        while bench.binds() == before:
            assert state is not UsbState.FROZEN
            state = bench.look(1)
        waited.append(bench.now - begun)
    assert waited == [FROZEN_S, 2 * FROZEN_S, 4 * FROZEN_S]
    assert state is UsbState.FROZEN
    assert "stops at 'addressed'" in bench.keeper.status().detail
    bench.tree.set_state(UDC, "configured")
    assert bench.look(1) is UsbState.CONNECTED


def test_frozen_is_forgotten_when_it_is_unplugged(bench: Bench) -> None:
    bench.tree.add_controller(UDC)
    bench.look()
    bench.tree.set_state(UDC, "powered")
    while bench.look(1) is not UsbState.FROZEN:
        pass
    bench.tree.set_state(UDC, "not attached")
    bench.look(1)
    assert bench.look(FROZEN_S) is UsbState.UNPLUGGED


def test_halfway_for_a_moment_is_nothing(bench: Bench) -> None:
    bench.tree.add_controller(UDC)
    for _ in range(5):
        for state in ("default", "addressed", "configured", "not attached"):
            bench.tree.set_state(UDC, state)
            bench.look(FROZEN_S / 3)
    assert bench.binds() == 1


def test_taken_down_with_the_line_closed_first(bench: Bench) -> None:
    bench.tree.add_controller(UDC)
    bench.look()
    bench.tree.line_open = True
    bench.keeper.close()
    assert list(bench.tree.gadgets.iterdir()) == []
    assert "coral_reef_usb" not in bench.programs.tables


def test_a_failure_with_the_line_open(bench: Bench) -> None:
    """Somebody opens the line as soon as it is there."""
    bench.tree.add_controller(UDC)
    bench.tree.taken.add(UDC)
    bench.tree.line_open = True
    assert bench.look() is UsbState.FAILED
    assert list(bench.tree.gadgets.iterdir()) == []


def test_killed_half_way(bench: Bench) -> None:
    bench.tree.add_controller(UDC)
    bench.tree.killed_at = 17
    with pytest.raises(Killed):
        bench.look()
    bench.tree.killed_at = -1
    bench.keeper = bench.another()
    assert bench.look() is UsbState.UNPLUGGED
    assert bench.bound_to == UDC


def test_killed_while_a_desktop_is_there(bench: Bench) -> None:
    """The next one takes it over; the desktop does not notice."""
    bench.tree.add_controller(UDC)
    bench.tree.set_state(UDC, "configured")
    bench.look()
    operations = bench.tree.count
    bench.keeper = bench.another()
    assert bench.look() is UsbState.CONNECTED
    assert bench.tree.count == operations


def test_another_gadget_of_ours_makes_room(bench: Bench) -> None:
    bench.tree.add_controller(UDC)
    bench.look()
    bench.tree.line_open = True
    bench.network = False
    bench.keeper = bench.another()
    bench.look()
    folder = bench.tree.gadgets / NAME
    assert [path.name for path in (folder / "functions").iterdir()] == ["acm.usb0"]
    assert bench.keeper.status().interface == ""


def test_direct_mode_waits_for_the_name(bench: Bench) -> None:
    bench.tree.interface = "usb1"
    bench.tree.add_controller(UDC)
    bench.look()
    assert bench.keeper.status().address == ""
    assert bench.keeper.status().trouble == ""
    bench.look(20)
    assert "called usb1, expected usb0" in bench.keeper.status().trouble
    (bench.tree.gadgets / NAME / "functions/ncm.usb0/ifname").write_text("usb0\n")
    bench.look(1)
    assert bench.keeper.status().address == "10.67.82.1/28"
    assert bench.keeper.status().trouble == ""


def test_without_a_firewall_there_is_no_link(bench: Bench) -> None:
    bench.programs.broken["nft"] = CommandFailed("nft is not installed")
    bench.tree.add_controller(UDC)
    assert bench.look() is UsbState.UNPLUGGED
    assert bench.keeper.status().trouble == "nft is not installed"
    assert "ip link set usb0 up" not in bench.programs.log
    del bench.programs.broken["nft"]
    bench.look(1)
    assert "ip link set usb0 up" in bench.programs.log
    assert bench.keeper.status().trouble == ""


def test_the_firewall_is_looked_after_with_each_desktop(bench: Bench) -> None:
    bench.tree.add_controller(UDC)
    bench.look()
    bench.programs.tables.clear()  # nft flush ruleset
    bench.tree.set_state(UDC, "configured")
    bench.look(1)
    assert "coral_reef_usb" in bench.programs.tables


def test_patience_has_a_limit() -> None:
    patience = Patience()
    for _ in range(20):
        patience.failed(0.0)
    assert patience.not_before == RETRY_LIMIT_S
    for _ in range(20):
        patience.rebound(0.0)
    assert patience.frozen_s == RETRY_LIMIT_S


def test_nothing_is_done_without_reason() -> None:
    present = [Controller(UDC, Phase.CONFIGURED, "configured")]
    assert decide(present[0], present, Patience(), 0.0) is Action.NOTHING
    assert decide(None, [], Patience(), 0.0) is Action.NOTHING
    assert decide(None, present, Patience(not_before=1.0), 0.0) is Action.NOTHING
    assert decide(None, present, Patience(not_before=1.0), 1.0) is Action.BIND
