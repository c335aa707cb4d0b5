"""Where each TPU belongs, and what for: ports to trays and slots, slots to roles, and the reserve that steps in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from appliance.config.appliance import Devices, LayoutName
from appliance.wire.messages import TpuRole

LANGUAGE, PERCEPTION, MEMORY, RESERVE = TpuRole

#: The roles of a tray's slots. Mixed, so that a hub of four that fails takes no role with it: 10/3/2/1 of 16, 7/2/2/1 of 12 and
#: 5/1/1/1 of 8, for language, perception, memory and reserve.
_LETTERS = {"L": LANGUAGE, "P": PERCEPTION, "M": MEMORY, "R": RESERVE}
ROLES: Mapping[int, Sequence[TpuRole]] = {
    len(row): tuple(_LETTERS[letter] for letter in row)
    for row in ("LPMLLPLLMLLPLLLR", "LPLLLLMLPLMR", "LPLLLMLR")
}

#: A tray of another size repeats the row of 16.
_ROW = ROLES[16]

#: How many ports a hub of the shipped towers has; a slot's port path is layer, hub, port.
PORTS_OF_A_HUB = 4

#: What a TPU that no tray has a slot for belongs to; in the layout `one_tray`, all of them.
ONE_TRAY, UNPLACED = "tray-1", "unplaced"


class Place(NamedTuple):
    """A slot, counted from 1, of a tray."""

    tray: str
    slot: int


@dataclass(frozen=True)
class TrayPlan:
    """A tray as configured. `slots` are ports (`usb-*-1.2`: on any bus); none: whatever comes."""

    name: str
    slots: tuple[str, ...] = ()
    identity: str = ""
    persona: str = ""


class Layout:
    """The trays of a tower, and which port is which slot. The last one takes what has no slot."""

    def __init__(self, trays: Iterable[TrayPlan]) -> None:
        self.trays = {tray.name: tray for tray in trays}
        self.rest = next((tray.name for tray in self.trays.values() if not tray.slots), UNPLACED)
        self.trays.setdefault(self.rest, TrayPlan(self.rest))
        self._places: dict[str, Place] = {}
        for tray in self.trays.values():
            for slot, port in enumerate(tray.slots, 1):
                self._places.setdefault(port, Place(tray.name, slot))

    @classmethod
    def of(cls, devices: Devices) -> Layout:
        """The layout that the settings say."""
        if devices.trays:
            plans = [
                TrayPlan(tray.name, tuple(tray.slots), tray.identity, tray.persona) for tray in devices.trays
            ]
        elif devices.layout is LayoutName.ONE_TRAY:
            plans = [TrayPlan(ONE_TRAY)]
        else:
            layers, slots = map(int, devices.layout.split("x"))
            plans = [TrayPlan(f"tray-{layer}", shipped_ports(layer, slots)) for layer in range(1, layers + 1)]
        return cls(
            plan
            if plan.identity or not devices.identity
            else TrayPlan(
                plan.name, plan.slots, devices.identity.replace("{tray}", str(number)), plan.persona
            )
            for number, plan in enumerate(plans, 1)
        )

    def place(self, tpu_id: str) -> Place | None:
        """The slot of a TPU, None when it has none of its own."""
        if found := self._places.get(tpu_id):
            return found
        bus, _, port = tpu_id.removeprefix("usb-").partition("-")
        return self._places.get(f"usb-*-{port}") if bus.isdigit() and tpu_id.startswith("usb-") else None

    def role(self, place: Place) -> TpuRole:
        """What the TPU in a slot is for."""
        row = ROLES.get(len(self.trays[place.tray].slots), _ROW)
        return row[(place.slot - 1) % len(row)]


def shipped_ports(layer: int, slots: int) -> tuple[str, ...]:
    """The ports of a layer of the shipped towers: each layer is a port of the host, with hubs of four behind it."""
    return tuple(
        f"usb-*-{layer}.{slot // PORTS_OF_A_HUB + 1}.{slot % PORTS_OF_A_HUB + 1}" for slot in range(slots)
    )


class Member(NamedTuple):
    """A TPU of a tray; `works`: it could be given work."""

    id: str
    role: TpuRole
    works: bool


def stand_ins(members: Sequence[Member]) -> dict[str, TpuRole]:
    """Who of a tray's reserve takes over which role: that of which the smallest part works, again and again, in the order of the
    members. With every TPU that works again, its role is given back."""
    homes = {role: [each for each in members if each.role is role] for role in TpuRole}
    working = {role: sum(each.works for each in homes[role]) for role in TpuRole}
    found: dict[str, TpuRole] = {}
    for spare in homes[RESERVE]:
        short = [role for role in (LANGUAGE, PERCEPTION, MEMORY) if working[role] < len(homes[role])]
        if not spare.works or not short:
            continue
        role = min(short, key=lambda role: working[role] / len(homes[role]))
        found[spare.id] = role
        working[role] += 1
    return found
