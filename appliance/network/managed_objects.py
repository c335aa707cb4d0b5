"""What NetworkManager's objects say (GetManagedObjects, GetSettings), in our words. Pure, but for what the kernel adds.

A profile is ours when its `user` setting says which role it has and which uuid: a copy that somebody makes of it has another
uuid, and is theirs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any

from .activation import ACTIVATED, ACTIVATING
from .connection_settings import decode, section_of, text_of
from .errors import BadSettings
from .kernel import mtu_limits
from .profiles import Device, Found

log = logging.getLogger(__name__)

NAME = "org.freedesktop.NetworkManager"
ROOT = "/org/freedesktop/NetworkManager"
SETTINGS = f"{ROOT}/Settings"
OBJECTS = "/org/freedesktop"

DEVICE = f"{NAME}.Device"
ACTIVE = f"{NAME}.Connection.Active"
CONNECTION = f"{NAME}.Settings.Connection"
ACCESS_POINT = f"{NAME}.AccessPoint"

#: Of a profile's `user.data`.
ROLE_KEY = "org.coral-reef.role"
UUID_KEY = "org.coral-reef.uuid"

#: NMDeviceType, those that a tower may have.
KINDS = {
    1: "ethernet",
    2: "wifi",
    10: "bond",
    11: "vlan",
    13: "bridge",
    20: "veth",
    22: "dummy",
    32: "loopback",
}

_UNSAVED = 0x1  # NMSettingsConnectionFlags
_CARRIER = 0x10000  # NMDeviceInterfaceFlags

#: By path and interface, plain.
Objects = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Running:
    """An ActiveConnection: `device` is the interface's name, empty before it is made."""

    path: str
    uuid: str
    state: int
    device: str


def interfaces_in(objects: Objects) -> Iterator[tuple[str, str]]:
    """The path and the name of each device that is there."""
    for path, values in objects.items():
        if (device := values.get(DEVICE)) is not None and device.get("Real", True):
            yield path, str(device.get("Interface", ""))


def running_in(objects: Objects) -> Iterator[Running]:
    names = dict(interfaces_in(objects))
    for path, values in objects.items():
        if (active := values.get(ACTIVE)) is None:
            continue
        devices = [names[each] for each in active.get("Devices", []) if each in names]
        yield Running(
            path, str(active.get("Uuid", "")), int(active.get("State", 0)), devices[0] if devices else ""
        )


def found_in(raw: Any, properties: Mapping[str, Any], active: Mapping[str, Running]) -> Found | None:
    """A profile. One whose settings cannot be read is there all the same, with none; without a uuid it is not spoken of."""
    try:
        connection = section_of(raw, "connection") or {}
        uuid, name = text_of(connection.get("uuid")), text_of(connection.get("id", ""))
    except (BadSettings, ValueError) as error:
        log.warning("a profile of NetworkManager's cannot be read: %s", error)
        return None
    try:
        settings = decode(raw)
    except BadSettings as error:
        log.warning("profile %s: %s", name, error)
        settings = {}
    running = active.get(uuid)
    if running is not None and running.state not in (ACTIVATING, ACTIVATED):
        running = None
    return Found(
        uuid=uuid,
        role=_role(raw, uuid),
        name=name,
        settings=settings,
        saved=not int(properties.get("Flags", 0)) & _UNSAVED,
        device=running.device if running else "",
        activated=running is not None and running.state == ACTIVATED,
    )


def _role(raw: Mapping[str, Any], uuid: str) -> str:
    """Empty when it is not ours, or a copy of ours."""
    try:
        data = (section_of(raw, "user") or {}).get("data", {})
        role, own = text_of(data.get(ROLE_KEY, "")), text_of(data.get(UUID_KEY, ""))
    except (BadSettings, ValueError, AttributeError):
        return ""
    return role if own == uuid else ""


def devices_in(objects: Objects) -> Iterator[Device]:
    limits = mtu_limits()
    uuids = {each.path: each.uuid for each in running_in(objects)}
    for path, name in interfaces_in(objects):
        values = objects[path]
        device = values[DEVICE]
        wired = values.get(f"{DEVICE}.Wired", {})
        wireless = values.get(f"{DEVICE}.Wireless", {})
        ip4 = objects.get(str(device.get("Ip4Config")), {}).get(f"{NAME}.IP4Config", {})
        ip6 = objects.get(str(device.get("Ip6Config")), {}).get(f"{NAME}.IP6Config", {})
        permanent = wired.get("PermHwAddress") or wireless.get("PermHwAddress")
        state = int(device.get("State", 0))
        yield Device(
            name=name,
            kind=KINDS.get(int(device.get("DeviceType", 0)), "other"),
            mac=str(permanent or device.get("HwAddress", "")).lower(),
            driver=str(device.get("Driver", "")),
            path=str(device.get("Path", "")),
            speed_mbps=int(wired.get("Speed", 0)) or int(wireless.get("Bitrate", 0)) // 1000,
            carrier=has_carrier(device),
            managed=bool(device.get("Managed", True)),
            mtu=int(device.get("Mtu", 0)),
            mtu_limit=limits.get(name, 0),
            state=state,
            addresses=(*_addresses(ip4), *_addresses(ip6)),
            gateways=tuple(str(each["Gateway"]) for each in (ip4, ip6) if each.get("Gateway")),
            name_servers=(*_name_servers(ip4), *_name_servers(ip6)),
            profile=uuids.get(str(device.get("ActiveConnection")), ""),
        )


def has_carrier(device: Mapping[str, Any]) -> bool:
    return bool(int(device.get("InterfaceFlags", 0)) & _CARRIER)


def _addresses(configuration: Mapping[str, Any]) -> list[str]:
    return [f"{each['address']}/{each['prefix']}" for each in configuration.get("AddressData", [])]


def _name_servers(configuration: Mapping[str, Any]) -> list[str]:
    """IPv4's are said in words; of IPv6's there are only the bytes."""
    if "NameserverData" in configuration:
        return [str(each["address"]) for each in configuration["NameserverData"]]
    return [str(IPv6Address(bytes(each))) for each in configuration.get("Nameservers", []) if len(each) == 16]


def seen_networks(objects: Objects, device: str) -> dict[bytes, int]:
    """The Wi-Fi networks that this device sees: name -> what they speak (NM80211ApSecurityFlags)."""
    seen: dict[bytes, int] = {}
    for path in objects.get(device, {}).get(f"{DEVICE}.Wireless", {}).get("AccessPoints", []):
        point = objects.get(path, {}).get(ACCESS_POINT, {})
        name = bytes(point.get("Ssid", b""))
        seen[name] = seen.get(name, 0) | int(point.get("RsnFlags", 0))
    return seen
