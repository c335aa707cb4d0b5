"""TPUs in a tree like the kernel's, whole and with parts missing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.devices.access import User, why_denied
from appliance.devices.sysfs import Lack, Sighting, Sysfs
from appliance.wire.messages import TpuBus

from .fake_sysfs import FakeSysfs

ROOT_USER = User("root", 0, frozenset())
WORKER = User("coral-worker", 64_001, frozenset({64_002}))


@pytest.fixture
def fake(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path)


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path, ROOT_USER)


def test_a_machine_without_any(sysfs: Sysfs, tmp_path: Path) -> None:
    assert sysfs.scan() == {}
    assert Sysfs(tmp_path / "nowhere", ROOT_USER).scan() == {}


def test_both_identities_of_the_usb_accelerator(fake: FakeSysfs, sysfs: Sysfs) -> None:
    fake.usb("1-1.2", 7)
    fake.usb("2-4", 12, running=True, bus=2, speed="480")
    assert sysfs.scan() == {
        "usb-1-1.2": Sighting(
            "usb-1-1.2",
            TpuBus.USB,
            "/sys/bus/usb/devices/1-1.2",
            "/dev/bus/usb/001/007",
            boot_loader=True,
            speed_mbps=5000,
        ),
        "usb-2-4": Sighting(
            "usb-2-4", TpuBus.USB, "/sys/bus/usb/devices/2-4", "/dev/bus/usb/002/012", speed_mbps=480
        ),
    }


def test_what_is_none(fake: FakeSysfs, sysfs: Sysfs) -> None:
    fake.usb("1-2", idVendor="046d", idProduct="c31c")
    fake.usb("1-3", idVendor="1a6e", idProduct="9302")  # ours only together
    for name in ("1-1:1.0", "usb1", "1-0:1.0", "..", "1-1.2.3.4.5.6.7.8"):
        if name != "..":
            fake.usb(name)
        assert sysfs.usb(name) is None
    assert sysfs.scan() == {}


@pytest.mark.parametrize("missing", ["idVendor", "idProduct", "busnum", "devnum", "uevent", "speed"])
def test_any_attribute_may_be_missing(missing: str, fake: FakeSysfs, sysfs: Sysfs) -> None:
    (fake.usb("1-1", 3) / missing).unlink()
    seen = sysfs.usb("1-1")
    assert seen is not None
    assert (seen.node, seen.boot_loader, seen.lack) == ("/dev/bus/usb/001/003", True, None)


def test_nothing_says_what_it_is_or_where(fake: FakeSysfs, sysfs: Sysfs) -> None:
    folder = fake.usb("1-1", 3, busnum=None, uevent=None)
    seen = sysfs.usb("1-1")
    assert seen is not None
    assert (seen.node, seen.lack) == ("", Lack.NODE)
    (folder / "idVendor").unlink()
    assert sysfs.usb("1-1") is None


def test_a_node_that_is_not_there_yet(fake: FakeSysfs, sysfs: Sysfs) -> None:
    fake.usb("1-1", 3, mode=None)
    seen = sysfs.usb("1-1")
    assert seen is not None
    assert (seen.lack, seen.detail) == (Lack.NODE, "/dev/bus/usb/001/003 does not exist")


def test_permission_denied_says_who_may(fake: FakeSysfs, tmp_path: Path) -> None:
    fake.usb("1-1", 3, mode=0o664)
    seen = Sysfs(tmp_path, WORKER).usb("1-1")
    assert seen is not None
    assert seen.lack is Lack.PERMISSION
    owner = why_denied(tmp_path / "dev/bus/usb/001/003", "X", WORKER).split()[2]
    assert seen.detail == f"/dev/bus/usb/001/003 is {owner} with mode 0664: user coral-worker may not use it"


def test_who_may(tmp_path: Path) -> None:
    node = tmp_path / "node"
    node.touch()
    ours = User("us", os.geteuid(), frozenset({node.stat().st_gid}))
    group = User("other", 64_001, frozenset({node.stat().st_gid}))
    for mode, owner, member, stranger in (
        (0o660, True, True, False),
        (0o666, True, True, True),
        (0o600, True, False, False),
        (0o606, True, False, True),  # the group is asked first, as the kernel does
        (0o644, True, False, False),
    ):
        node.chmod(mode)
        denied = [bool(why_denied(node, "node", user)) for user in (ours, group, WORKER, ROOT_USER)]
        assert denied == [not owner, not member, not stranger, False]
    with pytest.raises(FileNotFoundError):
        why_denied(tmp_path / "none", "none", ROOT_USER)
    assert User.named(None).uid == os.geteuid()
    assert User.named("root").uid == 0
    with pytest.raises(KeyError):
        User.named("no-such-user-at-all")


def test_pcie(fake: FakeSysfs, sysfs: Sysfs) -> None:
    fake.apex(0, "0000:03:00.0")
    fake.apex(7, "0000:01:00.0")  # numbers do not follow addresses
    assert sysfs.scan() == {
        "pci-0000:03:00.0": Sighting(
            "pci-0000:03:00.0", TpuBus.PCIE, "/sys/class/apex/apex_0", "/dev/apex_0"
        ),
        "pci-0000:01:00.0": Sighting(
            "pci-0000:01:00.0", TpuBus.PCIE, "/sys/class/apex/apex_7", "/dev/apex_7"
        ),
    }
    assert sysfs.temperature_millicelsius("/sys/class/apex/apex_0") == 41_000


def test_old_drivers(fake: FakeSysfs, sysfs: Sysfs) -> None:
    folder = fake.apex(0, "0000:03:00.0", pci_address=None, temp=None)
    assert list(sysfs.scan()) == ["pci-0000:03:00.0"]  # by the link to its device
    assert sysfs.temperature_millicelsius("/sys/class/apex/apex_0") is None
    (folder / "device").unlink()
    assert "pci-apex_0" in sysfs.scan_pcie()
    (folder / "temp").write_text("warm\n")
    assert sysfs.temperature_millicelsius("/sys/class/apex/apex_0") is None


def test_no_driver(fake: FakeSysfs, sysfs: Sysfs) -> None:
    fake.apex(0, "0000:03:00.0", driver=False)
    seen = sysfs.scan()["pci-0000:03:00.0"]
    assert (seen.lack, seen.detail) == (Lack.DRIVER, "0000:03:00.0 is there, but no driver has taken it")
    fake.apex(0, "0000:03:00.0")
    assert sysfs.scan()["pci-0000:03:00.0"].lack is None


@given(
    st.dictionaries(
        st.sampled_from(
            ["idVendor", "idProduct", "busnum", "devnum", "speed", "uevent", "pci_address", "temp"]
        ),
        st.binary(max_size=64)
        | st.sampled_from([b"1a6e\n", b"089a\n", b"0000:03:00.0\n", b"-89700\n", b"9" * 5000]),
    )
)
def test_whatever_the_attributes_hold(values: dict[str, bytes]) -> None:
    """Never an error, and a number is one or 0."""
    with tempfile.TemporaryDirectory() as folder:
        fake = FakeSysfs(Path(folder))
        places = (fake.usb("1-1"), fake.apex(0, "0000:03:00.0"))
        for place in places:
            for name, value in values.items():
                (place / name).write_bytes(value)
        sysfs = Sysfs(Path(folder), WORKER)
        for seen in sysfs.scan().values():
            assert 0 <= seen.speed_mbps < 10**8
            sysfs.temperature_millicelsius(seen.sysfs)
