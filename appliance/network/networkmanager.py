"""NetworkManager, over D-Bus: what there is, and each thing that can be asked of it. Decides nothing.

A profile is ours when its `user` setting says which role it has and which uuid: a copy that somebody makes of it has another
uuid, and is theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any

from appliance.system_bus import Bus, BusError, Match, Signal, Typed, plain

from .activation import (
    ACTIVATED,
    ACTIVATING,
    DEACTIVATED,
    DEACTIVATING,
    DEVICE_DISCONNECTED,
    DEVICE_FAILED,
    DEVICE_PREPARE,
    IP_CONFIG,
    SECONDARIES,
    Ended,
    failure,
)
from .connection_settings import LEGACY, Encoded, decode, encode, section_of, text_of
from .errors import (
    ActivationFailed,
    BadSettings,
    Failure,
    NetworkManagerFailed,
    NetworkManagerMissing,
)
from .profiles import OWNED, SECRETS, Current, Device, Found, Profile

log = logging.getLogger(__name__)

NAME = "org.freedesktop.NetworkManager"
ROOT = "/org/freedesktop/NetworkManager"
SETTINGS = f"{ROOT}/Settings"
OBJECTS = "/org/freedesktop"

_DEVICE = f"{NAME}.Device"
_ACTIVE = f"{NAME}.Connection.Active"
_CONNECTION = f"{NAME}.Settings.Connection"
_CHECKPOINT = f"{NAME}.Checkpoint"
_ACCESS_POINT = f"{NAME}.AccessPoint"

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

_ADD_IN_MEMORY, _ADD_BLOCK_AUTOCONNECT = 0x2, 0x20
_UPDATE_TO_DISK = 0x1
_UNSAVED = 0x1
_CARRIER = 0x10000  # NMDeviceInterfaceFlags
_TRACK_DNS = 0x20
_SAE = 0x400  # NM80211ApSecurityFlags, KEY_MGMT_SAE

#: A profile's sections that stay whatever its type.
_COMMON_SECTIONS = frozenset({"connection", "ipv4", "ipv6", "user"})

#: DHCP alone may take 45 s, an unwilling WPA3 network 26.
ACTIVATION_S = 75.0
DEACTIVATION_S = 20.0

#: Its start takes a second or two, without those who wait for DHCP.
SETTLE_S = 5.0

_NOBODY = frozenset(
    f"org.freedesktop.DBus.Error.{name}"
    for name in ("ServiceUnknown", "NameHasNoOwner", "NoReply", "Disconnected")
)
_NO_SUCH = frozenset(
    {
        "org.freedesktop.DBus.Error.UnknownMethod",
        "org.freedesktop.DBus.Error.UnknownObject",
        f"{NAME}.ConnectionNotActive",
        f"{NAME}.InvalidArguments",
        f"{NAME}.UnknownConnection",
        f"{NAME}.Settings.InvalidConnection",
    }
)

Objects = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Checkpoint:
    """`created_ms`: milliseconds since the machine's start (CLOCK_BOOTTIME). `interfaces`: those that it is about."""

    path: str
    created_ms: int
    interfaces: frozenset[str]


class NetworkManager:
    """Methods raise NetworkManagerMissing when nobody answers to the name, NetworkManagerFailed when it says no or nothing."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    # --- what there is ------------------------------------------------------------------------------------------------

    async def running(self) -> bool:
        """Whether it answers. It may still be busy with its start: see `settled`."""
        try:
            return bool(await self._bus.owner(NAME) and await self.version())
        except (BusError, NetworkManagerFailed):
            return False

    async def settled(self, *, within_s: float = SETTLE_S) -> bool:
        """Returns when it has looked at every device and done what it does at its start, but no later than `within_s`: then
        False. It takes nobody's answer to DHCP for a part of its start."""
        changed = asyncio.Event()
        match = Match(sender=NAME, path=ROOT, member="PropertiesChanged")
        with contextlib.suppress(TimeoutError, BusError):
            async with asyncio.timeout(within_s), self._bus.listening(match, lambda _: changed.set()):
                while await self._bus.get(NAME, ROOT, NAME, "Startup"):
                    await changed.wait()
                    changed.clear()
                return True
        return False

    async def version(self) -> str:
        try:
            return str(await self._bus.get(NAME, ROOT, NAME, "Version"))
        except BusError as error:
            raise _failed("Version", error) from error

    async def current(self) -> Current:
        """Its devices and profiles; of the firewall it knows nothing."""
        objects = await self._objects()
        paths = [path for path, interfaces in objects.items() if _CONNECTION in interfaces]
        answers = await asyncio.gather(*(self._settings_of(path) for path in paths))
        active = {each.uuid: each for each in _active(objects)}
        profiles = []
        for path, raw in zip(paths, answers, strict=True):
            if raw is None:
                continue  # deleted meanwhile
            found = _found(plain(raw), objects[path][_CONNECTION], active)
            if found is not None:
                profiles.append(found)
        return Current(tuple(profiles), tuple(_devices(objects)))

    async def _objects(self) -> Objects:
        (found,) = await self._call(OBJECTS, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
        return dict(plain(found))

    async def _settings_of(self, path: str) -> dict[str, dict[str, Typed]] | None:
        try:
            (raw,) = await self._call(path, _CONNECTION, "GetSettings")
        except NetworkManagerFailed as error:
            if error.name in _NO_SUCH:
                return None
            raise
        return dict(raw)

    # --- profiles -----------------------------------------------------------------------------------------------------

    async def add(self, profile: Profile, uuid: str, old: str = "", *, by_itself: bool = False) -> None:
        """Makes a profile of ours, in memory alone, that becomes active when it is told to; `by_itself`: or when its device can.
        What is not ours in `old`, and the secrets that `profile` does not bring, are taken over from it. BadSettings."""
        settings = encode(profile.settings)
        settings.setdefault(profile.kind, {})
        if old:
            await self._take_over(settings, profile, old)
        for section, values in profile.secrets.items():
            entries = settings.setdefault(section, {})
            entries |= {key: Typed("s", text_of(value)) for key, value in values.items()}
        user = dict(settings.get("user", {}).get("data", Typed("a{ss}", {})).value)
        settings["user"] = {"data": Typed("a{ss}", {**user, ROLE_KEY: profile.role, UUID_KEY: uuid})}
        settings["connection"]["uuid"] = Typed("s", uuid)
        # Else another uuid would mean other IPv6 addresses.
        settings["connection"].setdefault("stable-id", Typed("s", f"coral-reef-{profile.role}"))
        flags = _ADD_IN_MEMORY | (0 if by_itself else _ADD_BLOCK_AUTOCONNECT)
        await self._call(
            SETTINGS, f"{NAME}.Settings", "AddConnection2", "a{sa{sv}}ua{sv}", [settings, flags, {}]
        )

    async def _take_over(self, settings: Encoded, profile: Profile, old: str) -> None:
        path = await self._path_of(old)
        raw = await self._settings_of(path) if path else None
        if raw is None:
            return
        wireless = profile.kind == "802-11-wireless"
        before = plain(raw)
        same_network = decode(before).get("802-11-wireless", {}).get("ssid") == profile.settings.get(
            "802-11-wireless", {}
        ).get("ssid")
        for section, values in raw.items():
            if section in OWNED and section not in settings and (section != "802-3-ethernet" or wireless):
                continue  # it would make something else of the profile
            if section in SECRETS and not same_network:
                continue
            entries = settings.setdefault(section, {})
            for key, value in values.items():
                if not _ours(section, key):
                    entries.setdefault(key, value)
            if section in SECRETS:
                for key, value in (await self._secrets_of(path, section)).items():
                    entries.setdefault(key, value)

    async def _secrets_of(self, path: str, section: str) -> dict[str, Typed]:
        (secrets,) = await self._call(path, _CONNECTION, "GetSecrets", "s", [section])
        return dict(secrets.get(section, {}))

    async def save(self, uuid: str) -> None:
        """Writes it to the disk as it is."""
        path = await self._existing(uuid)
        await self._call(path, _CONNECTION, "Update2", "a{sa{sv}}ua{sv}", [{}, _UPDATE_TO_DISK, {}])

    async def delete(self, uuid: str) -> bool:
        """Deletes it wherever it is, and takes down what runs with it. False: there is none."""
        path = await self._path_of(uuid)
        if not path:
            return False
        try:
            await self._call(path, _CONNECTION, "Delete")
        except NetworkManagerFailed as error:
            if error.name not in _NO_SUCH:
                raise
        return True

    async def _existing(self, uuid: str) -> str:
        if path := await self._path_of(uuid):
            return path
        raise NetworkManagerFailed(f"NetworkManager has no profile {uuid}", f"{NAME}.UnknownConnection")

    async def _path_of(self, uuid: str) -> str:
        try:
            (path,) = await self._call(SETTINGS, f"{NAME}.Settings", "GetConnectionByUuid", "s", [uuid])
        except NetworkManagerFailed as error:
            if error.name in _NO_SUCH:
                return ""
            raise
        return str(path)

    # --- activation ---------------------------------------------------------------------------------------------------

    async def activate(self, uuid: str, interface: str, *, within_s: float = ACTIVATION_S) -> None:
        """Activates a profile and returns when it is. ActivationFailed, also when it takes longer."""
        await self.follow(await self.begin(uuid, interface), within_s=within_s)

    async def begin(self, uuid: str, interface: str) -> Activation:
        """Begins to activate it. The caller must `follow` what this returns. ActivationFailed."""
        path = await self._existing(uuid)
        objects = await self._objects()
        device = next((each for each, name in _interfaces(objects) if name == interface), "")
        activation = Activation(uuid, interface, device, _seen_networks(objects, device))
        await activation.listen(self._bus)
        try:
            (activation.path,) = await self._call(
                ROOT, NAME, "ActivateConnection", "ooo", [path, device or "/", "/"]
            )
        except NetworkManagerMissing:
            await activation.close()
            raise
        except NetworkManagerFailed as error:
            await activation.close()
            kind = Failure.OTHER
            if not device:
                kind = Failure.NO_DEVICE
            elif not _has_carrier(objects[device][_DEVICE]):
                kind = Failure.NO_CARRIER
            raise ActivationFailed(f"{interface} cannot be activated: {error}", kind) from error
        except BaseException:
            await activation.close()
            raise
        return activation

    async def follow(self, activation: Activation, *, within_s: float = ACTIVATION_S) -> None:
        """Until it is active. ActivationFailed, also when it takes longer; it is then left as it is."""
        try:
            try:
                async with asyncio.timeout(within_s):
                    await self._until_active(activation)
            except TimeoutError:
                raise await self._too_slow(activation, within_s) from None
        finally:
            await activation.close()

    async def _until_active(self, activation: Activation) -> None:
        while True:
            activation.happened.clear()
            state = await self._state_of(activation.path)
            if state == ACTIVATED:
                return
            if state != ACTIVATING:
                raw = await self._settings_of(await self._path_of(activation.uuid) or "/")
                name = plain(raw or {}).get("connection", {}).get("id", activation.uuid)
                ended = Ended(
                    activation.device_reason,
                    activation.connection_reason,
                    await self._has_sae(activation, raw),
                )
                raise failure(name, activation.interface, ended)
            await activation.happened.wait()

    async def _state_of(self, path: str) -> int:
        """NMActiveConnectionState; 0 when it is gone."""
        try:
            return int(await self._bus.get(NAME, path, _ACTIVE, "State"))
        except BusError as error:
            if error.name in _NO_SUCH:
                return 0
            raise _failed("State", error) from error

    async def _has_sae(self, activation: Activation, raw: Any) -> bool:
        """Whether its network is there and speaks WPA3."""
        ssid = plain(raw or {}).get("802-11-wireless", {}).get("ssid", b"")
        if not ssid:
            return False
        seen = {**activation.seen, **_seen_networks(await self._objects(), activation.device)}
        return bool(seen.get(bytes(ssid), 0) & _SAE)

    async def _too_slow(self, activation: Activation, within_s: float) -> ActivationFailed:
        objects = await self._objects()
        paths = objects.get(activation.path, {}).get(_ACTIVE, {}).get("Devices", [])
        devices = [objects.get(path, {}).get(_DEVICE, {}) for path in paths]
        if devices and not any(map(_has_carrier, devices)):
            return ActivationFailed(
                f"{activation.interface} has no cable, or nothing at its other end", Failure.NO_CARRIER
            )
        states = [int(device.get("State", 0)) for device in devices]
        if any(IP_CONFIG <= state <= SECONDARIES for state in states):
            return ActivationFailed(
                f"{activation.interface} has no address after {within_s:g} s: nobody answers to DHCP",
                Failure.NO_ADDRESS,
            )
        return ActivationFailed(f"{activation.interface} was not active after {within_s:g} s", Failure.OTHER)

    async def follow_running(self, uuid: str, *, within_s: float = ACTIVATION_S) -> bool:
        """Follows what somebody else began with this profile; False when it is not active and not being activated."""
        objects = await self._objects()
        running = next((each for each in _active(objects) if each.uuid == uuid), None)
        if running is None or running.state not in (ACTIVATING, ACTIVATED):
            return False
        if running.state == ACTIVATED:
            return True
        device = next((each for each, name in _interfaces(objects) if name == running.device), "")
        activation = Activation(uuid, running.device, device, {})
        await activation.listen(self._bus)
        activation.path = running.path
        await self.follow(activation, within_s=within_s)
        return True

    async def deactivate(self, uuid: str, *, within_s: float = DEACTIVATION_S) -> bool:
        """Returns when it is not active any more; False when it was not. Its device then stays without."""
        running = next((each for each in _active(await self._objects()) if each.uuid == uuid), None)
        if running is None:
            return False
        gone = asyncio.Event()
        match = Match(sender=NAME, path=running.path)
        async with self._bus.listening(match, lambda _: gone.set()):
            try:
                await self._call(ROOT, NAME, "DeactivateConnection", "o", [running.path])
            except NetworkManagerFailed as error:
                if error.name not in _NO_SUCH:
                    raise
            try:
                async with asyncio.timeout(within_s):
                    while await self._state_of(running.path) in (ACTIVATING, ACTIVATED, DEACTIVATING):
                        await gone.wait()
                        gone.clear()
            except TimeoutError:
                raise NetworkManagerFailed(
                    f"{running.device or uuid} was still active after {within_s:g} s"
                ) from None
        return True

    # --- checkpoints --------------------------------------------------------------------------------------------------

    async def checkpoint(self, interfaces: Sequence[str], timeout_s: int) -> str:
        """Remembers how these devices are; unless it is destroyed, NetworkManager goes back to it after `timeout_s` (whatever has
        become of us). Returns its path; empty when none of the devices is there.

        Of these devices alone, and without DELETE_NEW_CONNECTIONS: what somebody else does meanwhile is not ours to undo.
        """
        objects = await self._objects()
        paths = [path for path, name in _interfaces(objects) if name in interfaces]
        if not paths:
            return ""
        arguments = [paths, timeout_s, _TRACK_DNS]
        try:
            (made,) = await self._call(ROOT, NAME, "CheckpointCreate", "aouu", arguments)
        except NetworkManagerFailed as error:
            if error.name != f"{NAME}.InvalidArguments" or await self._overlapping(paths, objects):
                raise
            # TRACK_DNS is younger than Debian 12's NetworkManager.
            (made,) = await self._call(ROOT, NAME, "CheckpointCreate", "aouu", [paths, timeout_s, 0])
        return str(made)

    async def _overlapping(self, paths: list[str], objects: Objects) -> bool:
        return any(
            not set(values[_CHECKPOINT].get("Devices", [])).isdisjoint(paths)
            for values in objects.values()
            if _CHECKPOINT in values
        )

    async def checkpoints(self) -> list[Checkpoint]:
        objects = await self._objects()
        names = dict(_interfaces(objects))
        return [
            Checkpoint(
                path,
                int(values[_CHECKPOINT].get("Created", 0)),
                frozenset(names.get(each, "") for each in values[_CHECKPOINT].get("Devices", [])),
            )
            for path, values in objects.items()
            if _CHECKPOINT in values
        ]

    async def extend(self, path: str, timeout_s: int) -> bool:
        """From now on, that long again. False when there is no such checkpoint any more."""
        return await self._at_checkpoint("CheckpointAdjustRollbackTimeout", "ou", [path, timeout_s])

    async def roll_back(self, path: str) -> bool:
        """Begins to go back; False when there is no such checkpoint any more."""
        return await self._at_checkpoint("CheckpointRollback", "o", [path])

    async def destroy(self, path: str) -> bool:
        """Forgets it; False when there is no such checkpoint any more: it may have gone back by itself."""
        return await self._at_checkpoint("CheckpointDestroy", "o", [path])

    async def _at_checkpoint(self, member: str, signature: str, arguments: list[Any]) -> bool:
        try:
            await self._call(ROOT, NAME, member, signature, arguments)
        except NetworkManagerFailed as error:
            if error.name in _NO_SUCH:
                return False
            raise
        return True

    async def _call(
        self, path: str, interface: str, member: str, signature: str = "", arguments: Sequence[Any] = ()
    ) -> list[Any]:
        try:
            return await self._bus.call(NAME, path, interface, member, signature, arguments)
        except BusError as error:
            raise _failed(member, error) from error


class Activation:
    """One that is under way, and what is heard of it meanwhile."""

    def __init__(self, uuid: str, interface: str, device: str, seen: Mapping[bytes, int]) -> None:
        self.uuid, self.interface, self.device, self.seen = uuid, interface, device, seen
        self.path = ""
        self.happened = asyncio.Event()
        self.device_reason = self.connection_reason = 0
        self._ended = False
        self._stack = AsyncExitStack()

    async def listen(self, bus: Bus) -> None:
        """Before anything happens: what is over when one begins to listen is never heard of."""
        try:
            for match in (
                Match(sender=NAME, interface=_DEVICE, member="StateChanged"),
                Match(sender=NAME, interface=_ACTIVE, member="StateChanged"),
            ):
                await self._stack.enter_async_context(bus.listening(match, self._heard))
            await self._stack.enter_async_context(bus.watching_owner(NAME, lambda _: self.happened.set()))
        except BusError as error:
            await self.close()
            raise _failed("AddMatch", error) from error

    async def close(self) -> None:
        await self._stack.aclose()

    def _heard(self, signal: Signal) -> None:
        """The state itself is asked for; the reasons are said only here. When it has ended, NetworkManager may begin again by
        itself: of that we want to know nothing."""
        if self._ended:
            return
        if signal.interface == _DEVICE and signal.path == self.device:
            new, _, reason = signal.body
            if new == DEVICE_PREPARE:
                self.device_reason = 0  # what was before ended so, not this
            elif new == DEVICE_FAILED or (new <= DEVICE_DISCONNECTED and not self.device_reason):
                self.device_reason = reason
        elif signal.interface == _ACTIVE and signal.path == self.path:
            state, self.connection_reason = signal.body
            self._ended = state == DEACTIVATED
        self.happened.set()


@dataclass(frozen=True)
class _Running:
    """An ActiveConnection: `device` is the interface's name, empty before it is made."""

    path: str
    uuid: str
    state: int
    device: str


def _failed(member: str, error: BusError) -> NetworkManagerFailed:
    if error.name in _NOBODY or "D-Bus" in str(error):
        return NetworkManagerMissing(f"NetworkManager is not there: {error}", error.name)
    if error.name.endswith((".AccessDenied", ".PermissionDenied")):
        return NetworkManagerFailed(
            f"NetworkManager does not let us do it ({member}: {error}): are the polkit rules installed?",
            error.name,
        )
    return NetworkManagerFailed(f"NetworkManager: {member}: {error}", error.name)


def _ours(section: str, key: str) -> bool:
    """Keys that are given anew, or that NetworkManager makes of others."""
    if section in ("ipv4", "ipv6"):
        return key in OWNED[section] or key in LEGACY or key == "dns-data"
    if section == "connection":
        return key in OWNED[section] or key in ("uuid", "timestamp")
    return key in OWNED.get(section, {})


def _interfaces(objects: Objects) -> Iterator[tuple[str, str]]:
    """The path and the name of each device that is there."""
    for path, values in objects.items():
        if (device := values.get(_DEVICE)) is not None and device.get("Real", True):
            yield path, str(device.get("Interface", ""))


def _active(objects: Objects) -> Iterator[_Running]:
    names = dict(_interfaces(objects))
    for path, values in objects.items():
        if (active := values.get(_ACTIVE)) is None:
            continue
        devices = [names[each] for each in active.get("Devices", []) if each in names]
        yield _Running(
            path, str(active.get("Uuid", "")), int(active.get("State", 0)), devices[0] if devices else ""
        )


def _found(raw: Any, properties: Mapping[str, Any], active: Mapping[str, _Running]) -> Found | None:
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


def _devices(objects: Objects) -> Iterator[Device]:
    uuids = {each.path: each.uuid for each in _active(objects)}
    for path, name in _interfaces(objects):
        values = objects[path]
        device = values[_DEVICE]
        wired = values.get(f"{_DEVICE}.Wired", {})
        wireless = values.get(f"{_DEVICE}.Wireless", {})
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
            carrier=_has_carrier(device),
            managed=bool(device.get("Managed", True)),
            mtu=int(device.get("Mtu", 0)),
            state=state,
            addresses=(*_addresses(ip4), *_addresses(ip6)),
            gateways=tuple(str(each["Gateway"]) for each in (ip4, ip6) if each.get("Gateway")),
            name_servers=(*_name_servers(ip4), *_name_servers(ip6)),
            profile=uuids.get(str(device.get("ActiveConnection")), ""),
        )


def _has_carrier(device: Mapping[str, Any]) -> bool:
    return bool(int(device.get("InterfaceFlags", 0)) & _CARRIER)


def _addresses(configuration: Mapping[str, Any]) -> list[str]:
    return [f"{each['address']}/{each['prefix']}" for each in configuration.get("AddressData", [])]


def _name_servers(configuration: Mapping[str, Any]) -> list[str]:
    """IPv4's are said in words; of IPv6's there are only the bytes."""
    if "NameserverData" in configuration:
        return [str(each["address"]) for each in configuration["NameserverData"]]
    return [str(IPv6Address(bytes(each))) for each in configuration.get("Nameservers", []) if len(each) == 16]


def _seen_networks(objects: Objects, device: str) -> dict[bytes, int]:
    """The Wi-Fi networks that this device sees: name -> what they speak (NM80211ApSecurityFlags)."""
    seen: dict[bytes, int] = {}
    for path in objects.get(device, {}).get(f"{_DEVICE}.Wireless", {}).get("AccessPoints", []):
        point = objects.get(path, {}).get(_ACCESS_POINT, {})
        name = bytes(point.get("Ssid", b""))
        seen[name] = seen.get(name, 0) | int(point.get("RsnFlags", 0))
    return seen
