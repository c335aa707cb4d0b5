"""TPUs that are plugged in and out before the real libudev, with what the field reports of them. Times have generous bounds."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from appliance.config.appliance import Devices, LayoutName
from appliance.devices.states import PATIENCE_S
from appliance.devices.table import FLAPS, RETRY_S
from appliance.wire.messages import Tpu, TpuBus, TpuState
from tests.devices.hotplug import Testbed, Watched
from tests.waiting import wait_for

pytestmark = pytest.mark.system

APPEARING, BOOT_LOADER, READY, LEASED, HOT, FAULTY, QUARANTINED, GONE = TpuState

#: The ports of a tower of six trays.
TOWER = [f"1-{tray}.{hub}.{port}" for tray in range(1, 7) for hub in range(1, 5) for port in range(1, 5)]

NOBODY = 65_534


@pytest.fixture
def testbed() -> Iterator[Testbed]:
    with Testbed() as found:
        yield found


@pytest.fixture
def watched(testbed: Testbed) -> Iterator[Watched]:
    with Watched(testbed) as found:
        yield found


def all_in(state: TpuState, table: dict[str, Tpu], count: int) -> bool:
    return len(table) == count and all(tpu.state is state for tpu in table.values())


# --- many at once --------------------------------------------------------------------------------------------------------


def test_a_whole_tower_at_once(testbed: Testbed) -> None:
    with Watched(testbed, Devices(layout=LayoutName.L6X16)) as watched:
        testbed.orders(*(testbed.usb(port) for port in TOWER))
        table = watched.until("96 are there", lambda table: all_in(BOOT_LOADER, table, 96))
        assert {(tpu.tray, tpu.slot) for tpu in table.values()} == {
            (f"tray-{tray}", slot) for tray in range(1, 7) for slot in range(1, 17)
        }
        assert [(tray["name"], tray["slots"]) for tray in watched.do("trays")] == [
            (f"tray-{tray}", 16) for tray in range(1, 7)
        ]
        testbed.orders(*(testbed.unusb(port) for port in TOWER))
        watched.until("all are gone", lambda table: all_in(GONE, table, 96))


def test_a_tower_that_was_there_before(testbed: Testbed) -> None:
    testbed.orders(*(testbed.usb(port, running=True) for port in TOWER), *testbed.apex(0, "0000:03:00.0"))
    with Watched(testbed) as watched:
        table = watched.all()
        assert all_in(READY, table, 97)
        assert table["pci-0000:03:00.0"].bus is TpuBus.PCIE


def test_storms(testbed: Testbed, watched: Watched) -> None:
    """Hundreds of events in no order, without a pause: in the end the table is what is plugged in."""
    draw = random.Random(4)
    plugged: set[str] = set()
    for _ in range(10):
        orders = []
        for _ in range(60):
            port = draw.choice(TOWER[:24])
            orders.append(
                testbed.unusb(port) if port in plugged else testbed.usb(port, running=draw.random() < 0.5)
            )
            plugged ^= {port}
        changed = draw.sample(sorted(plugged), min(5, len(plugged)))
        testbed.orders(*orders, *(["uevent", f"/sys/devices/{port}", "change"] for port in changed))

    def true(table: dict[str, Tpu]) -> bool:
        return {tpu_id for tpu_id, tpu in table.items() if tpu.node} == {f"usb-{port}" for port in plugged}

    table = watched.until("the table is true", true)
    for port in plugged:
        number = int((testbed.root / f"sys/devices/{port}/devnum").read_text())
        assert table[f"usb-{port}"].node == f"/dev/bus/usb/001/{number:03}"


def test_an_add_that_is_told_again_and_again(testbed: Testbed, watched: Watched) -> None:
    testbed.orders(testbed.usb("1-1"))
    for _ in range(40):
        testbed.orders(*([["uevent", "/sys/devices/1-1", "add"]] * 5))
        watched.all()  # a UNIX socket, which umockdev uses for netlink's, has room for some ten events
    testbed.orders(testbed.usb("1-2"))
    watched.until_state("usb-1-2", BOOT_LOADER)
    assert watched.states["usb-1-1"] == [BOOT_LOADER]


def test_other_devices_are_none_of_ours(testbed: Testbed, watched: Watched) -> None:
    keyboard = {"idVendor": "046d", "idProduct": "c31c"}
    testbed.orders(testbed.usb("1-1", attributes=keyboard), testbed.usb("1-2"))
    watched.until_state("usb-1-2", BOOT_LOADER)
    testbed.orders(testbed.unusb("1-1"), testbed.unusb("1-2"))
    watched.until_state("usb-1-2", GONE)
    assert list(watched.all()) == ["usb-1-2"]


# --- the boot loader -----------------------------------------------------------------------------------------------------


def test_the_boot_loaders_dance_is_one_device(testbed: Testbed, watched: Watched) -> None:
    testbed.orders(testbed.usb("1-1"))
    before = watched.until_state("usb-1-1", BOOT_LOADER)
    watched.do("opening", "usb-1-1", "tpu-1")
    testbed.orders(*testbed.dance("1-1"))
    watched.until("it has another node", lambda table: table["usb-1-1"].node not in ("", before.node))
    watched.do("opened", "usb-1-1", "tpu-1")
    tpu = watched.all()["usb-1-1"]
    assert (tpu.state, tpu.worker, tpu.slot) == (LEASED, "tpu-1", before.slot)
    assert set(watched.states["usb-1-1"]) == {BOOT_LOADER, LEASED}
    assert watched.lost == []
    watched.do("closed", "usb-1-1", "tpu-1")
    watched.until_state("usb-1-1", READY)


def test_a_dance_that_somebody_else_leads(testbed: Testbed, watched: Watched) -> None:
    """Another program opened it: still one device, and one removal."""
    testbed.orders(testbed.usb("1-1"))
    watched.until_state("usb-1-1", BOOT_LOADER)
    testbed.orders(*testbed.dance("1-1"))
    assert watched.until_state("usb-1-1", READY).slot == 1
    assert len(watched.all()) == 1


# --- field reports -------------------------------------------------------------------------------------------------------


def test_stuck_in_the_boot_loader(testbed: Testbed, watched: Watched) -> None:
    testbed.orders(testbed.usb("1-1"))
    watched.until_state("usb-1-1", BOOT_LOADER)
    watched.do("opening", "usb-1-1", "tpu-1")
    watched.do("failed", "usb-1-1", "tpu-1", "not opened after 30 s")
    tpu = watched.until_state("usb-1-1", FAULTY)
    assert tpu.detail == "stays in its boot loader: not opened after 30 s"
    watched.until_state("usb-1-1", BOOT_LOADER, within_s=RETRY_S + 30)  # one more try by itself
    watched.do("opening", "usb-1-1", "tpu-1")
    watched.do("failed", "usb-1-1", "tpu-1", "not opened after 30 s")
    assert "tpu_not_usable: usb-1-1 is faulty" in watched.do("opening", "usb-1-1", "tpu-1")


def test_gone_after_a_reboot(testbed: Testbed) -> None:
    """It is not there when we start, and comes when its port gets power again."""
    with Watched(testbed) as watched:
        assert watched.all() == {}
        testbed.orders(testbed.usb("1-1"))
        watched.until_state("usb-1-1", BOOT_LOADER)


def test_locked_up_until_it_is_plugged_in_anew(testbed: Testbed, watched: Watched) -> None:
    testbed.orders(testbed.usb("1-1", running=True))
    watched.until_state("usb-1-1", READY)
    watched.do("opened", "usb-1-1", "tpu-1")
    watched.do("failed", "usb-1-1", "tpu-1", "no answer for 10 s")
    assert watched.all()["usb-1-1"].state is FAULTY
    testbed.orders(testbed.unusb("1-1"), testbed.usb("1-1"))
    watched.until_state("usb-1-1", BOOT_LOADER)


def test_endless_resets(testbed: Testbed, watched: Watched) -> None:
    testbed.orders(testbed.usb("1-1", running=True))
    watched.until_state("usb-1-1", READY)
    for _ in range(FLAPS):
        testbed.orders(testbed.unusb("1-1"), testbed.usb("1-1", running=True))
    watched.until_state("usb-1-1", QUARANTINED)
    told = len(watched.states["usb-1-1"])
    for _ in range(10):
        testbed.orders(testbed.unusb("1-1"), testbed.usb("1-1", running=True))
    testbed.orders(testbed.usb("1-2"))
    watched.until_state("usb-1-2", BOOT_LOADER)
    assert len(watched.states["usb-1-1"]) == told  # nobody is told of it any more
    assert watched.do("reset", "usb-1-1") == "usb-1-1 was reset"
    watched.until_state("usb-1-1", READY)


def test_endless_resets_while_it_is_opened(testbed: Testbed, watched: Watched) -> None:
    testbed.orders(testbed.usb("1-1"))
    watched.until_state("usb-1-1", BOOT_LOADER)
    watched.do("opening", "usb-1-1", "tpu-1")
    for _ in range(FLAPS):
        testbed.orders(*testbed.dance("1-1"))
    wait_for("its worker is told", lambda: watched.lost)
    assert watched.lost[0][:2] == ("usb-1-1", "tpu-1")


def test_present_but_permission_denied(testbed: Testbed) -> None:
    testbed.orders(testbed.usb("1-1", mode=0o600))
    with Watched(testbed, worker_uid=NOBODY) as watched:
        assert watched.all()["usb-1-1"].state is APPEARING
        tpu = watched.until_state("usb-1-1", FAULTY, within_s=PATIENCE_S + 30)
        assert tpu.detail.startswith("/dev/bus/usb/001/002 is ")
        assert tpu.detail.endswith("with mode 0600: user coral-worker may not use it")
        (testbed.root / "dev/bus/usb/001/002").chmod(0o666)
        testbed.orders(["uevent", "/sys/devices/1-1", "change"])  # as `udevadm trigger` makes it
        watched.until_state("usb-1-1", BOOT_LOADER)


@pytest.mark.parametrize("missing", ["idVendor", "busnum", "speed"])
def test_missing_attributes(missing: str, testbed: Testbed, watched: Watched) -> None:
    testbed.orders(testbed.usb("1-1", attributes={missing: None}))
    tpu = watched.until_state("usb-1-1", BOOT_LOADER)
    assert tpu.node == "/dev/bus/usb/001/002"


def test_unplugged_during_an_invoke(testbed: Testbed, watched: Watched) -> None:
    testbed.orders(testbed.usb("1-1", running=True), testbed.usb("1-2", running=True))
    watched.until("both are ready", lambda table: all_in(READY, table, 2))
    for name in ("usb-1-1", "usb-1-2"):
        watched.do("opened", name, "tpu-1")
    testbed.orders(testbed.unusb("1-1"))
    tpu = watched.until_state("usb-1-1", GONE)
    assert (tpu.worker, tpu.load_limit) == ("", 0.0)
    assert watched.lost == [("usb-1-1", "tpu-1", "was unplugged, or reset itself")]
    assert watched.all()["usb-1-2"].state is LEASED


@pytest.mark.parametrize("back", [False, True], ids=["for good", "and back"])
def test_unplugged_as_soon_as_it_was_open(testbed: Testbed, watched: Watched, back: bool) -> None:
    """No time has to pass until what happens to it is more than the opening's own doing."""
    testbed.orders(testbed.usb("1-1"))
    watched.until_state("usb-1-1", BOOT_LOADER)
    watched.do("opening", "usb-1-1", "tpu-1")
    testbed.orders(*testbed.dance("1-1"))
    watched.do("opened", "usb-1-1", "tpu-1")
    testbed.orders(testbed.unusb("1-1"), *([testbed.usb("1-1")] if back else []))
    watched.until_state("usb-1-1", BOOT_LOADER if back else GONE)
    assert watched.lost == [("usb-1-1", "tpu-1", "was unplugged, or reset itself")]


def test_unplugged_before_the_worker_said_that_it_is_open(testbed: Testbed, watched: Watched) -> None:
    testbed.orders(testbed.usb("1-1"))
    watched.until_state("usb-1-1", BOOT_LOADER)
    watched.do("opening", "usb-1-1", "tpu-1")
    testbed.orders(*testbed.dance("1-1"), testbed.unusb("1-1"))
    watched.do("opened", "usb-1-1", "tpu-1")
    watched.until_state("usb-1-1", GONE)
    assert [what[:2] for what in watched.lost] == [("usb-1-1", "tpu-1")]


# --- PCIe ----------------------------------------------------------------------------------------------------------------


def test_apex_comes_gets_hot_falls_off_and_goes(testbed: Testbed, watched: Watched) -> None:
    testbed.orders(*testbed.apex(0, "0000:03:00.0", temp="41000"))
    name = "pci-0000:03:00.0"
    assert watched.until_state(name, READY).node == "/dev/apex_0"
    temperature = testbed.root / "sys/devices/0000:03:00.0/apex_0/temp"
    for millicelsius, state in ((85_000, HOT), (60_000, READY), (-89_700, FAULTY)):
        temperature.write_text(f"{millicelsius}\n")
        watched.until_state(name, state)
    testbed.orders(["remove", "/sys/devices/0000:03:00.0/apex_0"])
    watched.until("its driver is gone", lambda table: table[name].detail.endswith("no driver has taken it"))
    testbed.orders(["remove", "/sys/devices/0000:03:00.0"])
    watched.until_state(name, GONE)
