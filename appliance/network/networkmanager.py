"""NetworkManager, over D-Bus: what there is, and each thing that can be asked of it. Decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from appliance.system_bus import Bus, BusError, Match, Signal, Typed, plain

from .activation import (
    ACTIVATED,
    ACTIVATING,
    DEACTIVATED,
    DEACTIVATING,
    DEVICE_DEACTIVATING,
    DEVICE_DISCONNECTED,
    DEVICE_PREPARE,
    IP_CONFIG,
    PROFILE_DELETED,
    SECONDARIES,
    Ended,
    failure,
)
from .connection_settings import LEGACY, Encoded, decode, encode, text_of
from .errors import (
    ActivationFailed,
    Failure,
    NetworkManagerFailed,
    NetworkManagerMissing,
)
from .managed_objects import (
    ACTIVE,
    CONNECTION,
    DEVICE,
    NAME,
    OBJECTS,
    ROLE_KEY,
    ROOT,
    SETTINGS,
    UUID_KEY,
    Objects,
    devices_in,
    found_in,
    has_carrier,
    interfaces_in,
    running_in,
    seen_networks,
)
from .profiles import OWNED, SECRETS, Current, Profile

_CHECKPOINT = f"{NAME}.Checkpoint"

_ADD_IN_MEMORY, _ADD_BLOCK_AUTOCONNECT = 0x2, 0x20
_UPDATE_TO_DISK = 0x1
_TRACK_DNS = 0x20
_SAE = 0x400  # NM80211ApSecurityFlags, KEY_MGMT_SAE

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
        """Its devices (what they take at most is the kernel's word) and profiles; of the firewall it knows nothing."""
        objects = await self._objects()
        paths = [path for path, interfaces in objects.items() if CONNECTION in interfaces]
        answers = await asyncio.gather(*(self._settings_of(path) for path in paths))
        active = {each.uuid: each for each in running_in(objects)}
        profiles = []
        for path, raw in zip(paths, answers, strict=True):
            if raw is None:
                continue  # deleted meanwhile
            found = found_in(plain(raw), objects[path][CONNECTION], active)
            if found is None:
                continue
            if found.role and not SECRETS.keys().isdisjoint(raw):
                found = dataclasses.replace(found, secrets=await self._own_secrets(path, raw))
            profiles.append(found)
        return Current(tuple(profiles), tuple(devices_in(objects)))

    async def _own_secrets(self, path: str, sections: Iterable[str]) -> dict[str, dict[str, str]]:
        """Those that we may have given it."""
        found = {}
        for section in SECRETS.keys() & sections:
            told = plain(await self._secrets_of(path, section))
            found[section] = {key: str(told[key]) for key in SECRETS[section] if key in told}
        return found

    async def _objects(self) -> Objects:
        (found,) = await self._call(OBJECTS, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
        return dict(plain(found))

    async def _settings_of(self, path: str) -> dict[str, dict[str, Typed]] | None:
        try:
            (raw,) = await self._call(path, CONNECTION, "GetSettings")
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
        try:
            (secrets,) = await self._call(path, CONNECTION, "GetSecrets", "s", [section])
        except NetworkManagerFailed as error:
            # It has none, and nobody is there to be asked for it; or it is gone.
            if error.name.endswith(".NoSecrets") or error.name in _NO_SUCH:
                return {}
            raise
        return dict(secrets.get(section, {}))

    async def save(self, uuid: str) -> None:
        """Writes it to the disk as it is."""
        path = await self._existing(uuid)
        await self._call(path, CONNECTION, "Update2", "a{sa{sv}}ua{sv}", [{}, _UPDATE_TO_DISK, {}])

    async def delete(self, uuid: str) -> bool:
        """Deletes it wherever it is, and takes down what runs with it. False: there is none."""
        path = await self._path_of(uuid)
        if not path:
            return False
        try:
            await self._call(path, CONNECTION, "Delete")
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
        device = next((each for each, name in interfaces_in(objects) if name == interface), "")
        activation = Activation(uuid, interface, device, seen_networks(objects, device))
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
            elif not has_carrier(objects[device][DEVICE]):
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
                raise await self._why(activation)
            await activation.happened.wait()

    async def _why(self, activation: Activation) -> ActivationFailed:
        path = await self._path_of(activation.uuid)
        raw = await self._settings_of(path) if path else None
        if raw is None:
            return failure(activation.uuid, activation.interface, Ended(PROFILE_DELETED))
        settings = plain(raw)
        sees_sae = await self._has_sae(activation, settings)
        ended = Ended(activation.device_reason, activation.connection_reason, sees_sae)
        return failure(settings["connection"]["id"], activation.interface, ended)

    async def _state_of(self, path: str) -> int:
        """NMActiveConnectionState; 0 when it is gone."""
        try:
            return int(await self._bus.get(NAME, path, ACTIVE, "State"))
        except BusError as error:
            if error.name in _NO_SUCH:
                return 0
            raise _failed("State", error) from error

    async def _has_sae(self, activation: Activation, settings: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether its network is there and speaks WPA3."""
        ssid = settings.get("802-11-wireless", {}).get("ssid", b"")
        if not ssid:
            return False
        seen = {**activation.seen, **seen_networks(await self._objects(), activation.device)}
        return bool(seen.get(bytes(ssid), 0) & _SAE)

    async def _too_slow(self, activation: Activation, within_s: float) -> ActivationFailed:
        objects = await self._objects()
        paths = objects.get(activation.path, {}).get(ACTIVE, {}).get("Devices", [])
        devices = [objects.get(path, {}).get(DEVICE, {}) for path in paths]
        if devices and not any(map(has_carrier, devices)):
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
        running = next((each for each in running_in(objects) if each.uuid == uuid), None)
        if running is None or running.state not in (ACTIVATING, ACTIVATED):
            return False
        if running.state == ACTIVATED:
            return True
        device = next((each for each, name in interfaces_in(objects) if name == running.device), "")
        activation = Activation(uuid, running.device, device, {})
        await activation.listen(self._bus)
        activation.path = running.path
        await self.follow(activation, within_s=within_s)
        return True

    async def deactivate(self, uuid: str, *, within_s: float = DEACTIVATION_S) -> bool:
        """Returns when it is not active any more; False when it was not. Its device then stays without."""
        running = next((each for each in running_in(await self._objects()) if each.uuid == uuid), None)
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
        paths = [path for path, name in interfaces_in(objects) if name in interfaces]
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
        names = dict(interfaces_in(objects))
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
                Match(sender=NAME, interface=DEVICE, member="StateChanged"),
                Match(sender=NAME, interface=ACTIVE, member="StateChanged"),
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
        if signal.interface == DEVICE and signal.path == self.device:
            new, _, reason = signal.body
            if new == DEVICE_PREPARE:
                self.device_reason = 0  # what was before ended so, not this
            elif new >= DEVICE_DEACTIVATING or (new <= DEVICE_DISCONNECTED and not self.device_reason):
                self.device_reason = reason
        elif signal.interface == ACTIVE and signal.path == self.path:
            state, self.connection_reason = signal.body
            self._ended = state == DEACTIVATED
        self.happened.set()


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
