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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from . import record as records
from .errors import ActivationFailed, ApplyFailed, Failure, NetworkError, Unfinished
from .networkmanager import ACTIVATION_S, Activation, NetworkManager
from .plan import Activate, Filter, Make, Remove, Step
from .profiles import Current, Settings
from .record import Made, Record
from .recovery import ADDRESS_S, Firewall, Observer, go_back, go_on, insist
from .verification import mtu_of_profile, wrong_with

log = logging.getLogger(__name__)

#: Addresses appear on the device a moment after NetworkManager says so.
VERIFY_S = 10.0

#: The checkpoint goes back by itself so long after we should have.
SLACK_S = 30


@dataclass(frozen=True)
class Applied:
    """What was done. `later`: role -> why its profile is there and not active yet."""

    later: dict[str, str] = field(default_factory=dict)


class Transaction:
    """One change. `record` is the file that survives us; nothing else may be under way: see `recovery.recover`."""

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
            self._check(before)
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

    def _check(self, before: Current) -> None:
        """What the hardware cannot do is not tried. ApplyFailed."""
        for step in self._steps:
            if not isinstance(step, Make):
                continue
            mtu, device = mtu_of_profile(step.profile), before.device(step.profile.interface)
            if device is not None and device.mtu_limit and mtu > device.mtu_limit:
                raise ApplyFailed(
                    f"{step.profile.role}: expected an MTU of at most {device.mtu_limit}, which is what "
                    f"{device.name} takes, found {mtu}"
                )

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
                    settings = next((each.settings for each in now.profiles if each.uuid == there), None)
                    if settings is None:
                        raise ApplyFailed(f"{role}: somebody has deleted its profile meanwhile")
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
        bearable = error.failure is Failure.NO_CARRIER
        if not self._strict:
            # At the start, a network out of reach must not take the other ports along.
            absent = (Failure.NOT_FOUND, Failure.WRONG_PASSWORD, Failure.NO_DEVICE)
            bearable |= error.failure in absent or (error.failure is Failure.NO_ADDRESS and asks)
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
            profile = step.profile
            device = None if profile.role in self._later else now.device(profile.interface)
            wrong += wrong_with(profile, found.get(each), device, active=profile.role not in self._later)
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
            await insist(lambda: go_back(self._manager, self._firewall, record, self._observe))
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
            await insist(lambda: go_on(self._manager, self._firewall, record, self._observe))
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


def _asks(settings: Settings) -> bool:
    """Whether it waits for an address of somebody else's."""
    return any(settings.get(family, {}).get("method") == "auto" for family in ("ipv4", "ipv6"))
