"""Carries out a plan, all of it or nothing.

Whatever it does can be undone until it commits, and what it is about to do is on the disk before: see `record`. NetworkManager
holds a checkpoint of the devices meanwhile, for the case that nobody is there any more to go back; what it restores is looked at
and mended.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Protocol

import msgspec

from . import record as records
from .errors import (
    ActivationFailed,
    ApplyFailed,
    Failure,
    NetworkError,
    NetworkManagerFailed,
    NetworkManagerMissing,
    Unfinished,
)
from .kernel import addresses_of, mtu_of
from .networkmanager import ACTIVATION_S, Activation, NetworkManager
from .plan import Activate, Filter, Make, Remove, Step, differences
from .profiles import Current, Device, Found, Profile, Settings
from .record import Made, Record

log = logging.getLogger(__name__)

#: How long one looks for an address that nobody insists on; NetworkManager goes on looking.
ADDRESS_S = 20.0

#: Addresses appear on the device a moment after NetworkManager says so.
VERIFY_S = 10.0

#: Who was killed is back by then: systemd starts NetworkManager anew at once.
RETURN_S = 30.0

#: How often one begins again because it goes away once more.
ATTEMPTS = 3

#: The checkpoint goes back by itself so long after we should have.
SLACK_S = 30


class Firewall(Protocol):
    """Our own rules, and nobody else's. NetworkError when they cannot be changed or read."""

    async def load(self, rules: str) -> None: ...

    async def remove(self) -> None: ...

    async def current(self) -> str: ...


class Observer(Protocol):
    """Hears of each step before it is taken."""

    def __call__(self, step: str) -> None: ...


@dataclass(frozen=True)
class Applied:
    """What was done. `later`: role -> why its profile is there and not active yet."""

    later: dict[str, str] = field(default_factory=dict)


class Transaction:
    """One change. `record` is the file that survives us; nothing else may be under way: see `recover`."""

    def __init__(
        self,
        manager: NetworkManager,
        firewall: Firewall,
        record: Path,
        steps: Sequence[Step],
        *,
        strict: bool = False,
        confirm_s: float = 0.0,
        digest: str = "",
        observer: Observer = lambda step: log.info("network: %s", step),
    ) -> None:
        """`strict`: a port with a cable that gets no address by DHCP is a failure. `confirm_s`: how long it waits for `confirm`
        before it goes back; 0: it waits for nobody. `digest` tells the candidate."""
        self._manager, self._firewall, self._path = manager, firewall, record
        self._steps, self._strict, self._confirm_s, self._digest = tuple(steps), strict, confirm_s, digest
        self._observe = observer
        self._answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._step = ""
        self._checkpoint = ""
        self._later: dict[str, str] = {}
        self._made: list[tuple[Make, str]] = []
        #: Bonds, which are active when their ports are.
        self._begun: list[tuple[str, bool, Activation]] = []
        self.waiting = asyncio.Event()

    def confirm(self) -> None:
        """All is well. Without effect when it is not waiting any more."""
        if not self._answer.done():
            self._answer.set_result(True)

    def cancel(self) -> None:
        """Go back now."""
        if not self._answer.done():
            self._answer.set_result(False)

    async def run(self) -> Applied:
        """ApplyFailed when it could not be done and everything is as before; Unfinished when that is not so yet, or when what is
        left of the old could not be taken away: `recover` finishes it."""
        if not self._steps:
            return Applied()
        if self._path.exists():
            raise Unfinished("another change of the network has not ended: it must be recovered first")
        try:
            before = await self._manager.current()
            record = self._recorded(before, await self._firewall.current())
        except NetworkError as error:
            raise ApplyFailed(f"nothing was changed: {error}") from error
        self._begin("write the record")
        try:
            records.write(self._path, record)
        except OSError as error:
            raise ApplyFailed(
                f"nothing was changed: {self._path} cannot be written: {error.strerror}"
            ) from error
        try:
            await self._try(record)
            record = self._decided(record)
        except BaseException as error:
            await self._fail(record, error)
            raise
        await self._finish(record)
        return Applied(self._later)

    # --- there --------------------------------------------------------------------------------------------------------

    def _recorded(self, before: Current, firewall: str) -> Record:
        made = []
        interfaces: dict[str, str] = {}
        for step in self._steps:
            match step:
                case Make(profile, old):
                    new = str(uuid.uuid4())
                    self._made.append((step, new))
                    made.append(Made(profile.role, profile.interface, new, old))
                    interfaces[profile.interface] = ""
                case Activate(_, _, interface):
                    interfaces[interface] = ""
                case Remove(gone):
                    interfaces |= {
                        each.device: "" for each in before.profiles if each.uuid == gone and each.device
                    }
        for device in before.devices:
            if device.name in interfaces:
                interfaces[device.name] = device.profile
        filters = [step for step in self._steps if isinstance(step, Filter)]
        return Record(
            phase="trying",
            boot_id=records.boot_id(),
            began_ms=time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000,
            deadline=time.time() + self._confirm_s if self._confirm_s else 0.0,
            digest=self._digest,
            made=tuple(made),
            removed=tuple(step.uuid for step in self._steps if isinstance(step, Remove)),
            before=interfaces,
            changes_firewall=bool(filters),
            old_firewall=firewall,
            new_firewall=filters[-1].rules if filters else "",
        )

    async def _try(self, record: Record) -> None:
        self._begin("remember how the devices are")
        self._checkpoint = await self._manager.checkpoint(tuple(record.before), int(ACTIVATION_S) + SLACK_S)
        new = {step.profile.role: each for step, each in self._made}
        for step in self._steps:
            match step:
                case Filter(rules):
                    await self._filter(rules)
                case Remove(gone, role):
                    self._begin(f"take down {role}")
                    await self._manager.deactivate(gone)
                case Make(profile):
                    await self._make(step, new[profile.role])
                case Activate(there, role, interface):
                    await self._follow_begun()
                    now = await self._manager.current()
                    settings = next(each.settings for each in now.profiles if each.uuid == there)
                    if why_not := self._why_not(interface, settings, now):
                        self._later[role] = why_not
                    else:
                        await self._activate(there, role, interface, settings)
        await self._follow_begun()
        await self._verify()
        if self._confirm_s:
            await self._wait_for_answer(record)
            await self._verify()
        for step, each in self._made:
            self._begin(f"save {step.profile.role}")
            await self._manager.save(each)
        self._begin("forget how the devices were")
        if self._checkpoint and not await self._manager.destroy(self._checkpoint):
            # It went back by itself, or NetworkManager was restarted: then all may still be well.
            await self._verify()

    async def _filter(self, rules: str) -> None:
        self._begin("replace the firewall" if rules else "take the firewall away")
        if rules:
            await self._firewall.load(rules)
        else:
            await self._firewall.remove()
        if (found := await self._firewall.current()) != rules:
            raise ApplyFailed(
                f"the firewall is not as it was loaded: {len(found)} characters instead of {len(rules)}"
            )

    async def _make(self, step: Make, new: str) -> None:
        profile, settings = step.profile, step.profile.settings
        if not settings["connection"].get("slave-type"):
            await self._follow_begun()
        now = await self._manager.current()
        why_not = self._why_not(profile.interface, settings, now)
        self._begin(f"make {profile.role}")
        await self._manager.add(profile, new, step.old, by_itself=bool(why_not))
        if why_not:
            self._later[profile.role] = why_not
            return
        old = next((each for each in now.profiles if each.uuid == step.old), None)
        if (
            profile.kind in ("vlan", "bond")
            and old is not None
            and old.device
            and old.settings.get(profile.kind) != settings[profile.kind]
        ):
            await self._manager.deactivate(old.uuid)  # such a device is made anew, not changed
        await self._activate(new, profile.role, profile.interface, settings)

    def _why_not(self, interface: str, settings: Settings, now: Current) -> str:
        """Why it cannot be activated now, which is nobody's fault; empty: it can. A bond needs one of its ports."""
        needed = [str(settings.get("vlan", {}).get("parent", "")) or interface]
        if settings["connection"].get("type") == "bond":
            profiles = [step.profile for step, _ in self._made]
            needed = [
                each.interface for each in profiles if each.settings["connection"].get("master") == interface
            ]
        reasons = []
        for name in needed:
            device = now.device(name)
            if device is None:
                reasons.append(f"there is no {name}")
            # A radio has no carrier before it is activated.
            elif not device.carrier and device.kind != "wifi":
                reasons.append(f"{name} has no cable, or nothing at its other end")
        return "; ".join(reasons) if len(reasons) == len(needed) else ""

    async def _activate(self, each: str, role: str, interface: str, settings: Settings) -> None:
        asks = _asks(settings)
        self._begin(f"activate {role}")
        within_s = self._patience_s(asks=asks)
        await self._extend(within_s)
        try:
            activation = await self._manager.begin(each, interface)
            if settings["connection"].get("type") == "bond":
                self._begun.append((role, asks, activation))
            else:
                await self._manager.follow(activation, within_s=within_s)
        except ActivationFailed as error:
            self._bear(error, role, asks=asks)

    async def _follow_begun(self) -> None:
        while self._begun:
            role, asks, activation = self._begun.pop(0)
            within_s = self._patience_s(asks=asks)
            await self._extend(within_s)
            try:
                await self._manager.follow(activation, within_s=within_s)
            except ActivationFailed as error:
                self._bear(error, role, asks=asks)

    def _patience_s(self, *, asks: bool) -> float:
        return ADDRESS_S if asks and not self._strict else ACTIVATION_S

    def _bear(self, error: ActivationFailed, role: str, *, asks: bool) -> None:
        """What is nobody's fault is told, not raised."""
        bearable = error.failure is Failure.NO_CARRIER or (
            error.failure is Failure.NO_ADDRESS and asks and not self._strict
        )
        if not bearable:
            raise error
        self._later[role] = str(error)

    async def _extend(self, within_s: float) -> None:
        if self._checkpoint:
            await self._manager.extend(self._checkpoint, int(within_s) + SLACK_S)

    async def _verify(self) -> None:
        """What the kernel and NetworkManager have is what is wanted. ApplyFailed."""
        self._begin("look whether it is so")
        deadline = asyncio.get_running_loop().time() + VERIFY_S
        while wrong := self._wrong(await self._manager.current()):
            if asyncio.get_running_loop().time() > deadline:
                raise ApplyFailed("; ".join(wrong))
            await asyncio.sleep(0.1)

    def _wrong(self, now: Current) -> list[str]:
        """What is not as it should be: where, what was expected, what was found."""
        found = {each.uuid: each for each in now.profiles}
        wrong = []
        for step, each in self._made:
            profile, there = step.profile, found.get(each)
            if there is None:
                wrong.append(f"{profile.role}: NetworkManager has lost its profile")
            elif there.settings != profile.settings:
                changes = ", ".join(differences(profile.settings, there.settings))
                wrong.append(f"{profile.role}: NetworkManager understood something else ({changes})")
            elif profile.role not in self._later:
                wrong += _wrong_on_device(profile, there, now.device(profile.interface))
        for activate in self._steps:
            if isinstance(activate, Activate) and activate.role not in self._later:
                device = now.device(activate.interface)
                if device is None or device.profile != activate.uuid:
                    wrong.append(f"{activate.role}: it is not active on {activate.interface}")
        return wrong

    async def _wait_for_answer(self, record: Record) -> None:
        self._begin("wait for a confirmation")
        await self._extend(self._confirm_s)
        records.write(self._path, msgspec.structs.replace(record, deadline=time.time() + self._confirm_s))
        self.waiting.set()
        try:
            async with asyncio.timeout(self._confirm_s):
                confirmed = await asyncio.shield(self._answer)
        except TimeoutError:
            raise ApplyFailed(f"nobody confirmed within {self._confirm_s:g} s") from None
        finally:
            self.waiting.clear()
        if not confirmed:
            raise ApplyFailed("it was cancelled")

    def _decided(self, record: Record) -> Record:
        self._begin("write that it is decided")
        decided = msgspec.structs.replace(record, phase="committing")
        records.write(self._path, decided)
        return decided

    # --- and back -----------------------------------------------------------------------------------------------------

    async def _fail(self, record: Record, error: BaseException) -> None:
        """Goes back; raises what there is to say of `error`, or returns when it is nobody's affair but the caller's."""
        step = self._step
        for _, _, activation in self._begun:
            await activation.close()
        try:
            await _insist(lambda: _go_back(self._manager, self._firewall, record, self._observe))
            records.remove(self._path)
        except (NetworkError, OSError) as trouble:
            raise Unfinished(
                f"{step}: {error}; and it could not be undone completely: {trouble}. It is tried again when the appliance or "
                "NetworkManager starts",
                step,
            ) from error
        if isinstance(error, (NetworkError, OSError)):
            raise ApplyFailed(f"{step}: {error}. Everything is as it was before", step) from error

    async def _finish(self, record: Record) -> None:
        try:
            await _insist(lambda: _go_on(self._manager, self._firewall, record, self._observe))
            records.remove(self._path)
        except (NetworkError, OSError) as error:
            raise Unfinished(
                f"the change is made, but what is left of the old could not be taken away yet: {error}",
                self._step,
            ) from error

    def _begin(self, step: str) -> None:
        self._step = step
        self._observe(step)
        if self._answer.done() and not self._answer.result():
            raise ApplyFailed("it was cancelled")


async def recover(
    manager: NetworkManager,
    firewall: Firewall,
    path: Path,
    *,
    observer: Observer = lambda step: log.info("network: %s", step),
) -> str:
    """Brings to an end what a process that died has begun: back while it was trying, to the end once it had decided. Returns what
    was done, in words; empty: there was nothing to do. Can be called as often as one likes, while no transaction runs.

    Unfinished when it cannot be done yet; NetworkManagerMissing when there is nobody to ask, and nothing was done."""
    try:
        record = records.read(path)
    except records.BadRecord as error:
        log.error("network: %s; it is put aside as %s", error, records.set_aside(path))
        record = None
    if record is None:
        lost = [each for each in (await manager.current()).profiles if each.role and not each.saved]
        for each in lost:
            observer(f"delete {each.role}, which nobody finished")
            await manager.delete(each.uuid)
        return f"{len(lost)} unfinished profiles were deleted" if lost else ""
    there = {each.uuid for each in (await manager.current()).profiles}
    # A power cut may take a profile with it that was hardly written; then the old ones, if all are still there, are the better.
    lost_new = any(made.new not in there for made in record.made)
    has_old = all(not made.old or made.old in there for made in record.made)
    try:
        if record.phase == "committing" and not (lost_new and has_old):
            await _go_on(manager, firewall, record, observer)
            done = "a change of the network that had been decided was brought to its end"
        else:
            await _go_back(manager, firewall, record, observer)
            done = "a change of the network that nobody finished was undone"
        records.remove(path)
    except (NetworkError, OSError) as error:
        raise Unfinished(f"an unfinished change of the network: {error}") from error
    return done


async def _insist(action: Callable[[], Awaitable[None]]) -> None:
    """Does it again from its beginning when NetworkManager goes away half way; `action` may be repeated, and waits for it."""
    for _ in range(ATTEMPTS - 1):
        try:
            return await action()
        except NetworkManagerMissing as error:
            log.warning("network: %s", error)
    return await action()


async def _go_back(manager: NetworkManager, firewall: Firewall, record: Record, observe: Observer) -> None:
    """To how it was; everything that can be undone is, whatever fails. NetworkError with all that did."""
    troubles: list[str] = []

    async def attempt(step: str, action: Awaitable[object]) -> None:
        observe(step)
        try:
            await action
        except NetworkManagerMissing:
            raise
        except NetworkError as error:
            troubles.append(f"{step}: {error}")

    if record.changes_firewall:
        await attempt("restore the firewall", _set_firewall(firewall, record.old_firewall))
    await _until_running(manager)
    await attempt("go back to the checkpoint", _roll_back(manager, record))
    for interface, before in reversed(record.before.items()):
        await attempt(f"restore {interface}", _restore(manager, record, interface, before))
    for made in reversed(record.made):
        await attempt(f"delete the new {made.role}", manager.delete(made.new))
    observe("remove the record")
    if troubles:
        raise NetworkError("; ".join(troubles))


async def _roll_back(manager: NetworkManager, record: Record) -> None:
    for each in await _checkpoints(manager, record):
        await manager.roll_back(each)


async def _restore(manager: NetworkManager, record: Record, interface: str, before: str) -> None:
    """The profile that was active there is so again, or at least tries to be."""
    now = await manager.current()
    device = now.device(interface)
    active = device.profile if device else ""
    new = {made.new for made in record.made}
    if before and any(each.uuid == before for each in now.profiles):
        try:
            if active != before or not await manager.follow_running(before, within_s=ADDRESS_S):
                await manager.activate(before, interface, within_s=ADDRESS_S)
        except ActivationFailed as error:
            # It was there, and cannot be now: no cable, nobody who answers. NetworkManager goes on trying.
            log.warning("network: %s", error)
    elif active in new:
        await manager.deactivate(active)


async def _go_on(manager: NetworkManager, firewall: Firewall, record: Record, observe: Observer) -> None:
    """To the end of what was decided. NetworkError."""
    await _until_running(manager)
    for path in await _checkpoints(manager, record):
        await manager.destroy(path)
    if record.changes_firewall:
        await _set_firewall(firewall, record.new_firewall)
    now = await manager.current()
    there = {each.uuid: each for each in now.profiles}
    for made in record.made:
        device = now.device(made.interface)
        if made.new not in there:
            continue
        if device is not None and made.old and device.profile == made.old:
            observe(f"activate {made.role}")
            try:
                await manager.activate(made.new, made.interface, within_s=ADDRESS_S)
            except ActivationFailed as error:
                log.warning("network: %s", error)
    for gone in (*(made.old for made in record.made if made.old and made.new in there), *record.removed):
        observe(f"delete {there[gone].role if gone in there else gone}, which is not wanted any more")
        await manager.delete(gone)
    observe("remove the record")


async def _set_firewall(firewall: Firewall, rules: str) -> None:
    if await firewall.current() == rules:
        return
    if rules:
        await firewall.load(rules)
    else:
        await firewall.remove()


async def _checkpoints(manager: NetworkManager, record: Record) -> list[str]:
    """Those that the transaction made: of this start of the machine, not older than the record, of its devices alone."""
    if record.boot_id != records.boot_id():
        return []
    return [
        each.path
        for each in await manager.checkpoints()
        if each.created_ms >= record.began_ms and each.interfaces <= set(record.before)
    ]


async def _until_running(manager: NetworkManager) -> None:
    """NetworkManagerFailed when it does not come back."""
    deadline = asyncio.get_running_loop().time() + RETURN_S
    while not await manager.running():
        if asyncio.get_running_loop().time() > deadline:
            raise NetworkManagerFailed(f"NetworkManager has not been there for {RETURN_S:g} s")
        await asyncio.sleep(0.1)
    await manager.settled()


def _asks(settings: Settings) -> bool:
    """Whether it waits for an address of somebody else's."""
    return any(settings.get(family, {}).get("method") == "auto" for family in ("ipv4", "ipv6"))


def _wrong_on_device(profile: Profile, found: Found, device: Device | None) -> list[str]:
    role = profile.role
    if device is None:
        return [f"{role}: expected the device {profile.interface}, found none"]
    if device.profile != found.uuid or not found.activated:
        return [f"{role}: it is not active on {profile.interface}"]
    wrong = []
    in_kernel = addresses_of(profile.interface)
    told = {_normal(each) for each in device.addresses}
    gateways = {ip_address(each) for each in device.gateways}
    for family in ("ipv4", "ipv6"):
        wanted = profile.settings.get(family, {})
        for text in _texts(wanted.get("address-data")):
            if not (_normal(text) in in_kernel and _normal(text) in told):
                has = ", ".join(sorted(in_kernel)) or "none"
                wrong.append(f"{role}: expected the address {text} on {profile.interface}, found {has}")
        gateway = str(wanted.get("gateway", ""))
        if gateway and not wanted.get("route-table") and ip_address(gateway) not in gateways:
            has = ", ".join(device.gateways) or "none"
            wrong.append(f"{role}: expected the gateway {gateway}, found {has}")
    for section in ("802-3-ethernet", "802-11-wireless"):
        mtu = profile.settings.get(section, {}).get("mtu")
        if mtu and (has_mtu := mtu_of(profile.interface)) != mtu:
            wrong.append(f"{role}: expected an MTU of {mtu} on {profile.interface}, found {has_mtu}")
    return wrong


def _texts(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else []


def _normal(text: str) -> str:
    return str(ip_interface(text))
