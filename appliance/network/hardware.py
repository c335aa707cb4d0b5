"""Which network device is which port of the rear panel: by what the owner says, else by a guess."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from appliance.config.network import Match, Port, Role

from .direct_mode import INTERFACE
from .profiles import Device

#: What can be a port of a kind without being named. Others (veth, dummy, a bridge) only by `match.interface`.
_KINDS = {"ethernet": "ethernet", "wifi": "wifi"}

#: The rear panel from left to right, which is the order of its PCI addresses.
PANEL = (Role.PRIMARY, Role.SECONDARY, Role.MANAGEMENT, Role.CLUSTER, Role.WIFI)


@dataclass(frozen=True)
class Binding:
    """`devices`: by role, those that were found. `missing`: why a role has none. `guessed`: why nobody can be sure of one."""

    devices: Mapping[Role, Device]
    missing: Mapping[Role, str]
    guessed: Mapping[Role, str]


def bind(
    ports: Mapping[Role, Port], devices: Sequence[Device], remembered: Mapping[Role, str] | None = None
) -> Binding:
    """Gives each port its device. What is matched goes first, then what it had before (`remembered`: permanent MAC addresses); of
    the rest, the only one that fits, else in the panel's order.

    The USB port is the gadget's and is not looked for.
    """
    bound: dict[Role, Device] = {}
    missing: dict[Role, str] = {}
    guessed: dict[Role, str] = {}
    free = [each for each in sorted(devices, key=_place) if each.name != INTERFACE]
    wanted = {role: ports[role] for role in PANEL if role in ports and ports[role].type != "usb"}

    matched = {role: port for role, port in wanted.items() if port.match is not None}
    while alone := next((each for each in matched.items() if len(_fitting(each[1], free)) == 1), None):
        role, port = alone
        del matched[role]
        (bound[role],) = _fitting(port, free)
        free.remove(bound[role])
    for role, port in matched.items():
        names = ", ".join(each.name for each in _fitting(port, free))
        missing[role] = (
            f"several devices fit interfaces.{role}.match: {names}"
            if names
            else f"no device fits interfaces.{role}.match"
        )

    for role, port in wanted.items():
        before = (remembered or {}).get(role)
        known = [each for each in free if each.mac == before and each.kind == _KINDS[port.type]]
        if port.match is None and before and len(known) == 1:
            bound[role] = known[0]
            free.remove(known[0])

    for kind in _KINDS:
        open_roles = [
            role
            for role, port in wanted.items()
            if port.match is None and role not in bound and port.type == kind
        ]
        left = [each for each in free if each.kind == _KINDS[kind]]
        for role in sorted(open_roles, key=lambda role: wanted[role].speed is None):
            if not left:
                missing[role] = f"there is no {kind} device for it"
                continue
            chosen, sure = _choose(wanted[role], left, alone=len(open_roles) == 1)
            bound[role] = chosen
            left.remove(chosen)
            if not sure:
                guessed[role] = (
                    f"{chosen.name} was taken for it; if that is the wrong one, say which: "
                    f"interfaces.{role}.match.mac (of {chosen.name}: {chosen.mac or 'unknown'})"
                )
    return Binding(bound, missing, guessed)


def _fitting(port: Port, devices: Sequence[Device]) -> list[Device]:
    """Those that `match` means. A VLAN or a bond has the MAC address of what it stands on: such are only meant by their names."""
    assert port.match is not None
    named = port.match.interface is not None
    return [each for each in devices if (named or each.kind == _KINDS[port.type]) and fits(port.match, each)]


def _choose(port: Port, left: Sequence[Device], *, alone: bool) -> tuple[Device, bool]:
    """The device, and whether it must be it."""
    if len(left) == 1 and alone:
        return left[0], True
    if port.speed_mbps is not None:
        fast = [each for each in left if each.speed_mbps == port.speed_mbps]
        if len(fast) == 1:
            return fast[0], True
    return left[0], False


def fits(match: Match, device: Device) -> bool:
    """Whether a device is what all that is given says."""
    return (
        (match.mac is None or match.mac.lower() == device.mac.lower())
        and (match.path is None or fnmatch.fnmatchcase(device.path, match.path))
        and (match.driver is None or match.driver == device.driver)
        and (match.interface is None or match.interface == device.name)
    )


def _place(device: Device) -> tuple[str, str]:
    return device.path, device.name
