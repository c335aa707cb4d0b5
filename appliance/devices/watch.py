"""Keeps the table true: events of udev, full looks where events are missing, temperatures, and what time alone changes.

sysfs is the truth, an event only says where to look: so late, doubled and disordered events do no harm.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from appliance.config.appliance import Devices
from appliance.wire.messages import Hotplug, Tpu, TpuBus, Tray

from .access import User
from .errors import BadTrayIdentity, ResetFailed
from .monitor import Event, Monitor, Overflow
from .quarantine import remember, remembered
from .reset import reset
from .sysfs import APEX_CLASS, Lack, Sighting, Sysfs
from .table import TpuTable
from .temperature import Thresholds
from .tray_identity import TrayIdentity, read
from .trays import Layout

log = logging.getLogger(__name__)

#: Whether udev runs, as libudev itself finds out.
UDEV_CONTROL = "run/udev/control"

#: Events that are taken before others get their turn.
BATCH = 64

#: When a TPU went away, its folder may still be there, or half of it, or only its driver went: looked at again after this.
SECOND_LOOK_S = 0.5

#: Between the attempts to reset a TPU that somebody still has open.
RESET_PAUSES_S = (0.5, 1.0, 2.0)

#: Temperatures, permissions of those that lacked them.
POLL_S = 2.0

#: Without udev, everything is looked at anew this often.
FULL_LOOK_S = 5.0


class DeviceWatch:
    """Owns the table and the monitor; everything happens in the loop that runs `run`.

    `changed(tpus)` is called with the TPUs that changed, after each batch of events, `trays_changed()` when an identity was read,
    `lost` as `TpuTable` says. `memory` is the file that remembers who is in quarantine.
    """

    def __init__(
        self,
        settings: Devices,
        *,
        user: User,
        memory: Path | None = None,
        changed: Callable[[list[Tpu]], None],
        trays_changed: Callable[[], None] = lambda: None,
        lost: Callable[[str, str, str], None] = lambda _id, _worker, _reason: None,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
        monitor: Callable[[], Monitor] = Monitor,
        poll_s: float = POLL_S,
    ) -> None:
        self._changed, self._trays_changed, self._root, self._clock = changed, trays_changed, root, clock
        self._new_monitor, self._poll_s = monitor, poll_s
        self._sysfs = Sysfs(root, user)
        self._layout = Layout.of(settings)
        self._memory, self._remembered = memory, remembered(memory) if memory else {}
        self.table = TpuTable(
            self._layout, _thresholds(settings), lost=lost, quarantined=self._remembered, clock=clock
        )
        self._identities: dict[str, TrayIdentity | BadTrayIdentity | None] = {}
        self._nodes: dict[str, str] = {}  # of each TPU, when it was looked at last
        self._unread: dict[str, None] = {}  # trays that may be others than those that were read, oldest first
        self._to_read = asyncio.Event()
        self._monitor: Monitor | None = None
        self._readable = asyncio.Event()
        self._second_looks: dict[tuple[TpuBus, str], float] = {}  # when, by bus and on USB by port
        self._touched = asyncio.Event()
        self.hotplug = Hotplug.POLLED

    async def run(self) -> None:
        """Looks at everything, then keeps up with it until it is cancelled."""
        self._listen()
        self.look_at_all()
        self._read_all()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow(), name="devices: events")
                tasks.create_task(self._poll(), name="devices: temperatures")
                tasks.create_task(self._identify(), name="devices: trays")
                tasks.create_task(self._wait_for_time(), name="devices: time")
        finally:
            self._stop_listening()

    # --- what others ask ----------------------------------------------------------------------------------------

    def trays(self) -> list[Tray]:
        """Every tray, those without a TPU too; one for TPUs without a slot only when there are any."""
        seats: dict[str, int] = {}
        for device in self.table.devices():
            seats[device.place.tray] = max(seats.get(device.place.tray, 0), device.place.slot)
        return [
            self._tray(name, len(plan.slots) or seats.get(name, 0))
            for name, plan in self._layout.trays.items()
            if plan.slots or name in seats
        ]

    def opening(self, tpu_id: str, worker: str) -> None:
        """See `TpuTable.opening`; so the others. What a worker says of a TPU is about what is at its port now, whatever events of
        it are still on their way."""
        self._look_at(tpu_id)
        try:
            self.table.opening(tpu_id, worker)
        finally:
            self._tell()

    def opened(self, tpu_id: str, worker: str) -> None:
        self._look_at(tpu_id)
        try:
            self.table.opened(tpu_id, worker)
        finally:
            self._tell()

    def closed(self, tpu_id: str, worker: str) -> None:
        self.table.closed(tpu_id, worker)
        self._tell()

    def failed(self, tpu_id: str, worker: str, reason: str) -> None:
        self._look_at(tpu_id)
        self.table.failed(tpu_id, worker, reason)
        self._tell()

    def worker_gone(self, worker: str) -> None:
        self.table.worker_gone(worker)
        self._tell()

    def quarantine(self, tpu_id: str, reason: str) -> None:
        self.table.quarantine(tpu_id, reason)
        self._tell()

    async def reset(self, tpu_id: str) -> str:
        """Resets a TPU and uses it again; returns a sentence. NoSuchTpu, ResetFailed (it is used again all the same)."""
        seen = self.table.resetting(tpu_id)
        self._tell()
        try:
            if seen is None or not seen.node:
                return f"{tpu_id} is not there: what was wrong with it is forgotten"
            await self._reset(seen)
            return f"{tpu_id} was reset"
        finally:
            self.table.reset_ended(tpu_id)
            self._tell()

    async def _reset(self, seen: Sighting) -> None:
        """Whoever had it open has been told a moment ago, and may need another one to close it."""
        for pause_s in (*RESET_PAUSES_S, 0.0):
            try:
                await asyncio.to_thread(reset, seen.bus, self._root / seen.node.lstrip("/"))
            except ResetFailed as error:
                if not error.in_use or not pause_s:
                    raise
                await asyncio.sleep(pause_s)
            else:
                return

    def configure(self, settings: Devices) -> None:
        """Takes other settings over."""
        self._layout = Layout.of(settings)
        self.table.configure(self._layout, _thresholds(settings))
        self._identities.clear()
        self._tell()
        self._read_all()

    # --- events -------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """A new monitor, before anything is looked at: so nothing is missed between the two."""
        self._stop_listening()
        self.hotplug = Hotplug.UDEV if (self._root / UDEV_CONTROL).exists() else Hotplug.POLLED
        try:
            self._monitor = self._new_monitor()
        except OSError as error:
            log.warning("no events of devices: %s", error)
            self.hotplug = Hotplug.POLLED
            return
        asyncio.get_running_loop().add_reader(self._monitor.fileno(), self._readable.set)

    def _stop_listening(self) -> None:
        if self._monitor is not None:
            asyncio.get_running_loop().remove_reader(self._monitor.fileno())
            self._monitor = None

    async def _follow(self) -> None:
        while True:
            await self._readable.wait()
            self._readable.clear()
            if self._monitor is None:
                continue
            try:
                events = self._monitor.take(BATCH)
            except Overflow as overflow:
                log.warning("events of devices were lost (%s): looking at everything anew", overflow)
                self._listen()
                self.look_at_all()
                continue
            self._take(events)
            if len(events) == BATCH:
                self._readable.set()
                await asyncio.sleep(0)

    def _take(self, events: list[Event]) -> None:
        came = False
        for event in events:
            if event.subsystem == "usb":
                self._usb_event(event)
            elif event.action == "remove":
                self._pcie_removed(event.name)
            else:
                came = True
        if came:
            self.table.resync_bus(TpuBus.PCIE, self._sysfs.scan_pcie())
        self._tell()

    def _usb_event(self, event: Event) -> None:
        if event.action == "remove":
            seen = self._sysfs.usb(event.name)
            self.table.removed(f"usb-{event.name}", node=event.node, unseen=True)
            # A folder that still stands is the removed device's, unless its number shows that it is the next one's.
            if seen is not None and event.node and seen.node not in ("", event.node):
                self.table.see(seen)
            self._second_looks[TpuBus.USB, event.name] = self._clock() + SECOND_LOOK_S
        else:
            self._look_at_port(event.name)

    def _look_at_port(self, port: str) -> None:
        if (seen := self._sysfs.usb(port)) is not None:
            self.table.see(seen)
        else:
            self.table.removed(f"usb-{port}")

    def _look_at(self, tpu_id: str) -> None:
        if tpu_id.startswith("usb-"):
            self._look_at_port(tpu_id.removeprefix("usb-"))

    def _pcie_removed(self, name: str) -> None:
        """An apex device, by its name, or a device on PCI, by its address. What stays there is found at the second look."""
        for device in list(self.table.devices()):
            if device.there and (device.id == f"pci-{name}" or device.seen.sysfs == f"/{APEX_CLASS}/{name}"):
                self.table.removed(device.id)
                self._second_looks[TpuBus.PCIE, ""] = self._clock() + SECOND_LOOK_S

    def look_at_all(self) -> None:
        """Makes the table what /sys shows now."""
        self.table.resync(self._sysfs.scan())
        self._tell()

    # --- time ---------------------------------------------------------------------------------------------------

    async def _wait_for_time(self) -> None:
        """Wakes for the next deadline; whatever makes one wakes it sooner."""
        while True:
            deadlines = list(self._second_looks.values())
            if (due := self.table.next_deadline()) is not None:
                deadlines.append(due)
            delay = max(0.0, min(deadlines) - self._clock()) if deadlines else None
            try:
                async with asyncio.timeout(delay):
                    await self._touched.wait()
            except TimeoutError:
                self.pass_time()
            self._touched.clear()

    def pass_time(self) -> None:
        """Does what is due by now."""
        now = self._clock()
        for bus, port in [each for each, when in self._second_looks.items() if now >= when]:
            del self._second_looks[bus, port]
            if bus is TpuBus.USB:
                self._look_at_port(port)
            else:
                self.table.resync_bus(bus, self._sysfs.scan_pcie())
        self.table.tick()
        self._publish()

    async def _poll(self) -> None:
        looked = self._clock()
        while True:
            await self._read_temperatures()
            for device in list(self.table.devices()):
                if device.there and device.seen.lack in (Lack.PERMISSION, Lack.NODE):
                    self.look_at_all()
                    break
            if self._clock() - looked >= FULL_LOOK_S:
                looked = self._clock()
                other = (self._root / UDEV_CONTROL).exists() != (self.hotplug is Hotplug.UDEV)
                if other:  # udev was started, or stopped, after us
                    self._listen()
                if other or self.hotplug is Hotplug.POLLED:
                    self.look_at_all()
            self._tell()
            await asyncio.sleep(self._poll_s)

    async def _read_temperatures(self) -> None:
        places = {
            device.id: device.seen.sysfs
            for device in self.table.devices()
            if device.there and device.seen.bus is TpuBus.PCIE and device.seen.lack is None
        }
        if not places:
            return

        def read_all() -> dict[str, int | None]:
            return {tpu_id: self._sysfs.temperature_millicelsius(sysfs) for tpu_id, sysfs in places.items()}

        for tpu_id, millicelsius in (await asyncio.to_thread(read_all)).items():
            if millicelsius is not None:
                self.table.warm(tpu_id, millicelsius)

    # --- trays --------------------------------------------------------------------------------------------------

    def _read_all(self) -> None:
        self._unread = dict.fromkeys(self._layout.trays)
        self._to_read.set()

    async def _identify(self) -> None:
        """Reads the identities of trays that have come, one after the other: a memory may take half a minute."""
        while True:
            await self._to_read.wait()
            self._to_read.clear()
            while self._unread:
                name = next(iter(self._unread))
                del self._unread[name]
                if (plan := self._layout.trays.get(name)) is None or not plan.identity:
                    continue
                found: TrayIdentity | BadTrayIdentity | None
                try:
                    found = await read(self._root / plan.identity.lstrip("/"))
                except BadTrayIdentity as error:
                    log.warning("the identity of %s, %s, %s", name, plan.identity, error)
                    found = error
                if self._layout.trays.get(name) is plan:
                    self._identities[name] = found
                    self._trays_changed()

    def _tray(self, name: str, slots: int) -> Tray:
        plan = self._layout.trays[name]
        found = self._identities.get(name)
        if isinstance(found, BadTrayIdentity):
            return Tray(name=name, slots=slots, persona=plan.persona, problem=f"{plan.identity} {found}")
        if found is None:
            return Tray(name=name, slots=slots, persona=plan.persona)
        twins = [
            other
            for other, identity in self._identities.items()
            if other != name and isinstance(identity, TrayIdentity) and identity.id == found.id
        ]
        problem = ""
        if twins:
            problem = f"calls itself {found.id}, as {', '.join(twins)} does"
        elif plan.slots and found.slots not in (None, slots):
            problem = f"{found.id} says that it has {found.slots} slots, and its place has {slots}"
        return Tray(
            name=name, slots=slots, identity=found.id, persona=found.persona or plan.persona, problem=problem
        )

    # --- inside -------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """After whatever may have changed something: there may be another deadline, too."""
        self._touched.set()
        self._publish()

    def _publish(self) -> None:
        if self._memory and self.table.quarantined != self._remembered:
            self._remembered = dict(self.table.quarantined)
            remember(self._memory, self._remembered)
        changes = self.table.changes()
        for tpu in changes:
            if tpu.node and self._nodes.get(tpu.id) != tpu.node:  # it came, and perhaps its tray with it
                self._nodes[tpu.id] = tpu.node
                self._unread[tpu.tray] = None
                self._to_read.set()
        if changes:
            self._changed(changes)


def _thresholds(settings: Devices) -> Thresholds:
    return Thresholds(settings.throttle_c, settings.shutdown_c, settings.hysteresis_c)
