"""The table: what it makes of what is seen, of what workers do, and of time."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import pytest

from appliance.config.appliance import Devices, LayoutName
from appliance.devices.errors import NoSuchTpu, TpuNotUsable
from appliance.devices.states import NEXT, PATIENCE_S, USABLE
from appliance.devices.sysfs import Lack, Sighting
from appliance.devices.table import (
    FAILURES,
    FLAPS,
    FLAPS_WITHIN_S,
    GONE_KEPT,
    OPENING_S,
    OWN_REMOVALS_LIMIT,
    RESET_S,
    RETRY_S,
    TpuTable,
    port_order,
)
from appliance.devices.temperature import Thresholds
from appliance.devices.trays import Layout
from appliance.wire.messages import Tpu, TpuBus, TpuRole, TpuState

APPEARING, BOOT_LOADER, READY, LEASED, HOT, FAULTY, QUARANTINED, GONE = TpuState
USB, PCI = "usb-1-1", "pci-0000:03:00.0"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A table with its clock, and what it said."""

    def __init__(self, layout: LayoutName = LayoutName.ONE_TRAY) -> None:
        self.clock = Clock()
        self.lost: list[tuple[str, str, str]] = []
        self._number = 1
        self.table = TpuTable(
            Layout.of(Devices(layout=layout)),
            Thresholds(80.0, 90.0, 5.0),
            lost=lambda *what: self.lost.append(what),
            clock=self.clock,
        )

    def plug(self, tpu_id: str = USB, *, running: bool = False, lack: Lack | None = None) -> None:
        """A TPU is seen that was enumerated just now."""
        self._number += 1
        if tpu_id.startswith("pci-"):
            seen = Sighting(
                tpu_id, TpuBus.PCIE, "/sys/class/apex/apex_0", "/dev/apex_0", lack=lack, detail=lack or ""
            )
        else:
            node = f"/dev/bus/usb/001/{self._number:03}"
            sysfs = f"/sys/bus/usb/devices/{tpu_id[4:]}"
            seen = Sighting(
                tpu_id, TpuBus.USB, sysfs, node, boot_loader=not running, lack=lack, detail=lack or ""
            )
        self.table.see(seen)

    def pull(self, tpu_id: str = USB) -> None:
        self.table.removed(tpu_id)

    def dance(self, tpu_id: str = USB) -> None:
        """What opening one in its boot loader does."""
        self.pull(tpu_id)
        self.plug(tpu_id, running=True)

    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.table.tick()

    def tpu(self, tpu_id: str = USB) -> Tpu:
        return next(tpu for tpu in self.table.all() if tpu.id == tpu_id)

    def state(self, tpu_id: str = USB) -> TpuState:
        return self.tpu(tpu_id).state


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_idle_in_the_boot_loader_is_healthy(bench: Bench) -> None:
    bench.plug()
    assert bench.state() is BOOT_LOADER
    bench.wait(1e6)
    assert bench.state() is BOOT_LOADER
    assert bench.tpu().load_limit == 1.0
    assert bench.table.next_deadline() is None


def test_boot_loader_to_running_is_one_device(bench: Bench) -> None:
    bench.plug()
    bench.table.changes()
    bench.table.opening(USB, "tpu-1")
    bench.pull()
    assert bench.state() is LEASED
    assert bench.tpu().detail == "being opened by tpu-1"
    bench.plug(running=True)
    bench.table.opened(USB, "tpu-1")
    assert (bench.state(), bench.tpu().worker, bench.tpu().node) == (LEASED, "tpu-1", "/dev/bus/usb/001/003")
    assert [tpu.state for tpu in bench.table.changes()] == [LEASED]
    assert bench.lost == []
    bench.table.closed(USB, "tpu-1")
    assert bench.state() is READY
    assert len(bench.table.all()) == 1


def test_our_own_events_are_no_flapping(bench: Bench) -> None:
    bench.plug()
    for _ in range(3 * FLAPS):
        bench.table.opening(USB, "tpu-1")
        bench.dance()
        bench.dance()
        bench.table.opened(USB, "tpu-1")
        bench.table.closed(USB, "tpu-1")
    assert bench.state() is READY
    assert bench.lost == []


def test_unplugged_in_use(bench: Bench) -> None:
    bench.plug(running=True)
    bench.table.opening(USB, "tpu-1")
    bench.table.opened(USB, "tpu-1")
    bench.pull()
    assert bench.state() is GONE
    assert bench.lost == [(USB, "tpu-1", "was unplugged, or reset itself")]
    assert (bench.tpu().worker, bench.tpu().node, bench.tpu().load_limit) == ("", "", 0.0)


def test_unplugged_as_soon_as_it_was_open(bench: Bench) -> None:
    bench.plug()
    bench.table.opening(USB, "tpu-1")
    bench.dance()
    bench.table.opened(USB, "tpu-1")
    bench.table.removed(
        USB, node="/dev/bus/usb/001/002", unseen=True
    )  # a late word of the opening's own doing
    assert (bench.state(), bench.lost) == (LEASED, [])
    bench.table.removed(USB, node="/dev/bus/usb/001/003", unseen=True)
    assert bench.state() is GONE
    assert bench.lost == [(USB, "tpu-1", "was unplugged, or reset itself")]
    assert bench.table.next_deadline() is None


def test_unplugged_before_the_worker_said_that_it_is_open(bench: Bench) -> None:
    for back in (False, True):
        bench.plug()
        bench.lost.clear()
        bench.table.opening(USB, "tpu-1")
        bench.dance()
        bench.pull()
        if back:
            bench.plug()
        assert bench.state() is LEASED
        bench.table.opened(USB, "tpu-1")
        assert bench.state() is (BOOT_LOADER if back else GONE)
        assert bench.lost == [(USB, "tpu-1", "went away as soon as it was open")]


def test_a_removal_that_is_told_twice_counts_once(bench: Bench) -> None:
    bench.plug()
    for number in range(2, FLAPS + 1):
        bench.plug(running=number % 2 == 0)  # seen before the event of its removal
        bench.table.removed(USB, node=f"/dev/bus/usb/001/{number:03}", unseen=True)
    assert bench.state() is BOOT_LOADER
    (device,) = bench.table.devices()
    assert len(device.removals) == FLAPS - 1


def test_unplugged_and_back_between_two_looks(bench: Bench) -> None:
    bench.plug(running=True)
    bench.table.opened(USB, "tpu-1")
    bench.plug()  # another number: it was away
    assert bench.state() is BOOT_LOADER
    assert bench.lost == [(USB, "tpu-1", "was unplugged, or reset itself")]


def test_gone_while_it_was_opened(bench: Bench) -> None:
    bench.plug()
    bench.table.opening(USB, "tpu-1")
    bench.pull()
    bench.wait(OPENING_S - 1)
    assert bench.state() is LEASED
    bench.wait(1)
    assert bench.state() is GONE
    assert bench.lost == [(USB, "tpu-1", "did not come back after it was opened")]


def test_gone_while_it_was_opened_and_the_worker_knows_first(bench: Bench) -> None:
    bench.plug()
    bench.table.opening(USB, "tpu-1")
    bench.pull()
    bench.table.failed(USB, "tpu-1", "no device")
    assert bench.state() is GONE


def test_endless_resets_while_it_is_opened(bench: Bench) -> None:
    bench.plug()
    bench.table.opening(USB, "tpu-1")
    for _ in range(OWN_REMOVALS_LIMIT):
        bench.dance()
        assert bench.state() is LEASED
    bench.pull()
    assert bench.state() is GONE
    assert len(bench.lost) == 1


def test_flapping(bench: Bench) -> None:
    bench.plug()
    for _ in range(FLAPS):
        assert bench.state() is BOOT_LOADER
        bench.pull()
        bench.wait(1)
        bench.plug()
    assert bench.state() is QUARANTINED
    assert bench.tpu().detail == f"went away {FLAPS} times within {FLAPS_WITHIN_S:.0f} s"
    bench.table.changes()
    bench.pull()
    bench.plug()
    assert bench.table.changes() == []  # nobody wants to hear of it any more
    with pytest.raises(TpuNotUsable, match="usb-1-1 is quarantined: went away 5 times"):
        bench.table.opening(USB, "tpu-1")
    bench.table.resetting(USB)
    bench.table.reset_ended(USB)
    assert bench.state() is BOOT_LOADER
    bench.wait(RESET_S)
    bench.pull()
    assert bench.state() is GONE  # its past is forgotten


def test_slow_replugging_is_no_flapping(bench: Bench) -> None:
    for _ in range(4 * FLAPS):
        bench.plug()
        bench.pull()
        bench.wait(FLAPS_WITHIN_S / (FLAPS - 1) + 1)
    assert bench.state() is GONE


def test_failures(bench: Bench) -> None:
    bench.plug(running=True)
    for number in range(1, FAILURES):
        bench.table.opening(USB, "tpu-1")
        bench.table.failed(USB, "tpu-1", "no answer for 10 s")
        assert (bench.state(), bench.tpu().detail, bench.tpu().worker) == (FAULTY, "no answer for 10 s", "")
        with pytest.raises(TpuNotUsable):
            bench.table.opening(USB, "tpu-1")
        bench.wait(RETRY_S * 2 ** (number - 1) - 0.1)
        assert bench.state() is FAULTY
        bench.wait(0.1)
        assert bench.state() is READY
    bench.table.opening(USB, "tpu-1")
    bench.table.failed(USB, "tpu-2", "who has it not cannot say so")
    assert bench.state() is LEASED
    bench.table.failed(USB, "tpu-1", "no answer for 10 s")
    assert bench.state() is QUARANTINED
    assert bench.tpu().detail == "failed 3 times within 10 min, the last time: no answer for 10 s"


def test_stuck_in_the_boot_loader(bench: Bench) -> None:
    bench.plug()
    bench.table.opening(USB, "tpu-1")
    bench.table.failed(USB, "tpu-1", "not opened after 30 s")
    assert bench.state() is FAULTY
    assert bench.tpu().detail == "stays in its boot loader: not opened after 30 s"
    (device,) = bench.table.devices()
    assert device.stuck
    bench.wait(RETRY_S)
    assert bench.state() is BOOT_LOADER  # it is tried again
    assert device.stuck
    bench.table.opening(USB, "tpu-1")
    bench.dance()
    assert not device.stuck


def test_permission_denied(bench: Bench) -> None:
    bench.plug(lack=Lack.PERMISSION)
    assert bench.state() is APPEARING  # udev may not have got to it yet
    assert bench.table.next_deadline() == bench.clock() + PATIENCE_S
    bench.wait(PATIENCE_S)
    assert (bench.state(), bench.tpu().detail) == (FAULTY, "permission")
    bench.plug(running=False)
    assert bench.state() is BOOT_LOADER


def test_a_node_that_comes_late(bench: Bench) -> None:
    bench.plug(lack=Lack.NODE)
    bench.wait(PATIENCE_S - 1)
    bench.plug(lack=Lack.PERMISSION)
    bench.wait(PATIENCE_S - 1)
    assert bench.state() is APPEARING
    bench.plug()
    assert bench.state() is BOOT_LOADER


def test_temperatures(bench: Bench) -> None:
    bench.plug(PCI)
    seen = []
    for celsius in (41, 80, 76, 91, 86, 84, 74):
        bench.table.warm(PCI, celsius * 1000)
        seen.append((bench.state(PCI), bench.tpu(PCI).load_limit))
    assert seen == [(READY, 1.0), (HOT, 0.5), (HOT, 0.5), (HOT, 0.0), (HOT, 0.0), (HOT, 0.5), (READY, 1.0)]
    assert bench.tpu(PCI).temperature_c == 74.0


def test_hot_in_use(bench: Bench) -> None:
    bench.plug(PCI)
    bench.table.opened(PCI, "tpu-1")
    bench.table.warm(PCI, 92_000)
    assert (bench.state(PCI), bench.tpu(PCI).worker, bench.tpu(PCI).load_limit) == (HOT, "tpu-1", 0.0)
    assert [tpu.id for tpu in bench.table.usable()] == [PCI]
    bench.table.warm(PCI, 50_000)
    assert (bench.state(PCI), bench.tpu(PCI).worker) == (LEASED, "tpu-1")
    assert bench.lost == []


@pytest.mark.parametrize("millicelsius", [-89_700, -40_250, 125_250, 900_000])
def test_fallen_off_the_bus(millicelsius: int, bench: Bench) -> None:
    bench.plug(PCI)
    bench.table.opened(PCI, "tpu-1")
    bench.table.warm(PCI, millicelsius)
    assert bench.state(PCI) is FAULTY
    assert bench.tpu(PCI).temperature_c is None
    assert [(tpu_id, worker) for tpu_id, worker, _ in bench.lost] == [(PCI, "tpu-1")]
    bench.wait(1e6)
    assert bench.state(PCI) is FAULTY
    bench.table.warm(PCI, 85_000)  # it is back, and hot
    assert bench.state(PCI) is HOT


def test_small_changes_of_temperature_are_not_told(bench: Bench) -> None:
    bench.plug(PCI)
    bench.table.warm(PCI, 41_000)
    assert len(bench.table.changes()) == 1
    bench.table.warm(PCI, 45_750)
    assert bench.table.changes() == []
    bench.table.warm(PCI, 46_000)
    assert len(bench.table.changes()) == 1


def test_quarantine_as_the_owner_wants(bench: Bench) -> None:
    bench.plug()
    bench.table.opened(USB, "tpu-1")
    bench.table.quarantine(USB, "smells")
    assert (bench.state(), bench.tpu().detail) == (QUARANTINED, "smells")
    assert bench.lost == [(USB, "tpu-1", "smells")]
    bench.pull()
    assert (bench.state(), bench.tpu().detail) == (QUARANTINED, "smells; not there now")
    assert bench.table.resetting(USB) is None
    bench.table.reset_ended(USB)
    assert bench.state() is GONE
    for order in (bench.table.resetting, lambda name: bench.table.quarantine(name, "x")):
        with pytest.raises(NoSuchTpu, match="no TPU is called 'usb-9-9'"):
            order("usb-9-9")


def test_a_reset_is_our_own_doing(bench: Bench) -> None:
    bench.plug(running=True)
    seen = bench.table.resetting(USB)
    assert seen is not None
    assert seen.node == "/dev/bus/usb/001/002"
    assert (bench.state(), bench.tpu().detail) == (APPEARING, "being reset")
    bench.pull()
    assert bench.state() is APPEARING
    bench.plug()
    bench.table.reset_ended(USB)
    assert bench.state() is BOOT_LOADER
    (device,) = bench.table.devices()
    assert list(device.removals) == []


def test_one_worker_at_a_time(bench: Bench) -> None:
    bench.plug(running=True)
    bench.table.opening(USB, "tpu-1")
    with pytest.raises(TpuNotUsable, match="usb-1-1 is leased by tpu-1"):
        bench.table.opening(USB, "tpu-2")
    bench.table.opening(USB, "tpu-1")
    with pytest.raises(NoSuchTpu):
        bench.table.opening("usb-2-2", "tpu-1")
    bench.pull()
    bench.wait(OPENING_S)
    with pytest.raises(TpuNotUsable, match="usb-1-1 is gone"):
        bench.table.opened(USB, "tpu-1")
    bench.table.closed("usb-2-2", "tpu-1")
    bench.table.failed("usb-2-2", "tpu-1", "what is not there cannot fail")


def test_a_worker_that_died_has_nothing_open(bench: Bench) -> None:
    for port, worker in (("usb-1-1", "tpu-1"), ("usb-1-2", "tpu-2"), ("usb-1-3", "tpu-1")):
        bench.plug(port, running=True)
        bench.table.opened(port, worker)
    bench.table.worker_gone("tpu-1")
    assert [(tpu.state, tpu.worker) for tpu in bench.table.all()] == [
        (READY, ""),
        (LEASED, "tpu-2"),
        (READY, ""),
    ]


def test_places_last(bench: Bench) -> None:
    for port in ("usb-1-2", "usb-1-10", "usb-1-1"):
        bench.plug(port)
    assert [(tpu.id, tpu.slot) for tpu in bench.table.all()] == [
        ("usb-1-2", 1),
        ("usb-1-10", 2),
        ("usb-1-1", 3),
    ]
    bench.pull("usb-1-10")
    bench.plug("usb-1-3")
    bench.plug("usb-1-10")
    assert bench.tpu("usb-1-10").slot == 2
    assert bench.tpu("usb-1-3").slot == 4
    bench.table.configure(Layout.of(Devices(layout=LayoutName.L4X8)), Thresholds(80, 90, 5))
    assert [(tpu.id, tpu.tray, tpu.slot) for tpu in bench.table.all()] == [
        (f"usb-1-{port}", "unplaced", slot) for slot, port in enumerate((1, 2, 3, 10), 1)
    ]
    assert sorted(["usb-1-10", "usb-1-2", "pci-0000:03:00.0", "usb-1-2.1"], key=port_order) == [
        "pci-0000:03:00.0",
        "usb-1-2",
        "usb-1-2.1",
        "usb-1-10",
    ]


def test_the_reserve_stands_in_and_steps_back() -> None:
    bench = Bench(LayoutName.L4X8)
    ports = [f"usb-2-1.{hub}.{port}" for hub in (1, 2) for port in (1, 2, 3, 4)]
    for port in ports:
        bench.plug(port)
    spare = ports[-1]
    assert (bench.tpu(spare).role, bench.tpu(spare).stands_in) == (TpuRole.RESERVE, False)
    bench.table.changes()
    bench.pull(ports[1])
    assert {tpu.id for tpu in bench.table.changes()} == {ports[1], spare}
    assert (bench.tpu(spare).role, bench.tpu(spare).stands_in) == (TpuRole.PERCEPTION, True)
    bench.plug(ports[1])
    assert (bench.tpu(spare).role, bench.tpu(spare).stands_in) == (TpuRole.RESERVE, False)


def test_other_thresholds(bench: Bench) -> None:
    bench.plug(PCI)
    bench.table.warm(PCI, 75_000)
    bench.table.configure(Layout.of(Devices()), Thresholds(70, 74, 2))
    assert bench.tpu(PCI).load_limit == 0.0


def test_those_that_are_gone_are_forgotten_at_last(bench: Bench) -> None:
    for number in range(GONE_KEPT + 5):
        bench.clock.now += 1
        bench.plug(f"usb-1-{number}")
        bench.pull(f"usb-1-{number}")
    assert {tpu.id for tpu in bench.table.all()} == {f"usb-1-{number}" for number in range(5, GONE_KEPT + 5)}


# --- all of it at once -----------------------------------------------------------------------------------------------


def test_every_state_has_its_followers() -> None:
    assert set(NEXT) == set(TpuState)
    assert all(state not in following for state, following in NEXT.items())


def acts_of(bench: Bench, draw: random.Random) -> list[Callable[[str], object]]:
    """All that can happen to a TPU."""
    return [
        lambda tpu_id: bench.plug(tpu_id, running=draw.random() < 0.5),
        lambda tpu_id: bench.plug(tpu_id, lack=draw.choice([Lack.NODE, Lack.PERMISSION])),
        bench.pull,
        lambda tpu_id: bench.table.removed(tpu_id, unseen=True),
        lambda tpu_id: bench.table.opening(tpu_id, "tpu-1"),
        lambda tpu_id: bench.table.opened(tpu_id, "tpu-1"),
        lambda tpu_id: bench.table.closed(tpu_id, "tpu-1"),
        lambda tpu_id: bench.table.failed(tpu_id, "tpu-1", "x"),
        lambda tpu_id: bench.table.warm(tpu_id, draw.choice([41_000, 82_000, 95_000, -89_700])),
        lambda tpu_id: bench.table.quarantine(tpu_id, "x") if draw.random() < 0.2 else None,
        bench.table.resetting,
        bench.table.reset_ended,
        lambda _: bench.wait(draw.choice([0.0, 1.0, 5.0, 12.0, 40.0, 700.0])),
    ]


def test_what_may_happen_happens_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """Long random lives enter every state from exactly those that the table of transitions names."""
    seen: set[tuple[TpuState, TpuState]] = set()
    for seed in range(60):
        draw = random.Random(seed)
        bench = Bench()
        acts = acts_of(bench, draw)
        for _ in range(600):
            before = {tpu.id: tpu.state for tpu in bench.table.all()}
            with contextlib.suppress(NoSuchTpu, TpuNotUsable):
                draw.choice(acts)(draw.choice([USB, PCI]))
            bench.table.tick()
            due = bench.table.next_deadline()
            assert due is None or due > bench.clock()  # who waits for it does not wake in vain
            for tpu in bench.table.all():
                seen.add((before.get(tpu.id, APPEARING), tpu.state))
                assert not tpu.worker or tpu.state in {LEASED, HOT}
                assert (tpu.load_limit > 0) <= (tpu.state in USABLE)
                assert tpu.state not in {LEASED, READY} or tpu.load_limit == 1.0
    # One look may span several steps (it went away and came back); the table itself complains of a step that may not be.
    assert {(state, after) for state, following in NEXT.items() for after in following} <= seen
    assert "cannot become" not in caplog.text
