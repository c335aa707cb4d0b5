"""Keeps the network as network.yaml says: applies it at the start and when told to, notices what changes, goes back when a change
fails or nobody confirms it.

What is in effect is the newest text of the history, not the file: a text that was tried and failed stays in the file for its
owner to correct, and is not tried again by itself. Without a network.yaml nothing is touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from appliance.config.errors import ConfigError
from appliance.config.load import Loaded, interpret_network
from appliance.config.network import Drift, Network, Role
from appliance.config.source import FILE_LIMIT_BYTES, read_source
from appliance.files import write_atomically
from appliance.system_bus import Bus, BusError, Match

from . import record as records
from .desired import wanted
from .errors import (
    ApplyFailed,
    Busy,
    NetworkError,
    NetworkManagerMissing,
    NothingToConfirm,
    Unfinished,
    Unmanaged,
)
from .firewall.attached import with_attached
from .firewall.nft import differ_in_networks_alone
from .firewall.rules import Firewall, firewall_of
from .firewall.table import Counter, Table
from .hardware import Binding, bind
from .history import History, Revision, digest
from .managed_objects import NAME, ROOT
from .networkmanager import NetworkManager
from .plan import Activate, Filter, Make, Remove, Step, described, plan
from .profiles import Current, Desired
from .record import BadRecord, Record
from .recovery import recover
from .transaction import Applied, Transaction

log = logging.getLogger(__name__)

#: Signals come in swarms: one looks when this long nothing more has come, but at the latest after MOST_S.
QUIET_S = 1.0
MOST_S = 5.0

#: One looks without any signal, too: the firewall has none.
LOOK_S = 30.0

#: Six roles and their MAC addresses.
_PORTS_LIMIT_BYTES = 4096

#: How soon a missing NetworkManager is looked for again.
RETRY_S = 2.0

#: Somebody who changes the same again and again is not fought for ever: so many repairs within so many seconds.
REPAIRS_LIMIT, REPAIRS_WITHIN_S = 5, 600.0

#: A port that could not be made to run is tried again so often: its DHCP server may come.
RETRY_EACH_S = 60.0


@dataclass
class Troubles:
    """What its owner should know, in sentences; empty: nothing. By the role, or by one word, what it is about."""

    missing_manager: str = ""
    not_applied: str = ""
    unfinished: str = ""
    firewall_off: str = ""
    drift: list[str] = field(default_factory=list)
    guessed: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    later: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """What there is, for whoever shows it."""

    current: Current
    binding: Binding
    roles: dict[str, str]
    troubles: Troubles
    revision: Revision | None
    differs: bool
    confirm_within_s: float
    firewall: bool


@dataclass(frozen=True)
class Meant:
    """A text and what it means on this machine now."""

    text: str
    network: Network
    binding: Binding
    desired: Desired
    firewall: Firewall
    current: Current
    warnings: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        return plan(self.desired, self.current)


class Keeper:
    """`file` is network.yaml, `folder` is ours to keep state in, `firewall_record` ends with the machine's run."""

    def __init__(
        self, file: Path, folder: Path, firewall_record: Path, changed: Callable[[Troubles], None]
    ) -> None:
        self._file, self._folder = file, folder
        self._record, self._candidate = folder / "change.json", folder / "candidate.yaml"
        self._rejected, self._ports = folder / "rejected", folder / "ports.json"
        self._last: tuple[str, Loaded[Network]] | None = None
        self._table = Table(firewall_record, at_boot=folder / "firewall.nft")
        self._history = History(folder / "history")
        self._changed = changed
        self.troubles = Troubles()
        self._turn = asyncio.Lock()
        self._manager: NetworkManager | None = None
        self._transaction: Transaction | None = None
        self._waiting: asyncio.Task[str] | None = None
        self._confirm_until = 0.0
        self._stirred = asyncio.Event()
        self._repairs: list[float] = []
        self._failed: dict[str, float] = {}
        #: Of the profiles that were there once.
        self._roles: set[str] = set()

    # --- for ever -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is cancelled. NetworkManager and the bus may come and go."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            try:
                async with self._connected():
                    try:
                        await self._look_after()
                    finally:
                        await self._give_back()
            except (BusError, NetworkError, OSError) as error:
                # Whatever it is: it may be over in a moment, and the supervisor has other things to do.
                self._tell(missing_manager=str(error) if self._has_file() else "")
            await asyncio.sleep(RETRY_S)

    async def _give_back(self) -> None:
        """What waits for a confirmation while we end, or NetworkManager does, goes back as long as there is somebody to ask."""
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.gather(self._waiting, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        async with Bus() as bus:
            manager = NetworkManager(bus)
            async with (
                bus.listening(Match(sender=NAME, below=ROOT), lambda _: self._stirred.set()),
                bus.watching_owner(NAME, lambda _: self._stirred.set()),
            ):
                if not await manager.running():
                    raise NetworkManagerMissing("NetworkManager does not run")
                await manager.settled()
                self._manager = manager
                try:
                    yield
                finally:
                    self._manager = None

    async def _look_after(self) -> None:
        self._tell(missing_manager="")
        async with self._turn:
            await self._recover()
            await self._begin()
        while True:
            await self._stir()
            async with self._turn:
                await self._compare()

    async def _stir(self) -> None:
        """Returns when something has happened and is over, or it is time to look anyway."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self._stirred.wait()
        until = time.monotonic() + MOST_S
        while self._stirred.is_set() and time.monotonic() < until:
            self._stirred.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUIET_S):
                    await self._stirred.wait()
        self._stirred.clear()

    async def _recover(self) -> None:
        """What a process that was killed has begun."""
        record: Record | None = None
        with contextlib.suppress(BadRecord):
            record = records.read(self._record)
        try:
            if done := await recover(self._there(), self._firewall, self._record):
                log.warning("network: %s", done)
        except Unfinished as error:
            self._tell(unfinished=str(error))
            return
        self._tell(unfinished="")
        if (text := self._read(self._candidate)) is None:
            return
        # What was only tried is gone; of anything else it is seen by what there is whether it came to its end.
        if record is None or record.phase == "committing":
            with contextlib.suppress(ConfigError):
                meant = await self._meant(text)
                if not meant.steps:
                    self._keep(meant, by="", why="decided before a restart", write=True)
        self._candidate.unlink(missing_ok=True)

    async def _begin(self) -> None:
        """At the start: what the file says when its owner has changed it meanwhile, else what was in effect."""
        text = self._read_file()
        if text is None or self._record.exists():
            return
        newest = self._history.newest()
        if (newest is None or newest.text != text) and digest(text) != self._rejected_digest():
            try:
                await self._carry_out(text, strict=False, by="", why="at the start")
                return
            except ConfigError as error:
                self._tell(not_applied=str(error))
            except NetworkError as error:
                if _is_nobodys_fault(error) or isinstance(error, Unfinished):
                    raise
                self._reject(text)
                self._tell(not_applied=str(error))
        elif newest is not None and newest.text != text:
            self._tell(
                not_applied="network.yaml was tried before and failed; 'coral-reef net apply' tries it again"
            )
        if newest is not None:
            try:
                await self._carry_out(newest.text, strict=False, by=newest.by, why=newest.why)
            except NetworkManagerMissing:
                raise
            except (ConfigError, NetworkError) as error:
                log.error("network: what was in effect cannot be so again: %s", error)

    async def _compare(self) -> None:
        """What there is with what is in effect; repairs what drifted, if that is wanted."""
        if self._waiting is not None:
            return  # what was tried is no drift
        newest = self._history.newest()
        if newest is None or self._read_file() is None:
            self._tell(drift=[], firewall_off="", guessed={}, missing={}, later={})
            return
        if self._record.exists():
            await self._recover()
        try:
            meant = await self._meant(newest.text)
        except NetworkManagerMissing:
            raise
        except (ConfigError, NetworkError) as error:
            self._tell(drift=[f"it cannot be seen how it is: {error}"])
            return
        self._tell_of(meant)
        active = {each.role for each in meant.current.profiles if each.activated}
        self._tell(later={role: why for role, why in self.troubles.later.items() if role not in active})
        steps = self._due(meant.steps, meant.current)
        drift = tuple(each for each in steps if not self._is_only_late(each))
        told = lines = described(drift, meant.current)
        if drift and meant.network.drift is Drift.REPORT:
            steps = tuple(each for each in steps if each not in drift)
        elif drift and not self._may_repair():
            steps = tuple(each for each in steps if each not in drift)
            told = [*lines, "it was repaired again and again, and is left as it is for now"]
        else:
            told = []
            for line in lines:
                log.warning("network: changed behind our back, repairing: %s", line)
        if steps:
            try:
                applied = await self._run(self._change(steps, strict=False))
                self._roles |= {each.profile.role for each in steps if isinstance(each, Make)}
                self._failed |= dict.fromkeys(applied.later, time.monotonic())
                self._tell(later={**self.troubles.later, **applied.later})
            except NetworkError as error:
                self._failed |= dict.fromkeys(filter(None, map(_role_of, steps)), time.monotonic())
                log.warning("network: %s", error)
                told = [*lines, str(error)] if lines else []
        self._tell(drift=told)

    def _due(self, steps: tuple[Step, ...], current: Current) -> tuple[Step, ...]:
        """Without those that cannot help now: a port without a cable, or one that was tried a moment ago."""
        due: list[Step] = []
        now = time.monotonic()
        for step in steps:
            if isinstance(step, Activate):
                device = current.device(step.interface)
                if device is not None and not device.carrier and device.kind != "wifi":
                    continue
            if now - self._failed.get(_role_of(step), -RETRY_EACH_S) >= RETRY_EACH_S:
                due.append(step)
        return tuple(due)

    def _is_only_late(self, step: Step) -> bool:
        """Nobody changed anything: hardware, a cable or a lease came."""
        match step:
            case Activate():
                return True
            case Make(profile, old):
                return not old and profile.role not in self._roles
            case Filter():
                return differ_in_networks_alone(step.old, step.rules)
            case _:
                return False

    def _may_repair(self) -> bool:
        now = time.monotonic()
        self._repairs = [at for at in self._repairs if now - at < REPAIRS_WITHIN_S]
        if len(self._repairs) >= REPAIRS_LIMIT:
            return False
        self._repairs.append(now)
        return True

    # --- what is asked ------------------------------------------------------------------------------------------------

    async def look(self) -> View:
        """Unmanaged when there is no NetworkManager to ask."""
        current = await self._there().current()
        newest, text = self._history.newest(), self._read_file()
        network = Network()
        with contextlib.suppress(ConfigError):
            network = (await self._interpreted(newest.text if newest else text or "")).settings
        binding = bind(network.interfaces, current.devices, self._remembered())
        profiles, _ = wanted(network, binding)
        return View(
            current=current,
            binding=binding,
            roles={each.interface: each.role for each in profiles},
            troubles=self.troubles,
            revision=newest,
            differs=text is not None and (newest is None or newest.text != text),
            confirm_within_s=max(0.0, self._confirm_until - time.monotonic()) if self._waiting else 0.0,
            firewall=bool(await asyncio.to_thread(self._table.standing)),
        )

    async def difference(self, text: str | None) -> tuple[list[str], list[str]]:
        """What applying it would do, and the warnings of it. ConfigError, NetworkError."""
        async with self._turn_now():
            meant = await self._meant(self._given(text))
            return described(meant.steps, meant.current), list(meant.warnings)

    async def apply(self, text: str | None, *, confirm_s: float, by: str, why: str) -> str:
        """Makes it so; returns a sentence when it is, or when it waits for its confirmation. A text takes the place of
        network.yaml. ConfigError; NetworkError when everything is as it was."""
        async with self._turn_now():
            given = self._given(text)
            if confirm_s:
                return await self._apply_for_now(given, confirm_s, by=by, why=why, write=text is not None)
            try:
                return await self._carry_out(given, strict=True, by=by, why=why, write=text is not None)
            except Unfinished:
                raise  # it may have been decided: see _recover
            except ApplyFailed as error:
                if text is None and not _is_nobodys_fault(error):
                    self._reject(given)
                raise

    async def back(self, steps: int, *, confirm_s: float, by: str) -> str:
        """Applies what was in effect so many changes ago. NoSuchRevision, and as `apply`."""
        revision = self._history.back(steps)
        return await self.apply(
            revision.text, confirm_s=confirm_s, by=by, why=f"back to revision {revision.number}"
        )

    async def confirm(self) -> str:
        """What was applied for a time stays. NothingToConfirm."""
        task = self._pending()
        assert self._transaction is not None
        self._transaction.confirm()
        return await asyncio.shield(task)

    async def cancel(self) -> str:
        """What was applied for a time goes back now. NothingToConfirm."""
        task = self._pending()
        assert self._transaction is not None
        self._transaction.cancel()
        try:
            return await asyncio.shield(task)
        except Unfinished:
            raise
        except ApplyFailed:
            return "everything is as it was before"

    def past(self) -> list[Revision]:
        return self._history.all()

    def text(self, steps: int | None) -> str:
        """Of the history, or of network.yaml as it is; an empty one when there is none. NoSuchRevision, ConfigError."""
        return (self._read_file() or "") if steps is None else self._history.back(steps).text

    async def counters(self) -> tuple[Firewall, dict[str, Counter]]:
        """The rules that are in effect, with what they have counted. NetworkError, ConfigError."""
        newest = self._history.newest()
        if newest is None:
            return Firewall(), {}
        meant = await self._meant(newest.text)
        return meant.firewall, await asyncio.to_thread(self._table.counters)

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _meant(self, text: str) -> Meant:
        """ConfigError, NetworkError."""
        loaded = await self._interpreted(text)
        network = loaded.settings
        current = await self._there().current()
        binding = bind(network.interfaces, current.devices, self._remembered())
        try:
            profiles, zones = wanted(network, binding)
            plan(Desired(profiles), current)
            attached = await asyncio.to_thread(with_attached, zones)
            firewall = firewall_of(network, attached)
        except ValueError as error:
            raise NetworkError(f"network.yaml cannot be so: {error}") from error
        standing = await asyncio.to_thread(self._table.standing)
        current = Current(current.profiles, current.devices, standing)
        return Meant(
            text,
            network,
            binding,
            Desired(profiles, firewall.text()),
            firewall,
            current,
            tuple(map(str, loaded.warnings)),
        )

    async def _carry_out(self, text: str, *, strict: bool, by: str, why: str, write: bool = False) -> str:
        meant = await self._meant(text)
        self._prepare(text)
        applied = await self._run(self._change(meant.steps, strict=strict, digest=digest(text)))
        return self._done(meant, applied, by=by, why=why, write=write)

    def _change(
        self, steps: tuple[Step, ...], *, strict: bool, digest: str = "", confirm_s: float = 0.0
    ) -> Transaction:
        """The one that is under way from now on, for `_run`."""
        self._transaction = Transaction(
            self._there(),
            self._firewall,
            self._record,
            steps,
            strict=strict,
            confirm_s=confirm_s,
            digest=digest,
        )
        return self._transaction

    async def _run(self, change: Transaction) -> Applied:
        try:
            return await change.run()
        finally:
            if self._transaction is change:
                self._transaction = None
            self._stirred.set()

    async def _apply_for_now(self, text: str, confirm_s: float, *, by: str, why: str, write: bool) -> str:
        """Returns when it waits for its confirmation; the task that waits holds our turn no longer than this call."""
        meant = await self._meant(text)
        self._prepare(text)
        if not meant.steps:
            return self._done(meant, Applied(), by=by, why=why, write=write)

        if not write:
            # Who is killed meanwhile finds the file as it is now, and must not take it for good.
            self._reject(text)

        change = self._change(meant.steps, strict=True, digest=digest(text), confirm_s=confirm_s)

        async def work() -> str:
            try:
                applied = await self._run(change)
                return self._done(meant, applied, by=by, why=why, write=write)
            except Unfinished:
                raise
            except ApplyFailed as error:
                if not write and _is_nobodys_fault(error):
                    self._rejected.unlink(missing_ok=True)
                log.warning("network: %s", error)
                raise
            finally:
                self._waiting = None

        task = asyncio.create_task(work(), name="network change")
        waits = asyncio.create_task(change.waiting.wait())
        try:
            await asyncio.wait((task, waits), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waits.cancel()
        if task.done():
            return task.result()
        self._confirm_until = time.monotonic() + confirm_s
        self._waiting = task
        task.add_done_callback(_looked_at)
        return f"done; it goes back in {confirm_s:.0f} s unless 'net confirm' follows"

    def _done(self, meant: Meant, applied: Applied, *, by: str, why: str, write: bool) -> str:
        self._keep(meant, by=by, why=why, write=write)
        self._roles = {each.role for each in meant.desired.profiles}
        self._tell_of(meant)
        self._tell(later=applied.later, drift=[])
        if self._read_file() == meant.text:
            self._tell(not_applied="")
        if not meant.steps:
            return "it was so already; nothing was changed"
        later = "".join(f"; {role}: {reason}" for role, reason in applied.later.items())
        return f"done{later}"

    def _keep(self, meant: Meant, *, by: str, why: str, write: bool) -> None:
        """It is in effect: the history knows, and the file when it came from elsewhere. NetworkError."""
        text = meant.text
        try:
            self._remember(meant.binding)
            self._history.add(text, at=time.time(), by=by, why=why)
            if write and self._read(self._file) != text:
                write_atomically(self._file, text.encode(), mode=0o640)
            self._candidate.unlink(missing_ok=True)
            if self._read_file() == text:
                self._rejected.unlink(missing_ok=True)
        except OSError as error:
            raise NetworkError(f"it is in effect, but cannot be kept: {error}") from error

    def _remember(self, binding: Binding) -> None:
        """Which hardware a port is now, it stays, whatever else is plugged in."""
        known = {
            **self._remembered(),
            **{role: each.mac for role, each in binding.devices.items() if each.mac},
        }
        if known != self._remembered():
            write_atomically(self._ports, msgspec.json.encode(known), mode=0o600)

    def _remembered(self) -> dict[Role, str]:
        try:
            with self._ports.open("rb") as file:
                return msgspec.json.decode(file.read(_PORTS_LIMIT_BYTES), type=dict[Role, str])
        except (OSError, msgspec.MsgspecError):
            return {}

    async def _interpreted(self, text: str) -> Loaded[Network]:
        """A long one takes a second, which nobody else should have to wait. ConfigError."""
        if self._last is None or self._last[0] != text:
            self._last = text, await asyncio.to_thread(interpret_network, text, apply=True)
        return self._last[1]

    def _prepare(self, text: str) -> None:
        """What is about to be tried survives us. Unfinished, NetworkError."""
        if self._record.exists():
            raise Unfinished("another change of the network has not ended: it is tried again by itself")
        try:
            write_atomically(self._candidate, text.encode(), mode=0o600)
        except OSError as error:
            raise NetworkError(f"nothing was changed: {error}") from error

    def _reject(self, text: str) -> None:
        """It is not tried again by itself."""
        with contextlib.suppress(OSError):
            write_atomically(self._rejected, digest(text).encode(), mode=0o600)

    def _rejected_digest(self) -> str:
        return self._read(self._rejected) or ""

    def _given(self, text: str | None) -> str:
        found = self._read_file() if text is None else text
        if found is None:
            raise Unmanaged(
                f"there is no {self._file}: write one, or give a text ('coral-reef net apply FILE')"
            )
        if len(found.encode()) > FILE_LIMIT_BYTES:
            raise NetworkError(f"the text is larger than {FILE_LIMIT_BYTES // 1024} KiB, expected less")
        return found

    def _read_file(self) -> str | None:
        """None without one, or when it cannot be read: who applies it hears why."""
        return self._read(self._file)

    def _has_file(self) -> bool:
        return self._file.exists()

    @staticmethod
    def _read(path: Path) -> str | None:
        try:
            return read_source(path)
        except ConfigError:
            return None

    def _there(self) -> NetworkManager:
        if self._manager is None:
            raise NetworkManagerMissing(
                "NetworkManager does not run: 'systemctl status NetworkManager' tells why"
            )
        return self._manager

    def _pending(self) -> asyncio.Task[str]:
        if self._waiting is None or self._transaction is None:
            raise NothingToConfirm("nothing waits for a confirmation (any more)")
        return self._waiting

    @contextlib.asynccontextmanager
    async def _turn_now(self) -> AsyncIterator[None]:
        """One change at a time. Busy while one waits for its confirmation."""
        self._require_nothing_waits()
        async with self._turn:
            self._require_nothing_waits()  # who had the turn before may have left one
            yield

    def _require_nothing_waits(self) -> None:
        if self._waiting is not None:
            raise Busy("a change waits for its confirmation: 'net confirm' or 'net cancel' first")

    def _tell_of(self, meant: Meant) -> None:
        roles: dict[Role, str] = dict(meant.binding.guessed)
        self._tell(
            guessed={str(role): why for role, why in roles.items()},
            missing={str(role): why for role, why in meant.binding.missing.items()},
            firewall_off=""
            if meant.network.firewall.enabled
            else "firewall.enabled is false: everybody may connect to everything",
        )

    def _tell(self, **troubles: Any) -> None:
        before = vars(self.troubles).copy()
        for name, value in troubles.items():
            setattr(self.troubles, name, value)
        if vars(self.troubles) != before:
            self._changed(self.troubles)

    @property
    def _firewall(self) -> _Rules:
        return _Rules(self._table)


class _Rules:
    """The table, for a transaction: nft takes its time."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def load(self, rules: str) -> None:
        await asyncio.to_thread(self._table.load, rules)

    async def remove(self) -> None:
        await asyncio.to_thread(self._table.load, "")

    async def current(self) -> str:
        return await asyncio.to_thread(self._table.standing)


def _role_of(step: Step) -> str:
    """Empty for the firewall."""
    match step:
        case Make(profile):
            return profile.role
        case Activate(_, role, _) | Remove(_, role):
            return role
        case _:
            return ""


def _is_nobodys_fault(error: NetworkError) -> bool:
    """NetworkManager went away: the text may be good."""
    return isinstance(error, NetworkManagerMissing) or isinstance(error.__cause__, NetworkManagerMissing)


def _looked_at(task: asyncio.Task[str]) -> None:
    """Nobody may wait for it any more: its error was logged."""
    if not task.cancelled():
        task.exception()
