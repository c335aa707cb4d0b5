"""The watch over a tree like the kernel's: temperatures, trays, lost events, and that the table is what a fresh look finds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.config.appliance import Devices, LayoutName, Tray
from appliance.devices.access import User
from appliance.devices.errors import NoSuchTpu, ResetFailed, TpuNotUsable
from appliance.devices.monitor import Event, Monitor, Overflow
from appliance.devices.states import PATIENCE_S
from appliance.devices.sysfs import Sysfs
from appliance.devices.table import FLAPS, OPENING_S, TpuTable
from appliance.devices.temperature import Heat, Thresholds
from appliance.devices.trays import Layout
from appliance.devices.watch import SECOND_LOOK_S, DeviceWatch
from appliance.wire.messages import Hotplug, Tpu, TpuBus, TpuState
from tests.waiting import look_until

from .fake_sysfs import FakeSysfs

ROOT_USER = User("root", 0, frozenset())
WORKER = User("coral-worker", 64_001, frozenset())


def no_monitor() -> Monitor:
    raise OSError("no udev here")


class Watching:
    """A watch that runs, and what it told."""

    def __init__(self, root: Path, devices: Devices, user: User, monitor: type[Monitor] | None) -> None:
        self.fake = FakeSysfs(root)
        self.told: list[Tpu] = []
        self.lost: list[tuple[str, str, str]] = []
        self.watch = DeviceWatch(
            devices,
            user=user,
            changed=self.told.extend,
            lost=lambda *what: self.lost.append(what),
            root=root,
            monitor=monitor or no_monitor,
            poll_s=0.01,
        )

    def tpu(self, tpu_id: str) -> Tpu | None:
        return next((tpu for tpu in self.watch.table.all() if tpu.id == tpu_id), None)

    async def until_state(self, tpu_id: str, state: TpuState) -> Tpu:
        def there() -> Tpu | None:
            tpu = self.tpu(tpu_id)
            return tpu if tpu and tpu.state is state else None

        return await look_until(f"{tpu_id} is {state}", there)


@asynccontextmanager
async def watching(
    root: Path, devices: Devices | None = None, user: User = ROOT_USER, monitor: type[Monitor] | None = None
) -> AsyncIterator[Watching]:
    found = Watching(root, devices or Devices(), user, monitor)
    running = asyncio.create_task(found.watch.run())
    try:
        yield found
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


# --- PCIe ------------------------------------------------------------------------------------------------------------


async def test_a_chip_that_gets_hotter_and_cools(tmp_path: Path) -> None:
    folder = FakeSysfs(tmp_path).apex(0, "0000:03:00.0", temp="40000")
    async with watching(tmp_path) as found:
        await found.until_state("pci-0000:03:00.0", TpuState.READY)
        limits = []
        for celsius, state in (
            (79.75, TpuState.READY),
            (80, TpuState.HOT),
            (90.25, TpuState.HOT),
            (86, TpuState.HOT),
            (60, TpuState.READY),
        ):
            (folder / "temp").write_text(f"{celsius * 1000:.0f}\n")

            def read(celsius: float = celsius) -> bool:
                tpu = found.tpu("pci-0000:03:00.0")
                return tpu is not None and tpu.temperature_c == celsius

            await look_until(f"{celsius} C", read)
            tpu = await found.until_state("pci-0000:03:00.0", state)
            limits.append(tpu.load_limit)
        assert limits == [1.0, 0.5, 0.0, 0.0, 1.0]
        assert [tpu.load_limit for tpu in found.told if tpu.state is TpuState.HOT] == [0.5, 0.0]


async def test_falling_off_the_bus_and_back(tmp_path: Path) -> None:
    folder = FakeSysfs(tmp_path).apex(0, "0000:03:00.0", temp="40000")
    async with watching(tmp_path) as found:
        await found.until_state("pci-0000:03:00.0", TpuState.READY)
        found.watch.opened("pci-0000:03:00.0", "tpu-1")
        (folder / "temp").write_text("-89700\n")  # `status` still says ALIVE
        tpu = await found.until_state("pci-0000:03:00.0", TpuState.FAULTY)
        assert tpu.detail == "has fallen off its bus"
        assert found.lost == [("pci-0000:03:00.0", "tpu-1", "has fallen off its bus")]
        (folder / "temp").write_text("40000\n")
        await found.until_state("pci-0000:03:00.0", TpuState.READY)


async def test_old_drivers_tell_no_temperature(tmp_path: Path) -> None:
    FakeSysfs(tmp_path).apex(0, "0000:03:00.0", temp=None, pci_address=None)
    async with watching(tmp_path) as found:
        tpu = await found.until_state("pci-0000:03:00.0", TpuState.READY)
        assert tpu.temperature_c is None
        assert tpu.load_limit == 1.0


# --- without udev, and with permissions that come late -----------------------------------------------------------------


async def test_no_udev_is_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.devices.watch.FULL_LOOK_S", 0.0)
    async with watching(tmp_path) as found:
        await look_until("it looked", lambda: found.watch.hotplug is Hotplug.POLLED)
        found.fake.usb("1-1", 3)
        await found.until_state("usb-1-1", TpuState.BOOT_LOADER)
        found.fake.remove("sys/bus/usb/devices/1-1")
        await found.until_state("usb-1-1", TpuState.GONE)


async def test_permission_that_comes_late(tmp_path: Path) -> None:
    fake = FakeSysfs(tmp_path)
    fake.usb("1-1", 3, mode=0o600)
    async with watching(tmp_path, user=WORKER) as found:
        tpu = await found.until_state("usb-1-1", TpuState.APPEARING)
        assert tpu.detail.endswith("with mode 0600: user coral-worker may not use it")
        fake.node("dev/bus/usb/001/003", 0o666)  # no event tells of it
        await found.until_state("usb-1-1", TpuState.BOOT_LOADER)


@pytest.mark.parametrize("half", [False, True], ids=["whole", "half"])
def test_the_folder_of_what_has_gone(tmp_path: Path, half: bool) -> None:
    """The event is heard before the kernel has taken it away, and somebody looks at everything in between."""
    now = 0.0
    fake = FakeSysfs(tmp_path)
    folder = fake.usb("1-1", 3)
    watch = DeviceWatch(
        Devices(),
        user=ROOT_USER,
        changed=lambda tpus: None,
        root=tmp_path,
        clock=lambda: now,
        monitor=no_monitor,
    )
    watch.look_at_all()
    for attribute in ("uevent", "devnum") if half else ():
        (folder / attribute).unlink()
    watch._take([Event("remove", "usb", "1-1", "/dev/bus/usb/001/003")])
    (device,) = watch.table.devices()
    assert device.state is TpuState.GONE
    watch.look_at_all()
    assert device.there
    fake.remove("sys/bus/usb/devices/1-1")
    now = SECOND_LOOK_S
    watch.pass_time()
    assert device.state is TpuState.GONE


async def test_a_reset_that_fails(tmp_path: Path) -> None:
    FakeSysfs(tmp_path).usb("1-1", 3)
    async with watching(tmp_path) as found:
        await found.until_state("usb-1-1", TpuState.BOOT_LOADER)
        found.watch.quarantine("usb-1-1", "x")
        with pytest.raises(ResetFailed, match=r"001/003 cannot be reset: .*; unplug it"):
            await found.watch.reset("usb-1-1")  # a file is no USB device
        await found.until_state("usb-1-1", TpuState.BOOT_LOADER)
        with pytest.raises(NoSuchTpu):
            await found.watch.reset("usb-2-2")


async def test_a_reset_waits_for_who_has_it_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a real driver refuses whoever comes second."""
    FakeSysfs(tmp_path).apex(0, "0000:03:00.0")
    busy = ResetFailed("in use", in_use=True)
    answers: list[ResetFailed | None] = [busy, busy, None]

    def reset(_bus: TpuBus, _node: Path) -> None:
        if error := answers.pop(0):
            raise error

    monkeypatch.setattr("appliance.devices.watch.reset", reset)
    monkeypatch.setattr("appliance.devices.watch.RESET_PAUSES_S", (0.01, 0.01, 0.01))
    async with watching(tmp_path) as found:
        await found.until_state("pci-0000:03:00.0", TpuState.READY)
        found.watch.opened("pci-0000:03:00.0", "tpu-1")
        assert await found.watch.reset("pci-0000:03:00.0") == "pci-0000:03:00.0 was reset"
        assert [(tpu_id, worker) for tpu_id, worker, _ in found.lost] == [("pci-0000:03:00.0", "tpu-1")]
        await found.until_state("pci-0000:03:00.0", TpuState.READY)
        answers[:] = [busy] * 4
        with pytest.raises(ResetFailed, match="in use"):
            await found.watch.reset("pci-0000:03:00.0")
        assert answers == []


# --- events ------------------------------------------------------------------------------------------------------------


class LossyMonitor(Monitor):
    """A monitor of which the kernel dropped events once: only a socket that overflows says so, and umockdev's never does."""

    lose = False
    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        type(self).write = self._write

    write = -1

    def fileno(self) -> int:
        return self._read

    def take(self, most: int) -> list[Event]:
        os.read(self._read, 4096)
        if type(self).lose:
            type(self).lose = False
            raise Overflow("No buffer space available")
        return []


async def test_after_an_overflow_everything_is_looked_at_anew(tmp_path: Path) -> None:
    fake = FakeSysfs(tmp_path)
    fake.node("run/udev/control", 0o600)
    fake.usb("1-1", 2)
    LossyMonitor.lose, LossyMonitor.made = True, 0
    async with watching(tmp_path, monitor=LossyMonitor) as found:
        await found.until_state("usb-1-1", TpuState.BOOT_LOADER)
        assert found.watch.hotplug is Hotplug.UDEV
        fake.remove("sys/bus/usb/devices/1-1")
        fake.usb("1-2", 3)
        os.write(LossyMonitor.write, b"x")
        await found.until_state("usb-1-2", TpuState.BOOT_LOADER)
        await found.until_state("usb-1-1", TpuState.GONE)
        assert LossyMonitor.made == 2


async def test_udev_that_starts_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.devices.watch.FULL_LOOK_S", 0.0)
    LossyMonitor.lose = False
    async with watching(tmp_path, monitor=LossyMonitor) as found:
        await look_until("it looked", lambda: found.watch.hotplug is Hotplug.POLLED)
        found.fake.node("run/udev/control", 0o600)
        await look_until("udev", lambda: found.watch.hotplug is Hotplug.UDEV)


# --- trays -------------------------------------------------------------------------------------------------------------


async def test_a_tray_keeps_its_persona_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / "rom").mkdir()
    marina = '{"format": 1, "id": "reef-0042", "persona": "marina"}'
    (tmp_path / "rom/1").write_bytes(marina.encode() + b"\xff" * 4096)
    devices = Devices(layout=LayoutName.L4X8, identity="/rom/{tray}")
    fake = FakeSysfs(tmp_path)
    fake.usb("1-1.1.1", 2)
    async with watching(tmp_path, devices) as found:

        def personas() -> dict[str, str]:
            return {tray.name: tray.persona for tray in found.watch.trays() if tray.persona}

        await look_until("tray 1 is marina's", lambda: personas() == {"tray-1": "marina"})
        # It is put in again two layers higher, with its memory, and another tray, of nobody's, where it was.
        (tmp_path / "rom/1").rename(tmp_path / "rom/3")
        fake.usb("1-3.1.1", 3)
        fake.usb("1-1.1.1", 4)
        found.watch.look_at_all()
        await look_until("tray 3 is marina's", lambda: personas() == {"tray-3": "marina"})
    (tmp_path / "tower-2").mkdir()
    (tmp_path / "rom/3").rename(tmp_path / "tower-2/2")
    async with watching(tmp_path, Devices(layout=LayoutName.L8X16, identity="/tower-2/{tray}")) as found:
        await look_until("as in another tower", lambda: personas() == {"tray-2": "marina"})


TWIN = '{"format": 1, "id": "twin"}'


async def test_identities_that_cannot_be_believed(tmp_path: Path) -> None:
    for tray, text in enumerate((TWIN, TWIN, "nonsense", "", '{"format": 1, "id": "big", "slots": 16}'), 1):
        (tmp_path / f"{tray}.json").write_text(text)
    devices = Devices(
        trays=[
            Tray(name=f"t{tray}", slots=[f"usb-1-{tray}"], identity=f"/{tray}.json", persona="pike")
            for tray in range(1, 7)
        ]
    )
    async with watching(tmp_path, devices) as found:
        await look_until("all are read", lambda: len(found.watch._identities) == 6)
        problems = [tray.problem for tray in found.watch.trays()]
        assert problems[0] == "calls itself twin, as t2 does"
        assert problems[1] == "calls itself twin, as t1 does"
        assert problems[2].startswith("/3.json is no tray identity: ")
        assert problems[3] == ""  # blank
        assert problems[4] == "big says that it has 16 slots, and its place has 1"
        assert problems[5] == ""  # not there
        assert {tray.persona for tray in found.watch.trays()} == {"pike"}
        found.watch.configure(Devices())
        assert found.watch.trays() == []


# --- whatever happens ----------------------------------------------------------------------------------------------------

PORTS = ("1-1", "1-2", "1-2.1", "2-1")
APEXES = {0: "0000:03:00.0", 1: "0000:01:00.0"}
IDS = (*(f"usb-{port}" for port in PORTS), *(f"pci-{address}" for address in APEXES.values()))


class Reality(RuleBasedStateMachine):
    """TPUs come and go while events of it are late, doubled or lost and workers do as they like; once all has been heard, the
    table is what a fresh look finds."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.fake = FakeSysfs(self.root)
        self.now = 0.0
        self.number = 1
        self.there: dict[str, str] = {}  # port -> node
        self.stale: set[str] = set()
        self.apexes: set[int] = set()
        self.events: list[Event] = []
        self.watch = DeviceWatch(
            Devices(layout=LayoutName.L4X8),
            user=ROOT_USER,
            changed=lambda tpus: None,
            root=self.root,
            clock=lambda: self.now,
            monitor=no_monitor,
        )

    def teardown(self) -> None:
        try:
            self.hear_all()
            self.compare()
        finally:
            self.folder.cleanup()

    # --- the world ---

    @precondition(lambda self: len(self.there) < len(PORTS))
    @rule(which=st.integers(0, 3), running=st.booleans())
    def plug(self, which: int, running: bool) -> None:
        free = [port for port in PORTS if port not in self.there]
        port = free[which % len(free)]
        self.vanish(port)
        self.number += 1
        self.fake.usb(port, self.number, running=running)
        self.there[port] = f"/dev/bus/usb/001/{self.number:03}"
        self.events.append(Event("add", "usb", port, self.there[port]))

    @precondition(lambda self: self.there)
    @rule(which=st.integers(0, 3), stale=st.booleans(), named=st.booleans())
    def pull(self, which: int, stale: bool, named: bool) -> None:
        """`stale`: the folder is there for a while yet; `named`: the event tells which node it was."""
        port = list(self.there)[which % len(self.there)]
        node = self.there.pop(port)
        self.events.append(Event("remove", "usb", port, node if named else ""))
        self.stale.add(port)
        if not stale:
            self.vanish(port)

    @precondition(lambda self: len(self.apexes) < len(APEXES))
    @rule(number=st.sampled_from(list(APEXES)))
    def insert(self, number: int) -> None:
        if number not in self.apexes:
            self.apexes.add(number)
            self.fake.apex(number, APEXES[number])
            self.events.append(Event("add", "pci", APEXES[number], ""))
            self.events.append(Event("add", "apex", f"apex_{number}", f"/dev/apex_{number}"))

    @precondition(lambda self: self.apexes)
    @rule(
        number=st.sampled_from(list(APEXES)),
        how=st.sampled_from(["taken out", "driver unloaded", "driver reloaded"]),
    )
    def take_out(self, number: int, how: str) -> None:
        folder = f"sys/class/apex/apex_{number}"
        if number not in self.apexes or not (self.root / folder).exists():
            return
        self.fake.remove(folder)
        self.events.append(Event("remove", "apex", f"apex_{number}", f"/dev/apex_{number}"))
        if how == "driver reloaded":
            self.fake.apex(number, APEXES[number])
            self.events.append(Event("add", "apex", f"apex_{number}", f"/dev/apex_{number}"))
        elif how == "taken out":
            self.fake.remove(f"sys/bus/pci/devices/{APEXES[number]}")
            self.events.append(Event("remove", "pci", APEXES[number], ""))
            self.apexes.remove(number)

    def vanish(self, port: str) -> None:
        if port in self.stale:
            self.stale.remove(port)
            self.fake.remove(f"sys/bus/usb/devices/{port}")

    # --- what is heard of it ---

    @precondition(lambda self: self.events)
    @rule(count=st.sampled_from([1, 3, 100]))
    def hear(self, count: int) -> None:
        heard, self.events = self.events[:count], self.events[count:]
        self.watch._take(heard)

    @precondition(lambda self: self.events)
    @rule()
    def hear_early(self) -> None:
        """The newest first; it comes once more in its turn."""
        if self.events[-1].action == "add":
            self.watch._take(self.events[-1:])

    @precondition(lambda self: len(self.events) > 3)
    @rule()
    def lose_everything(self) -> None:
        self.events.clear()
        for port in list(self.stale):
            self.vanish(port)
        self.watch.look_at_all()

    @rule(seconds=st.sampled_from([0.1, SECOND_LOOK_S, 5.0, 100.0]))
    def wait(self, seconds: float) -> None:
        if seconds >= SECOND_LOOK_S:
            for port in list(self.stale):
                self.vanish(port)
        self.now += seconds
        self.watch.pass_time()

    # --- workers and the owner ---

    @rule(
        tpu_id=st.sampled_from(IDS),
        act=st.sampled_from(["opening", "opened", "closed", "failed", "quarantine"]),
    )
    def work(self, tpu_id: str, act: str) -> None:
        arguments = {"failed": ("tpu-1", "x")}.get(act, ("tpu-1",))
        with contextlib.suppress(NoSuchTpu, TpuNotUsable):
            getattr(self.watch, act)(tpu_id, *arguments)

    @rule(tpu_id=st.sampled_from(IDS), celsius=st.sampled_from([41.0, 85.0, 95.0, -89.7]))
    def warm(self, tpu_id: str, celsius: float) -> None:
        self.watch.table.warm(tpu_id, int(celsius * 1000))

    @rule()
    def configure(self) -> None:
        layout = random.Random(self.number).choice(list(LayoutName))
        self.watch.table.configure(Layout.of(Devices(layout=layout)), Thresholds(80, 90, 5))

    # --- what must be ---

    @invariant()
    def places_are_of_one_tpu_each(self) -> None:
        tpus = self.watch.table.all()
        assert len({tpu.id for tpu in tpus}) == len({(tpu.tray, tpu.slot) for tpu in tpus}) == len(tpus)

    def hear_all(self) -> None:
        for port in list(self.stale):
            self.vanish(port)
        self.watch._take(self.events)
        self.events = []
        for _ in range(2):
            self.now += max(OPENING_S, PATIENCE_S)
            self.watch.pass_time()

    def compare(self) -> None:
        found = Sysfs(self.root, ROOT_USER).scan()
        assert {each.id: each.seen for each in self.watch.table.devices() if each.there} == found
        fresh = TpuTable(Layout.of(Devices()), Thresholds(80, 90, 5), clock=lambda: self.now)
        fresh.resync(found)
        states = {tpu.id: tpu.state for tpu in fresh.all()}
        for device in self.watch.table.devices():
            if device.quarantine:
                expected = TpuState.QUARANTINED
            elif device.id not in found:
                expected = TpuState.GONE
            elif device.fault is not None or device.lack is not None:  # its driver, by now for long
                expected = TpuState.FAULTY
            elif device.heat is not Heat.NORMAL:
                expected = TpuState.HOT
            else:
                expected = TpuState.LEASED if device.worker else states[device.id]
            assert device.state is expected, device


Reality.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestReality = Reality.TestCase


class Opening(RuleBasedStateMachine):
    """One TPU on USB, and a worker that opens it: the opening resets the port once or twice, and somebody may pull the TPU out at
    any moment and put it in again. The worker has what it opened for as long as that is there, and no longer: no time has to pass
    for that but until the second look."""

    PORT = "1-1"
    ID = "usb-1-1"

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.fake = FakeSysfs(Path(self.folder.name))
        self.now, self.number, self.pulled = 0.0, 1, 0
        self.node = ""  # what is plugged in, as the kernel has it
        self.half = False  # whether its folder is still there in part although it is not
        self.events: list[Event] = []
        self.opening = False  # the worker has told that it begins; it has not told how it ended
        self.resets = 0
        self.doomed = False  # it was pulled out in the middle: the library gives up
        self.open = ""  # what the worker has open
        self.watch = DeviceWatch(
            Devices(),
            user=ROOT_USER,
            changed=lambda tpus: None,
            lost=self.lost,
            root=Path(self.folder.name),
            clock=lambda: self.now,
            monitor=no_monitor,
        )
        self.enumerate(running=False)
        self.watch.look_at_all()

    def lost(self, tpu_id: str, worker: str, reason: str) -> None:
        """The worker lets go of it."""
        assert (tpu_id, worker) == (self.ID, "tpu-1")
        assert self.open != self.node or not self.open, f"{self.open} is there and was lost: {reason}"
        self.open, self.opening = "", False

    def enumerate(self, *, running: bool) -> None:
        self.vanish()
        self.number += 1
        self.fake.usb(self.PORT, self.number, running=running)
        self.node = f"/dev/bus/usb/001/{self.number:03}"
        self.events.append(Event("add", "usb", self.PORT, self.node))

    def go(self, *, half: bool) -> None:
        self.events.append(Event("remove", "usb", self.PORT, self.node))
        self.node = ""
        if half:
            self.half = True
            for attribute in ("uevent", "devnum"):
                (self.fake.root / "sys/bus/usb/devices" / self.PORT / attribute).unlink()
        else:
            self.fake.remove(f"sys/bus/usb/devices/{self.PORT}")

    def vanish(self) -> None:
        if self.half:
            self.half = False
            self.fake.remove(f"sys/bus/usb/devices/{self.PORT}")

    # --- the owner's hand ---

    @precondition(lambda self: self.node and self.pulled < FLAPS - 2)
    @rule(half=st.booleans())
    def pull(self, half: bool) -> None:
        self.pulled += 1
        self.doomed = True
        self.go(half=half)

    @precondition(lambda self: not self.node)
    @rule()
    def plug(self) -> None:
        self.enumerate(running=False)

    # --- the worker ---

    @precondition(lambda self: not self.opening and not self.open)
    @rule()
    def begin(self) -> None:
        with contextlib.suppress(NoSuchTpu, TpuNotUsable):
            self.watch.opening(self.ID, "tpu-1")
            self.opening, self.resets, self.doomed = True, 0, not self.node

    @precondition(lambda self: self.opening and not self.open and not self.doomed and self.resets < 2)
    @rule(half=st.booleans())
    def reset(self, half: bool) -> None:
        self.resets += 1
        self.go(half=half)
        self.enumerate(running=True)

    @precondition(lambda self: self.opening and not self.open and not self.doomed)
    @rule()
    def succeed(self) -> None:
        if not self.resets:
            self.reset(half=False)
        self.open = self.node

    @precondition(lambda self: self.opening and self.open)
    @rule()
    def tell_success(self) -> None:
        self.opening = False
        with contextlib.suppress(TpuNotUsable):
            self.watch.opened(self.ID, "tpu-1")

    @precondition(lambda self: self.opening and self.doomed and not self.open)
    @rule()
    def fail(self) -> None:
        self.opening = False
        self.watch.failed(self.ID, "tpu-1", "not opened")

    # --- what is heard of it ---

    @precondition(lambda self: self.events)
    @rule(count=st.sampled_from([1, 2, 100]))
    def hear(self, count: int) -> None:
        heard, self.events = self.events[:count], self.events[count:]
        self.watch._take(heard)

    @rule()
    def look(self) -> None:
        self.watch.look_at_all()

    @rule(seconds=st.sampled_from([0.1, SECOND_LOOK_S]))
    def wait(self, seconds: float) -> None:
        self.vanish()
        self.now += seconds
        self.watch.pass_time()

    # --- what must be ---

    def teardown(self) -> None:
        try:
            self.vanish()
            self.watch._take(self.events)
            if self.opening and self.open:
                self.tell_success()
            elif self.opening:
                self.fail()
            self.now += SECOND_LOOK_S
            self.watch.pass_time()
            found = Sysfs(self.fake.root, ROOT_USER).scan()
            (device,) = self.watch.table.devices()
            assert device.there is (self.ID in found)
            assert not device.there or device.seen == found[self.ID]
            assert device.worker == ("tpu-1" if self.open and self.open == self.node else "")
            if device.fault is None and not device.quarantine:
                fresh = TpuState.BOOT_LOADER if device.seen.boot_loader else TpuState.READY
                there = TpuState.LEASED if device.worker else fresh
                assert device.state is (there if device.there else TpuState.GONE)
        finally:
            self.folder.cleanup()


Opening.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestOpening = Opening.TestCase
