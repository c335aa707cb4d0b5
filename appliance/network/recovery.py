"""To the old or to the new: how a change of the network that failed is undone, and how one ends that a crash cut short."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from . import record as records
from .errors import (
    ActivationFailed,
    NetworkError,
    NetworkManagerFailed,
    NetworkManagerMissing,
    Unfinished,
)
from .networkmanager import NetworkManager
from .record import Record

log = logging.getLogger(__name__)

#: How long one looks for an address that nobody insists on; NetworkManager goes on looking.
ADDRESS_S = 20.0

#: Who was killed is back by then: systemd starts NetworkManager anew at once.
RETURN_S = 30.0

#: How often one begins again because it goes away once more.
ATTEMPTS = 3


class Firewall(Protocol):
    """Our own rules, and nobody else's. NetworkError when they cannot be changed or read."""

    async def load(self, rules: str) -> None: ...

    async def remove(self) -> None: ...

    async def current(self) -> str: ...


class Observer(Protocol):
    """Hears of each step before it is taken."""

    def __call__(self, step: str) -> None: ...


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
            await go_on(manager, firewall, record, observer)
            done = "a change of the network that had been decided was brought to its end"
        else:
            await go_back(manager, firewall, record, observer)
            done = "a change of the network that nobody finished was undone"
        records.remove(path)
    except (NetworkError, OSError) as error:
        raise Unfinished(f"an unfinished change of the network: {error}") from error
    return done


async def insist(action: Callable[[], Awaitable[None]]) -> None:
    """Does it again from its beginning when NetworkManager goes away half way; `action` may be repeated, and waits for it."""
    for _ in range(ATTEMPTS - 1):
        try:
            return await action()
        except NetworkManagerMissing as error:
            log.warning("network: %s", error)
    return await action()


async def go_back(manager: NetworkManager, firewall: Firewall, record: Record, observe: Observer) -> None:
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


async def go_on(manager: NetworkManager, firewall: Firewall, record: Record, observe: Observer) -> None:
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
