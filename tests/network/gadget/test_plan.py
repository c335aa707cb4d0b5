"""Which steps make a gadget, and that they are undone, whatever happens half way."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.network.errors import StepFailed
from appliance.network.gadget.description import RELEASES, Function, Gadget, describe
from appliance.network.gadget.plan import NAME, fits, remains, steps_for
from appliance.network.gadget.steps import Bind, Step, Write, apply, undo
from appliance.network.machine_id import MachineId
from tests.network.fake_configfs import FakeConfigfs, Killed

MACHINE = MachineId(b"0123456789abcdef0123456789abcdef\n")
GADGET = describe(MACHINE, network=True, max_speed="super-speed")
SERIAL_ONLY = describe(MACHINE, network=False)


@pytest.fixture
def tree(tmp_path: Path) -> FakeConfigfs:
    found = FakeConfigfs(tmp_path)
    found.add_controller("dummy_udc.0")
    return found


def steps(tree: FakeConfigfs, gadget: Gadget = GADGET) -> list[Step]:
    folder = tree.gadgets / NAME
    return [*steps_for(gadget, folder), Bind(folder / "UDC", "dummy_udc.0")]


def everything(tree: FakeConfigfs) -> list[Path]:
    return sorted(tree.gadgets.rglob("*"))


def test_what_a_desktop_is_shown(tree: FakeConfigfs) -> None:
    apply(steps(tree), tree)
    folder = tree.gadgets / NAME
    shown = {
        str(path.relative_to(folder)): tree.read(path)
        for path in folder.rglob("*")
        if path.is_file() and tree.read(path)
    }
    assert shown.pop("strings/0x409/serialnumber") == GADGET.serial
    assert shown.pop("functions/ncm.usb0/dev_addr") == GADGET.device_mac
    assert shown.pop("functions/ncm.usb0/host_addr") == GADGET.host_mac
    assert shown == {
        "UDC": "dummy_udc.0",
        "bDeviceClass": "0xef",
        "bDeviceSubClass": "0x02",
        "bDeviceProtocol": "0x01",
        "bcdDevice": "0x0101",
        "bcdUSB": "0x0200",
        "idVendor": "0x1d6b",
        "idProduct": "0x0104",
        "max_speed": "super-speed",
        "configs/c.1/MaxPower": "0",
        "configs/c.1/bmAttributes": "0xc0",
        "configs/c.1/strings/0x409/configuration": "Coral-Reef tower",
        "functions/ncm.usb0/ifname": "usb0",
        "functions/ncm.usb0/os_desc/interface.ncm/compatible_id": "WINNCM",
        "os_desc/b_vendor_code": "0x43",
        "os_desc/qw_sign": "MSFT100",
        "os_desc/use": "1",
        "strings/0x409/manufacturer": "Coral-Reef",
        "strings/0x409/product": "Coral-Reef tower",
    }
    links = {str(path.relative_to(folder)): path.resolve() for path in folder.rglob("*") if path.is_symlink()}
    assert links == {
        "configs/c.1/acm.usb0": folder / "functions/acm.usb0",
        "configs/c.1/ncm.usb0": folder / "functions/ncm.usb0",
        "os_desc/c.1": folder / "configs/c.1",
    }


def test_without_a_network(tree: FakeConfigfs) -> None:
    apply(steps(tree, SERIAL_ONLY), tree)
    folder = tree.gadgets / NAME
    assert [path.name for path in (folder / "functions").iterdir()] == ["acm.usb0"]
    assert tree.read(folder / "bcdDevice") == "0x0100"
    assert tree.read(folder / "os_desc/use") == ""


def test_each_set_of_functions_has_a_release_of_its_own() -> None:
    assert len(set(RELEASES.values())) == len(RELEASES)
    assert (Function.SERIAL,) in RELEASES


def test_undone_completely(tree: FakeConfigfs) -> None:
    apply(steps(tree), tree)
    assert undo(steps(tree), tree)
    assert everything(tree) == []


def test_a_failure_at_every_step(tree: FakeConfigfs) -> None:
    """Whatever fails, nothing is left, and then it can be made all the same."""
    apply(steps(tree), tree)
    operations = tree.count
    undo(steps(tree), tree)
    asked = 0
    for number in range(operations):
        tree.count, tree.fail_at = 0, number

        def release() -> None:
            nonlocal asked
            asked += 1

        with pytest.raises(StepFailed, match="No such device"):
            apply(steps(tree), tree, before_undo=release)
        assert everything(tree) == []
    assert asked == operations
    tree.fail_at = -1
    apply(steps(tree), tree)


def test_a_failure_while_undoing_stops_nothing_else(tree: FakeConfigfs) -> None:
    apply(steps(tree), tree)
    tree.count, tree.fail_at = 0, 1
    assert not undo(steps(tree), tree)
    tree.fail_at = -1
    assert undo(remains(tree.gadgets / NAME, tree), tree)
    assert everything(tree) == []


def test_killed_at_every_step(tree: FakeConfigfs) -> None:
    """The next one finds what is there and completes it, and it is as if nothing had happened."""
    apply(steps(tree), tree)
    whole, operations = everything(tree), tree.count
    undo(steps(tree), tree)
    for number in range(operations):
        tree.count, tree.killed_at = 0, number
        with pytest.raises(Killed):
            apply(steps(tree), tree)
        tree.killed_at = -1
        found = remains(tree.gadgets / NAME, tree)
        assert fits(steps(tree), found, tree)
        apply(steps(tree), tree)
        assert everything(tree) == whole
        assert all(step.done(tree) for step in steps(tree))
        assert undo(remains(tree.gadgets / NAME, tree), tree)
        assert everything(tree) == []


def test_what_killed_ones_leave_can_be_taken_away(tree: FakeConfigfs) -> None:
    apply(steps(tree), tree)
    operations = tree.count
    undo(steps(tree), tree)
    for number in range(operations):
        tree.count, tree.killed_at = 0, number
        with pytest.raises(Killed):
            apply(steps(tree), tree)
        tree.killed_at = -1
        assert undo(remains(tree.gadgets / NAME, tree), tree)
        assert everything(tree) == []


def test_a_gadget_with_other_functions_does_not_fit(tree: FakeConfigfs) -> None:
    apply(steps(tree), tree)
    assert not fits(steps(tree, SERIAL_ONLY), remains(tree.gadgets / NAME, tree), tree)


def test_a_bound_gadget_with_another_attribute_does_not_fit(tree: FakeConfigfs) -> None:
    apply(steps(tree), tree)
    found = remains(tree.gadgets / NAME, tree)
    assert fits(steps(tree), found, tree)
    (tree.gadgets / NAME / "bcdDevice").write_text("0x0001\n")
    assert not fits(steps(tree), found, tree)


def test_an_attribute_that_the_kernel_does_not_have(tree: FakeConfigfs) -> None:
    missing = Write(tree.gadgets / NAME / "new_attribute", "1")
    with pytest.raises(StepFailed, match=r"cannot write '1' to .*/new_attribute: No such file or directory"):
        apply([*steps(tree)[:3], missing], tree)
    assert everything(tree) == []


def test_a_busy_controller_is_told_apart(tree: FakeConfigfs) -> None:
    tree.taken.add("dummy_udc.0")
    with pytest.raises(StepFailed) as caught:
        apply(steps(tree), tree)
    assert caught.value.busy
