"""The TPUs as the supervisor has them: the watched table, its events, its repairs, and who may use what."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from appliance.config.appliance import Devices
from appliance.devices.access import User
from appliance.devices.states import Device, Fault
from appliance.devices.sysfs import Lack
from appliance.devices.temperature import Heat
from appliance.devices.watch import DeviceWatch
from appliance.wire.messages import Hotplug, Tpu, TpuChanged, TpuState, Tray

from .repairs import Kind, Repairs

log = logging.getLogger(__name__)

#: Why a TPU is in quarantine that its owner has put there: no trouble to tell of.
OWNERS_WISH = "put there with 'coral-reef tpu quarantine'"

#: Those that a sentence names.
NAMED = 4

_LACKS = {Lack.NODE: Kind.TPU_NODE, Lack.PERMISSION: Kind.TPU_PERMISSION, Lack.DRIVER: Kind.TPU_DRIVER}

#: What a repair of these kinds is about: one TPU, which can be reset.
OF_ONE_TPU = frozenset({Kind.TPU_QUARANTINED, Kind.TPU_OFF_THE_BUS, Kind.TPU_BOOT_LOADER})

KINDS = (*OF_ONE_TPU, *_LACKS.values(), Kind.TPU_HOT, Kind.TRAY_IDENTITY)


class Tpus:
    """`publish` tells everybody who subscribed; `memory` is a file of its own."""

    def __init__(
        self,
        settings: Devices,
        repairs: Repairs,
        publish: Callable[[TpuChanged], None],
        *,
        memory: Path,
        worker_user: str | None,
    ) -> None:
        self._repairs, self._publish = repairs, publish
        self._users: list[Callable[[list[Tpu]], None]] = []
        self._losers: list[Callable[[str, str], None]] = []
        #: Whoever leases a TPU to a worker tells it: `opening` before the worker opens it, then `opened`, `closed` or `failed`.
        self.watch = DeviceWatch(
            settings,
            user=_user(worker_user),
            memory=memory,
            changed=self._changed,
            trays_changed=self._look_for_trouble,
            lost=self._lost,
        )

    async def run(self) -> None:
        """Keeps up with the devices until it is cancelled."""
        await self.watch.run()

    def use(
        self, usable: Callable[[list[Tpu]], None], lost: Callable[[str, str], None] | None = None
    ) -> None:
        """`usable(tpus)` is called now and whenever one of those that a worker may open has changed; `lost(id, worker)` at once
        when a TPU that a worker has open went away or must not be used any more, even if it is usable again a moment later."""
        self._users.append(usable)
        if lost is not None:
            self._losers.append(lost)
        usable(self.watch.table.usable())

    # --- what is shown ------------------------------------------------------------------------------------------

    def all(self) -> list[Tpu]:
        return self.watch.table.all()

    def trays(self) -> list[Tray]:
        return self.watch.trays()

    @property
    def hotplug(self) -> Hotplug:
        return self.watch.hotplug

    # --- orders -------------------------------------------------------------------------------------------------

    async def reset(self, tpu_id: str) -> str:
        """Resets a TPU and uses it again. DevicesError."""
        log.info("%s: reset asked for", tpu_id)
        return await self.watch.reset(tpu_id)

    async def quarantine(self, tpu_id: str) -> str:
        """Takes a TPU out of use. NoSuchTpu."""
        self.watch.quarantine(tpu_id, OWNERS_WISH)
        return f"{tpu_id} is used no more, until 'coral-reef tpu reset {tpu_id}'"

    def configure(self, settings: Devices) -> None:
        """Takes other settings over."""
        self.watch.configure(settings)
        self._look_for_trouble()

    # --- inside -------------------------------------------------------------------------------------------------

    def _changed(self, tpus: list[Tpu]) -> None:
        for tpu in tpus:
            self._publish(TpuChanged(tpu=tpu))
        self._look_for_trouble()
        usable = self.watch.table.usable()
        for tell in self._users:
            tell(usable)

    def _lost(self, tpu_id: str, worker: str, reason: str) -> None:
        log.warning("%s, in use by worker %s, %s", tpu_id, worker, reason)
        for tell in self._losers:
            tell(tpu_id, worker)

    def _look_for_trouble(self) -> None:
        found = troubles(self.watch.table.devices(), self.watch.trays())
        for repair in self._repairs.all():
            if repair.kind in KINDS and repair.subject not in found.get(Kind(repair.kind), {}):
                self._repairs.close(Kind(repair.kind), repair.subject)
        for kind, subjects in found.items():
            for subject, what in subjects.items():
                fix = partial(self.reset, subject) if kind in OF_ONE_TPU else None
                self._repairs.open(kind, subject, what, fix)


def troubles(devices: Iterable[Device], trays: Iterable[Tray]) -> dict[Kind, dict[str, str]]:
    """What is wrong: by kind and subject, a sentence. What a whole tray has in common is said once."""
    found: dict[Kind, dict[str, str]] = {}
    common: dict[tuple[Kind, str], list[Device]] = {}
    for device in devices:
        tray = device.place.tray
        if device.state is TpuState.QUARANTINED:
            if device.quarantine != OWNERS_WISH:
                found.setdefault(Kind.TPU_QUARANTINED, {})[device.id] = (
                    f"{device.id} is not used any more: it {device.quarantine}"
                )
        elif device.fault is Fault.OFF_THE_BUS:
            found.setdefault(Kind.TPU_OFF_THE_BUS, {})[device.id] = f"{device.id} {device.fault_detail}"
        elif device.stuck:
            found.setdefault(Kind.TPU_BOOT_LOADER, {})[device.id] = (
                f"{device.id} stays in its boot loader although a worker opened it"
            )
        elif device.state is TpuState.FAULTY and device.fault is None and device.lack is not None:
            common.setdefault((_LACKS[device.lack], tray), []).append(device)
        elif device.state is TpuState.HOT:
            common.setdefault((Kind.TPU_HOT, tray), []).append(device)
    for (kind, tray), several in common.items():
        found.setdefault(kind, {})[tray] = f"{tray}: {_in_common(kind, several)}"
    if bad := {tray.name: f"{tray.name}: {tray.problem}" for tray in trays if tray.problem}:
        found[Kind.TRAY_IDENTITY] = bad
    return found


def _in_common(kind: Kind, devices: list[Device]) -> str:
    names = ", ".join(device.id for device in devices[:NAMED])
    if len(devices) > NAMED:
        names += f" and {len(devices) - NAMED} more"
    if kind is not Kind.TPU_HOT:
        return f"{names} cannot be used: {devices[0].seen.detail}"
    idle = sum(device.heat is Heat.SHUT_DOWN for device in devices)
    rest = len(devices) - idle
    works = [f"{rest} at half of the usual work"] * (rest > 0) + [f"{idle} at none"] * (idle > 0)
    return f"hot: {names} ({', '.join(works)})"


def _user(name: str | None) -> User:
    try:
        return User.named(name)
    except KeyError:
        log.warning("there is no user %s: who may use a TPU is decided for this process's own", name)
        return User.named(None)
