"""The one table of all TPUs. It is told what was seen and what workers do, and says what follows; it does nothing itself."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from appliance.wire.messages import Tpu, TpuBus, TpuState

from .errors import NoSuchTpu, TpuNotUsable
from .states import NEXT, USABLE, Device, Fault
from .sysfs import Sighting
from .temperature import LOAD_LIMITS, OFF_THE_BUS_MILLICELSIUS, SANE_MILLICELSIUS, Heat, Thresholds
from .trays import Layout, Member, Place, stand_ins

log = logging.getLogger(__name__)

#: Opening takes 3.2 s, and blocks for 25 s when the device does not come back (libedgetpu's own sleeps and retries).
OPENING_S = 30.0

#: After a reset has returned, the port may be empty for a while yet.
RESET_S = 3.0

#: A reset is one removal; the boot loader's dance is one or two. More in one go is a device that resets endlessly.
OWN_REMOVALS_LIMIT = 3

#: Went away so often within so many seconds, by itself: flapping.
FLAPS, FLAPS_WITHIN_S = 5, 60.0

#: Failed so often within so many seconds: not used again by itself.
FAILURES, FAILURES_WITHIN_S = 3, 600.0

#: After its first failure it is tried again this soon, after the next ones later, each time doubled.
RETRY_S = 10.0

#: TPUs that are gone are kept, newest first: the tower has 128 ports, but a laptop's docks are many.
GONE_KEPT = 256

#: Degrees that a temperature must move before it is worth an event.
TEMPERATURE_STEP_C = 5.0


class TpuTable:
    """`lost(id, worker, reason)` is called whenever a worker's TPU is none of its any more without its doing."""

    def __init__(
        self,
        layout: Layout,
        thresholds: Thresholds,
        *,
        lost: Callable[[str, str, str], None] = lambda _id, _worker, _reason: None,
        quarantined: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`quarantined`: TPUs that nobody may use from the start, with the reasons."""
        self._layout, self._thresholds, self._lost, self._clock = layout, thresholds, lost, clock
        #: Why nobody may use a TPU, by id, whether it is there or not.
        self.quarantined = dict(quarantined or {})
        self._devices: dict[str, Device] = {}
        self._told: dict[str, tuple[tuple[object, ...], float | None]] = {}

    # --- what was seen ------------------------------------------------------------------------------------------

    def see(self, seen: Sighting) -> None:
        """A TPU is there. One that is another than before has been away meanwhile."""
        now = self._clock()
        device = self._devices.get(seen.id)
        if device is None:
            place = self._place(seen.id)
            home = self._layout.role(place)
            device = Device(seen.id, place, seen, home, home, since=now, lacking_since=now)
            device.quarantine = self.quarantined.get(seen.id, "")
            self._devices[seen.id] = device
        elif device.there and _another(device.seen, seen):
            self.removed(seen.id)
        if seen.lack is not device.seen.lack or not device.there:
            device.lacking_since = now
        device.seen, device.there = seen, True
        device.stuck = device.stuck and seen.boot_loader
        self._settle(device, now)

    def removed(self, tpu_id: str, *, node: str = "", unseen: bool = False) -> None:
        """A TPU went away. `node`: the one that it had, which tells late events of the port's earlier lives. `unseen`: even if it
        had not been seen since it went away last, it was there meanwhile."""
        device = self._devices.get(tpu_id)
        if device is None:
            return
        now = self._clock()
        older = bool(device.since_node) and node != device.since_node
        if node == device.since_node:
            device.since_node = ""
        if device.there and (not node or device.seen.node in ("", node)):
            device.there = False
            device.heat, device.temperature_c = Heat.NORMAL, None
        elif older or node in device.left_nodes or not (device.there or unseen):
            return
        if left := node or device.seen.node:
            device.left_nodes.append(left)
        if now < device.own_until and device.own_removals < OWN_REMOVALS_LIMIT:
            device.own_removals += 1
        else:
            device.own_until = 0.0
            if _too_often(device.removals, now, FLAPS, FLAPS_WITHIN_S):
                self._quarantine(device, f"went away {FLAPS} times within {FLAPS_WITHIN_S:.0f} s")
            self._end_lease(device, "was unplugged, or reset itself")
        self._settle(device, now)
        self._forget_some()

    def resync(self, found: Mapping[str, Sighting]) -> None:
        """Everything that is there now: what is missing went away."""
        for tpu_id in [each.id for each in self._devices.values() if each.there and each.id not in found]:
            self.removed(tpu_id)
        for seen in found.values():
            self.see(seen)

    def resync_bus(self, bus: TpuBus, found: Mapping[str, Sighting]) -> None:
        """The same for one bus."""
        others = {
            each.id: each.seen for each in self._devices.values() if each.there and each.seen.bus is not bus
        }
        self.resync(others | dict(found))

    def warm(self, tpu_id: str, millicelsius: int) -> None:
        """What a TPU's sensor says."""
        device = self._devices.get(tpu_id)
        if device is None or not device.there or device.seen.bus is TpuBus.USB:
            return  # those have no sensor
        now = self._clock()
        if millicelsius not in SANE_MILLICELSIUS:
            off = millicelsius == OFF_THE_BUS_MILLICELSIUS
            device.heat, device.temperature_c = Heat.NORMAL, None
            device.fault = Fault.OFF_THE_BUS
            device.fault_detail = (
                "has fallen off its bus" if off else f"its sensor is dead: it says {millicelsius / 1000:g} C"
            )
            self._end_lease(device, device.fault_detail)
        else:
            if device.fault is Fault.OFF_THE_BUS:
                device.fault = None
            device.temperature_c = millicelsius / 1000
            device.heat = self._thresholds.after(device.heat, device.temperature_c)
        self._settle(device, now)

    # --- what workers do ----------------------------------------------------------------------------------------

    def opening(self, tpu_id: str, worker: str) -> None:
        """A worker is about to open a TPU: what happens on its port now is our own doing. TpuNotUsable, NoSuchTpu."""
        device = self._find(tpu_id)
        if device.state not in USABLE or device.worker not in ("", worker):
            by = f" by {device.worker}" if device.worker else ""
            raise TpuNotUsable(f"{tpu_id} is {device.state}{by}: {device.detail() or 'not to be opened'}")
        now = self._clock()
        device.worker = worker
        if device.seen.bus is TpuBus.USB:
            device.own_until, device.own_removals = now + OPENING_S, 0
            device.since_node = device.seen.node
        self._settle(device, now)

    def opened(self, tpu_id: str, worker: str) -> None:
        """It has, and what was seen last is what it has open: so from now on, nothing that happens to that one is our own doing.
        TpuNotUsable when the TPU was lost meanwhile, or is another's."""
        device = self._find(tpu_id)
        if device.worker != worker:
            self.opening(tpu_id, worker)
        # One that was opened runs: what is in its boot loader after it had been away is another life of it.
        anew = device.own_removals > 0 and device.seen.boot_loader
        device.own_until = 0.0
        device.since_node = device.seen.node
        if anew or not device.there:
            self._end_lease(device, "went away as soon as it was open")
        self._settle(device, self._clock())

    def closed(self, tpu_id: str, worker: str) -> None:
        """The worker has it open no more, and nothing is wrong with it."""
        device = self._devices.get(tpu_id)
        if device is not None and device.worker == worker:
            device.worker, device.own_until = "", 0.0
            self._settle(device, self._clock())

    def failed(self, tpu_id: str, worker: str, reason: str) -> None:
        """The worker had to give it up: not opened, an error, no answer. It is tried again a little later, until it has failed
        too often."""
        device = self._devices.get(tpu_id)
        if device is None or device.worker != worker:
            return  # it lost it before; who has it now has not failed
        now = self._clock()
        stuck = device.there and device.seen.boot_loader and device.own_until > 0
        device.worker, device.own_until = "", 0.0
        if device.there:
            device.since_node = device.seen.node
            device.fault, device.stuck = Fault.FAILED, stuck
            device.fault_detail = f"stays in its boot loader: {reason}" if stuck else reason
            repeated = _too_often(device.failures, now, FAILURES, FAILURES_WITHIN_S)
            device.retry_at = now + RETRY_S * 2 ** (len(device.failures) - 1)
            if repeated:
                minutes = FAILURES_WITHIN_S / 60
                self._quarantine(
                    device, f"failed {FAILURES} times within {minutes:.0f} min, the last time: {reason}"
                )
        self._settle(device, now)

    def worker_gone(self, worker: str) -> None:
        """A worker died: what it had open is nobody's."""
        for device in self._devices.values():
            self.closed(device.id, worker)

    # --- what the owner wants -----------------------------------------------------------------------------------

    def quarantine(self, tpu_id: str, reason: str) -> None:
        """Nobody may use it until `reset_ended`. NoSuchTpu."""
        device = self._find(tpu_id)
        self._quarantine(device, reason)
        self._end_lease(device, reason)
        self._settle(device, self._clock())

    def resetting(self, tpu_id: str) -> Sighting | None:
        """A reset begins; returns what to reset, None when it is not there. NoSuchTpu."""
        if self.quarantined.pop(tpu_id, "") and tpu_id not in self._devices:
            return None
        device = self._find(tpu_id)
        self._end_lease(device, "is reset as asked")
        now = self._clock()
        device.resetting = True
        device.quarantine, device.fault, device.stuck = "", None, False
        device.failures.clear()
        device.removals.clear()
        device.own_until, device.own_removals = (now + OPENING_S, 0) if device.there else (0.0, 0)
        self._settle(device, now)
        return device.seen if device.there else None

    def reset_ended(self, tpu_id: str) -> None:
        """It has ended, whether or not it helped."""
        if device := self._devices.get(tpu_id):
            now = self._clock()
            device.resetting = False
            device.own_until = now + RESET_S if device.own_until else 0.0
            device.lacking_since = now
            self._settle(device, now)

    def configure(self, layout: Layout, thresholds: Thresholds) -> None:
        """Other trays, other thresholds."""
        now = self._clock()
        self._layout, self._thresholds = layout, thresholds
        devices, self._devices = self._devices, {}
        for device in sorted(devices.values(), key=lambda each: port_order(each.id)):
            device.place = self._place(device.id)
            device.home = layout.role(device.place)
            self._devices[device.id] = device
            if device.temperature_c is not None:
                device.heat = thresholds.after(device.heat, device.temperature_c)
            self._settle(device, now)

    # --- time ---------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `tick` is due, on the table's clock."""
        return min((when for each in self._devices.values() for when in each.deadlines()), default=None)

    def tick(self) -> None:
        """What time alone changes: patience ends, a TPU that failed is tried again."""
        now = self._clock()
        for device in self._devices.values():
            if all(now < when for when in device.deadlines()):
                continue
            if device.fault is Fault.FAILED and now >= device.retry_at:
                device.fault = None
            if device.own_until and now >= device.own_until:
                device.own_until = 0.0
                if not device.there:
                    self._end_lease(device, "did not come back after it was opened")
            self._settle(device, now)

    # --- what is there ------------------------------------------------------------------------------------------

    def all(self) -> list[Tpu]:
        """Every TPU, by tray and slot; those that are gone too."""
        order = list(self._layout.trays)
        self._stand_in()
        tpus = [self._tpu(device) for device in self._devices.values()]
        return sorted(tpus, key=lambda tpu: (order.index(tpu.tray), tpu.slot))

    def usable(self) -> list[Tpu]:
        """Those that a worker may open or has open. A `load_limit` of 0 says: no work now, but it will be back."""
        return [tpu for tpu in self.all() if tpu.state in USABLE]

    def devices(self) -> Iterable[Device]:
        """The facts themselves, to look at."""
        return self._devices.values()

    def changes(self) -> list[Tpu]:
        """The TPUs that are other than when this was asked last, in anything that matters."""
        self._stand_in()
        found = []
        for device in self._devices.values():
            looks, told = _looks(device), self._told.get(device.id)
            if told is None or told[0] != looks or _warmer(told[1], device.temperature_c):
                self._told[device.id] = looks, device.temperature_c
                found.append(self._tpu(device))
        return found

    # --- inside -------------------------------------------------------------------------------------------------

    def _find(self, tpu_id: str) -> Device:
        if device := self._devices.get(tpu_id):
            return device
        raise NoSuchTpu(f"no TPU is called {tpu_id!r}; 'coral-reef tpu list' shows them")

    def _settle(self, device: Device, now: float) -> None:
        """Lets the facts make the state."""
        state = device.state_at(now)
        if state is device.state:
            return
        if (
            state not in NEXT[device.state]
        ):  # a bug; but one TPU's life is no reason to end everybody else's work
            log.error("%s: %s cannot become %s", device.id, device.state, state)
        device.state, device.since = state, now
        if state is TpuState.GONE:
            device.fault, device.stuck = None, False
        detail = device.detail()
        log.info("%s is %s%s", device.id, state, f": {detail}" if detail else "")

    def _end_lease(self, device: Device, reason: str) -> None:
        worker, device.worker = device.worker, ""
        if worker:
            self._lost(device.id, worker, reason)

    def _quarantine(self, device: Device, reason: str) -> None:
        self.quarantined[device.id] = device.quarantine = reason
        device.fault, device.own_until, device.resetting = None, 0.0, False

    def _place(self, tpu_id: str) -> Place:
        if found := self._layout.place(tpu_id):
            return found
        tray = self._layout.rest
        taken = {each.place.slot for each in self._devices.values() if each.place.tray == tray}
        return Place(tray, next(slot for slot in range(1, len(taken) + 2) if slot not in taken))

    def _forget_some(self) -> None:
        gone = [each for each in self._devices.values() if each.state is TpuState.GONE]
        for device in sorted(gone, key=lambda each: each.since)[: max(0, len(gone) - GONE_KEPT)]:
            del self._devices[device.id]
            self._told.pop(device.id, None)

    def _stand_in(self) -> None:
        """Gives the reserves their roles, tray by tray."""
        trays: dict[str, list[Device]] = {}
        for device in self._devices.values():
            trays.setdefault(device.place.tray, []).append(device)
        for devices in trays.values():
            devices.sort(key=lambda each: each.place.slot)
            taken = stand_ins([Member(each.id, each.home, _load_limit(each) > 0) for each in devices])
            for device in devices:
                device.stands_in = device.id in taken
                device.role = taken.get(device.id) or device.home

    def _tpu(self, device: Device) -> Tpu:
        return Tpu(
            id=device.id,
            bus=device.seen.bus,
            state=device.state,
            node=device.seen.node if device.there else "",
            sysfs=device.seen.sysfs if device.there else "",
            tray=device.place.tray,
            slot=device.place.slot,
            role=device.role,
            since_s=self._clock() - device.since,
            temperature_c=device.temperature_c,
            worker=device.worker,
            detail=device.detail(),
            load_limit=_load_limit(device),
            stands_in=device.stands_in,
            speed_mbps=device.seen.speed_mbps,
        )


def port_order(tpu_id: str) -> list[tuple[int, str]]:
    """Sorts `usb-1-2` before `usb-1-10`."""
    parts = tpu_id.replace(":", ".").replace("-", ".").split(".")
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def _another(before: Sighting, now: Sighting) -> bool:
    """Whether a port's TPU was enumerated anew between two looks."""
    renamed = bool(before.node and now.node) and before.node != now.node
    return renamed or before.boot_loader != now.boot_loader


def _load_limit(device: Device) -> float:
    return LOAD_LIMITS[device.heat] if device.state in USABLE else 0.0


def _too_often(times: deque[float], now: float, limit: int, within_s: float) -> bool:
    """Notes another time; whether there were `limit` of them within `within_s`."""
    times.append(now)
    while times[0] < now - within_s:
        times.popleft()
    return len(times) >= limit


def _looks(device: Device) -> tuple[object, ...]:
    """What is worth telling. One in quarantine may come and go as it likes."""
    place = device.place, device.role, device.stands_in
    if device.state is TpuState.QUARANTINED:
        return device.state, device.quarantine, place
    seen = (device.seen.node, device.seen.speed_mbps) if device.there else None
    return device.state, device.worker, device.detail(), _load_limit(device), seen, place


def _warmer(told: float | None, now: float | None) -> bool:
    """Whether a temperature has moved enough."""
    if told is None or now is None:
        return told is not now
    return abs(now - told) >= TEMPERATURE_STEP_C
