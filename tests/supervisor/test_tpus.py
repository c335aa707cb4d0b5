"""What the supervisor makes of the table: repairs, events, who may use what."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from appliance.config.appliance import Devices, LayoutName
from appliance.devices.errors import ResetFailed
from appliance.devices.monitor import Monitor
from appliance.devices.states import PATIENCE_S
from appliance.devices.table import FLAPS
from appliance.devices.watch import DeviceWatch
from appliance.supervisor.repairs import SORTS, Repairs
from appliance.supervisor.tpus import KINDS, Tpus
from appliance.wire.messages import Repair, Tpu, TpuChanged, TpuState
from tests.devices.fake_sysfs import FakeSysfs
from tests.waiting import look_until


def no_monitor() -> Monitor:
    raise OSError("no udev here")


class Bench:
    """The supervisor's side over a tree like the kernel's, with a clock that stands still."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, devices: Devices) -> None:
        self.now = 0.0
        self.fake = FakeSysfs(root)
        self.told: list[tuple[Repair, bool]] = []
        self.events: list[TpuChanged] = []

        def watch(settings: Devices, **arguments: object) -> DeviceWatch:
            return DeviceWatch(settings, root=root, clock=lambda: self.now, monitor=no_monitor, **arguments)  # type: ignore[arg-type]

        monkeypatch.setattr("appliance.supervisor.tpus.DeviceWatch", watch)
        self.repairs = Repairs(lambda repair, gone: self.told.append((repair, gone)), clock=lambda: self.now)
        self.memory = root / "tpu-quarantine.json"
        self.tpus = Tpus(devices, self.repairs, self.events.append, memory=self.memory, worker_user=None)

    def look(self) -> None:
        self.tpus.watch.look_at_all()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tpus.watch.pass_time()

    def open(self) -> dict[str, str]:
        return {repair.id: repair.what for repair in self.repairs.all()}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch, Devices())


@pytest.fixture
def tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch, Devices(layout=LayoutName.L4X8, identity="/rom/{tray}"))


def test_every_kind_has_advice() -> None:
    for kind in KINDS:
        assert SORTS[kind].advice


def test_events_and_users(bench: Bench) -> None:
    usable: list[list[str]] = []
    lost: list[tuple[str, str]] = []
    bench.tpus.use(lambda tpus: usable.append([tpu.id for tpu in tpus]), lambda *what: lost.append(what))
    assert usable == [[]]
    bench.fake.usb("1-1", 2)
    bench.look()
    assert usable == [[], ["usb-1-1"]]
    assert [event.tpu.state for event in bench.events] == [TpuState.BOOT_LOADER]
    bench.tpus.watch.opened("usb-1-1", "tpu-1")
    bench.wait(60)
    bench.fake.remove("sys/bus/usb/devices/1-1")
    bench.look()
    assert usable[-1] == []
    assert lost == [("usb-1-1", "tpu-1")]
    assert bench.open() == {}  # what is unplugged is no trouble


def test_flapping_is_a_repair_that_can_be_fixed(bench: Bench) -> None:
    for number in range(2, 2 + FLAPS):
        bench.fake.usb("1-1", number)
        bench.look()
        bench.fake.remove("sys/bus/usb/devices/1-1")
        bench.look()
    assert bench.open() == {
        "tpu_quarantined:usb-1-1": "usb-1-1 is not used any more: it went away 5 times within 60 s"
    }
    assert asyncio.run(bench.repairs.fix("tpu_quarantined:usb-1-1")).startswith("usb-1-1 is not there")
    assert bench.open() == {}


def test_the_owners_own_quarantine_is_none(bench: Bench) -> None:
    bench.fake.usb("1-1", 2)
    bench.look()
    asyncio.run(bench.tpus.quarantine("usb-1-1"))
    assert [tpu.state for tpu in bench.tpus.all()] == [TpuState.QUARANTINED]
    assert bench.open() == {}


def test_a_quarantine_outlives_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Bench(tmp_path, monkeypatch, Devices())
    before.fake.usb("1-1", 2)
    before.look()
    asyncio.run(before.tpus.quarantine("usb-1-1"))
    after = Bench(tmp_path, monkeypatch, Devices())
    after.look()
    assert [tpu.state for tpu in after.tpus.all()] == [TpuState.QUARANTINED]
    absent = Bench(tmp_path, monkeypatch, Devices())  # nothing is there yet
    asyncio.run(absent.tpus.reset("usb-1-1"))
    last = Bench(tmp_path, monkeypatch, Devices())
    last.look()
    assert [tpu.state for tpu in last.tpus.all()] == [TpuState.BOOT_LOADER]


def test_in_the_boot_loader_only_once_somebody_has_tried(bench: Bench) -> None:
    bench.fake.usb("1-1", 2)
    bench.look()
    bench.wait(1e6)
    assert bench.open() == {}
    bench.tpus.watch.opening("usb-1-1", "tpu-1")
    bench.tpus.watch.failed("usb-1-1", "tpu-1", "not opened after 30 s")
    assert bench.open() == {
        "tpu_boot_loader:usb-1-1": "usb-1-1 stays in its boot loader although a worker opened it"
    }
    bench.wait(60)  # it is tried again: still wrong until it has worked
    assert list(bench.open()) == ["tpu_boot_loader:usb-1-1"]
    bench.tpus.watch.opening("usb-1-1", "tpu-1")
    bench.fake.usb("1-1", 3, running=True)
    bench.look()
    assert bench.open() == {}


def test_a_tray_without_permissions_is_one_repair(tower: Bench) -> None:
    tower.tpus.watch._sysfs._user = type(tower.tpus.watch._sysfs._user)("coral-worker", 64_001, frozenset())
    for port in range(1, 5):
        for hub in (1, 2):
            tower.fake.usb(f"1-2.{hub}.{port}", 10 * hub + port, mode=0o600)
    tower.look()
    assert tower.open() == {}
    tower.wait(PATIENCE_S)
    (what,) = tower.open().values()
    assert list(tower.open()) == ["tpu_permission:tray-2"]
    assert what.startswith("tray-2: usb-1-2.1.1, ")
    assert " and 4 more cannot be used: /dev/bus/usb/001/011 is " in what
    assert what.endswith("with mode 0600: user coral-worker may not use it")


def test_no_driver(bench: Bench) -> None:
    bench.fake.apex(0, "0000:03:00.0", driver=False)
    bench.look()
    bench.wait(PATIENCE_S)
    assert bench.open() == {
        "tpu_driver:tray-1": (
            "tray-1: pci-0000:03:00.0 cannot be used: 0000:03:00.0 is there, but no driver has taken it"
        )
    }
    bench.fake.apex(0, "0000:03:00.0")
    bench.look()
    assert bench.open() == {}


def test_hot_and_off_the_bus(bench: Bench) -> None:
    for number, address in enumerate(("0000:03:00.0", "0000:04:00.0")):
        bench.fake.apex(number, address)
    bench.look()
    for address, millicelsius in (("03", 82_000), ("04", 91_000)):
        bench.tpus.watch.table.warm(f"pci-0000:{address}:00.0", millicelsius)
    bench.wait(1)
    hot = "tray-1: hot: pci-0000:03:00.0, pci-0000:04:00.0 (1 at half of the usual work, 1 at none)"
    assert bench.open() == {"tpu_hot:tray-1": hot}
    told = len(bench.told)
    bench.tpus.watch.table.warm("pci-0000:03:00.0", 83_000)
    bench.wait(1)
    assert len(bench.told) == told  # a degree more is no news
    bench.tpus.watch.table.warm("pci-0000:03:00.0", -89_700)
    bench.tpus.watch.table.warm("pci-0000:04:00.0", 50_000)
    bench.wait(1)
    assert bench.open() == {"tpu_off_the_bus:pci-0000:03:00.0": "pci-0000:03:00.0 has fallen off its bus"}
    with pytest.raises(ResetFailed):
        asyncio.run(bench.repairs.fix("tpu_off_the_bus:pci-0000:03:00.0"))


async def test_a_bad_identity(tower: Bench, tmp_path: Path) -> None:
    (tmp_path / "rom").mkdir()
    (tmp_path / "rom/2").write_text("nonsense")
    running = asyncio.create_task(tower.tpus.run())
    await look_until("a repair is open", tower.open)
    (what,) = tower.open().values()
    assert what.startswith("tray-2: /rom/2 is no tray identity: ")
    tower.tpus.configure(Devices())
    await look_until("it is over", lambda: not tower.open())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_states_that_nobody_may_open_are_not_offered(bench: Bench) -> None:
    offered: list[Tpu] = []

    def take(tpus: list[Tpu]) -> None:
        offered[:] = tpus

    bench.tpus.use(take)
    bench.fake.usb("1-1", 2)
    bench.fake.usb("1-2", 3, mode=None)
    bench.fake.apex(0, "0000:03:00.0")
    bench.look()
    bench.tpus.watch.table.warm("pci-0000:03:00.0", 95_000)
    bench.tpus.watch._tell()
    assert [(tpu.id, tpu.load_limit) for tpu in offered] == [("usb-1-1", 1.0), ("pci-0000:03:00.0", 0.0)]
