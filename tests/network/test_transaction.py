"""Changes of a real network: done, undone, and cut short at each step."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.network import record as records
from appliance.network.errors import ApplyFailed, Unfinished
from appliance.network.networkmanager import NetworkManager
from appliance.network.plan import plan
from appliance.network.profiles import Desired
from appliance.network.recovery import recover
from appliance.network.transaction import Applied, Transaction
from appliance.system_bus import Bus
from tests.waiting import ask_until, wait_for, wait_until

from .changes import FIREWALL, NEW, OLD, OTHER_FIREWALL, NftTable, change, ethernet, read
from .real_nm import World, real_nm

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]

ROOT = Path(__file__).parents[2]

#: Its IPv6 address is the switch's, which says so.
DUPLICATE = ethernet(1, "10.71.0.3/24", role="wifi", ipv6="fd00:1::1/64")


@pytest.fixture
def world() -> Iterator[World]:
    with real_nm(cables=3) as found:
        yield found


async def test_from_nothing_and_a_second_plan_is_empty(world: World) -> None:
    await change(OLD, world.folder)
    async with Bus() as bus:
        current = await read(NetworkManager(bus), NftTable(world.folder))
    assert plan(OLD, current) == ()
    assert world.addresses("reef0") == {"10.70.0.2/24"}
    assert world.addresses("reef1") == {"10.71.0.2/24"}
    assert not (world.folder / "record").exists()
    assert all(name.startswith("etc/") for name in world.profiles())
    assert world.at_switch("busybox", "ping", "-c", "1", "-W", "5", "10.70.0.2")


async def test_a_change_leaves_what_is_not_ours(world: World) -> None:
    world.nmcli("connection", "add", "type", "ethernet", "ifname", "reef2", "con-name", "the owner's",
                "ipv4.method", "manual", "ipv4.addresses", "10.72.0.9/24", "ipv6.method", "disabled")  # fmt: skip
    await change(OLD, world.folder)
    theirs = {name: text for name, text in world.profiles().items() if "owner" in name}
    name = world.nmcli("-t", "-f", "UUID,DEVICE", "connection", "show", "--active")
    (ours,) = [line.split(":")[0] for line in name.splitlines() if line.endswith(":reef0")]
    world.nmcli("connection", "modify", ours, "802-3-ethernet.wake-on-lan", "magic")
    world.nmcli("connection", "clone", ours, "a copy")
    copy = {name: text for name, text in world.profiles().items() if "copy" in name}
    await change(Desired((ethernet(0, "10.70.0.3/24"),), FIREWALL), world.folder)
    after = world.profiles()
    assert theirs.items() <= after.items()
    assert copy.items() <= after.items()
    assert world.addresses("reef2") == {"10.72.0.9/24"}
    (changed,) = [text for name, text in after.items() if name not in theirs and name not in copy]
    assert "wake-on-lan=64" in changed
    assert "10.70.0.3/24" in changed
    assert ours not in changed


async def test_a_port_without_cable_waits_for_it(world: World) -> None:
    world.pull(0)
    wait_for("NetworkManager has noticed", lambda: "unavailable" in world.nmcli("device"))
    applied = await _apply(world, Desired((ethernet(0, "10.70.0.2/24"), ethernet(1, "10.71.0.2/24"))))
    assert applied.later == {"primary": "reef0 has no cable, or nothing at its other end"}
    assert world.addresses("reef1") == {"10.71.0.2/24"}
    world.plug(0)
    await wait_until("the cable is noticed", lambda: world.addresses("reef0") == {"10.70.0.2/24"})


async def test_a_port_that_is_not_there(world: World) -> None:
    applied = await _apply(world, Desired((ethernet(7, "10.77.0.2/24", role="wifi"),)))
    assert applied.later == {"wifi": "there is no reef7"}
    assert len(world.profiles()) == 1
    world.cable(7)
    await wait_until("the card is noticed", lambda: world.addresses("reef7") == {"10.77.0.2/24"})


async def test_dhcp(world: World) -> None:
    world.start_dhcp(0)
    applied = await _apply(world, Desired((ethernet(0),)), strict=True)
    assert applied.later == {}
    (address,) = world.addresses("reef0")
    assert address.startswith("10.70.0.1")


@pytest.mark.parametrize("strict", [True, False])
async def test_nobody_answers_to_dhcp(world: World, monkeypatch: pytest.MonkeyPatch, strict: bool) -> None:
    monkeypatch.setattr("appliance.network.transaction.ADDRESS_S", 2.0)
    monkeypatch.setattr("appliance.network.transaction.ACTIVATION_S", 3.0)
    await change(OLD, world.folder)
    before = world.snapshot()
    if strict:
        with pytest.raises(
            ApplyFailed, match=r"activate primary: .*nobody answers to DHCP.*as it was before"
        ):
            await _apply(world, Desired((ethernet(0),)), strict=True)
        await _until_same(world, before)
    else:
        applied = await _apply(world, Desired((ethernet(0),)))
        assert "nobody answers to DHCP" in applied.later["primary"]
        world.start_dhcp(0)
        await wait_until("the router is noticed", lambda: world.addresses("reef0"), within_s=60)


@pytest.mark.parametrize(
    ("desired", "why"),
    [
        (Desired(NEW.profiles, "table inet x { nonsense }"), "replace the firewall: nft: "),
        (
            Desired((*NEW.profiles, ethernet(0, "not an address", role="wifi")), OTHER_FIREWALL),
            "make wifi: ipv4.address-data: ",
        ),
        (
            Desired((*NEW.profiles, ethernet(1, "10.71.0.3/24", role="wifi", mtu=70_000)), OTHER_FIREWALL),
            "nothing was changed: wifi: expected an MTU of at most 65535, which is what reef1 takes, found 70000",
        ),
        (
            Desired((*NEW.profiles, DUPLICATE), OTHER_FIREWALL),
            "wifi: expected the address fd00:1::1/64 on reef1, found 10.71.0.3/24",
        ),
    ],
    ids=["firewall", "settings", "mtu", "address"],
)
async def test_a_failure_leaves_everything_as_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch, desired: Desired, why: str
) -> None:
    monkeypatch.setattr("appliance.network.transaction.VERIFY_S", 10.0)
    await change(OLD, world.folder)
    before = world.snapshot()
    with pytest.raises(ApplyFailed, match=f"(?s){why}") as caught:
        await change(desired, world.folder)
    assert not isinstance(caught.value, Unfinished)
    assert str(caught.value).startswith("nothing was changed") or "Everything is as it was before" in str(
        caught.value
    )
    await _until_same(world, before)
    assert not (world.folder / "record").exists()


async def test_a_failure_gives_the_owners_profile_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes after somebody else on a device, and fails."""
    monkeypatch.setattr("appliance.network.transaction.VERIFY_S", 1.0)
    world.nmcli("connection", "add", "type", "ethernet", "ifname", "reef0", "con-name", "the owner's",
                "ipv4.method", "manual", "ipv4.addresses", "10.70.0.9/24", "ipv6.method", "disabled")  # fmt: skip
    await wait_until("it is active", lambda: world.addresses("reef0") == {"10.70.0.9/24"})
    before = world.snapshot()
    with pytest.raises(ApplyFailed, match="expected the address fd00::1/64"):
        await change(Desired((ethernet(0, "10.70.0.2/24", ipv6="fd00::1/64"),), FIREWALL), world.folder)
    await _until_same(world, before)


# --- confirmation -------------------------------------------------------------------------------------------------


async def test_confirmed(world: World) -> None:
    await change(OLD, world.folder)
    async with _transaction(world, NEW, confirm_s=60) as (transaction, running):
        await asyncio.wait_for(transaction.waiting.wait(), 30)
        found = records.read(world.folder / "record")
        assert found is not None
        assert found.phase == "trying"
        assert 0 < found.deadline - time.time() <= 60
        transaction.confirm()
        await running
    assert world.addresses("reef0") == {"10.70.0.3/24"}
    assert sorted(world.active()) == ["reef0", "reef2"]


@pytest.mark.parametrize("how", ["nobody", "cancel", "end"])
async def test_not_confirmed(world: World, how: str) -> None:
    await change(OLD, world.folder)
    before = world.snapshot()
    async with _transaction(world, NEW, confirm_s=1.0 if how == "nobody" else 60.0) as (transaction, running):
        await asyncio.wait_for(transaction.waiting.wait(), 30)
        assert world.addresses("reef0") == {"10.70.0.3/24"}
        if how == "cancel":
            transaction.cancel()
        if how == "end":
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        else:
            with pytest.raises(
                ApplyFailed, match="nobody confirmed within 1 s" if how == "nobody" else "cancelled"
            ):
                await running
    await _until_same(world, before)


async def test_the_checkpoint_goes_back_when_nobody_is_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """We are killed while it waits, and nobody starts us again: the devices come back all the same."""
    monkeypatch.setattr("appliance.network.transaction.VERIFY_S", 1.0)
    await change(OLD, world.folder)
    before = world.active()
    async with _transaction(world, NEW, confirm_s=60) as (transaction, running):
        await asyncio.wait_for(transaction.waiting.wait(), 30)
        async with Bus() as bus:
            manager = NetworkManager(bus)
            (checkpoint,) = await manager.checkpoints()
            assert await manager.extend(checkpoint.path, 1)  # as if the time were over
        await wait_until("the old profiles are active", lambda: world.active() == before)
        transaction.confirm()
        with pytest.raises(ApplyFailed, match="not active on reef0"):
            await running


async def test_another_change_under_way(world: World) -> None:
    (world.folder / "record").write_text("{}", "utf-8")
    with pytest.raises(Unfinished, match="must be recovered first"):
        await change(OLD, world.folder)


# --- kills --------------------------------------------------------------------------------------------------------


def steps_of_the_change() -> list[str]:
    """What the change from OLD to NEW goes through; the last number is after its end."""
    with real_nm(cables=3) as world:
        asyncio.run(change(OLD, world.folder))
        return _child(world, 0)


@pytest.mark.timeout(600)
def test_killed_at_every_step() -> None:
    """Of a process that is killed before step N, another makes the old state or the new one, whatever N is."""
    steps = steps_of_the_change()
    assert len(steps) > 12
    decided = steps.index("write that it is decided") + 2
    with real_nm(cables=3) as world:
        asyncio.run(change(OLD, world.folder))
        old = world.snapshot()
        for number in range(1, len(steps) + 1):
            assert _child(world, number) == steps[:number]
            asyncio.run(_recover(world))
            if number < decided:
                assert _settled(world, old) == old, steps[number - 1]
            else:
                _is_new(world)
                asyncio.run(change(OLD, world.folder))
                old = world.snapshot()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("wait", [False, True], ids=["at once", "back first"])
def test_networkmanager_killed_at_every_step(wait: bool) -> None:
    """It is started again at once, as systemd does it: the change succeeds or is undone."""
    steps = steps_of_the_change()
    with real_nm(cables=3) as world:
        asyncio.run(change(OLD, world.folder))
        old = world.snapshot()
        for number in range(2, len(steps) + 1):
            count = 0

            def observe(step: str, number: int = number) -> None:
                nonlocal count
                count += 1
                if count == number:
                    world.kill_nm()
                    world.start_nm()
                    if wait:
                        world.wait_for_nm()

            try:
                asyncio.run(change(NEW, world.folder, observer=observe, confirms=True))
            except ApplyFailed as error:
                world.wait_for_nm()
                if isinstance(error, Unfinished):
                    asyncio.run(_recover(world))
            world.wait_for_nm()
            assert not (world.folder / "record").exists()
            now = asyncio.run(_roles(world))
            if now == {"primary", "cluster"}:
                _is_new(world)
                asyncio.run(change(OLD, world.folder))
                old = world.snapshot()
            else:
                assert _settled(world, old) == old, steps[number - 1]


@pytest.mark.parametrize(
    "at", ["remember how", "make primary", "activate primary", "save primary", "write that it is"]
)
async def test_networkmanager_stands_still(world: World, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """It answers nobody for longer than anybody waits; when it does again, it also does what it was asked last."""
    monkeypatch.setattr("appliance.network.recovery.RETURN_S", 1.0)
    await change(OLD, world.folder)
    old = world.snapshot()

    def observe(step: str) -> None:
        if step.startswith(at):
            world.signal_nm(signal.SIGSTOP)

    async with Bus(timeout_s=1.0) as bus:
        manager, firewall = NetworkManager(bus), NftTable(world.folder)
        steps = plan(NEW, await read(manager, firewall))
        transaction = Transaction(manager, firewall, world.folder / "record", steps, observer=observe)
        with pytest.raises(Unfinished, match=r"did not answer in 1 s|has not been there for 1 s"):
            await transaction.run()
    world.signal_nm(signal.SIGCONT)
    assert "change of the network" in await _recover(world)
    if at == "write that it is":
        await asyncio.to_thread(_is_new, world)
    else:
        await _until_same(world, old)


# --- helpers ------------------------------------------------------------------------------------------------------


class _transaction:  # noqa: N801
    """A transaction in a task, ended with the context."""

    def __init__(
        self, world: World, desired: Desired, *, confirm_s: float = 0.0, strict: bool = False
    ) -> None:
        self._world, self._desired, self._confirm_s, self._strict = world, desired, confirm_s, strict

    async def __aenter__(self) -> tuple[Transaction, asyncio.Task[Applied]]:
        self._bus = await Bus().__aenter__()
        manager, firewall = NetworkManager(self._bus), NftTable(self._world.folder)
        steps = plan(self._desired, await read(manager, firewall))
        transaction = Transaction(
            manager,
            firewall,
            self._world.folder / "record",
            steps,
            confirm_s=self._confirm_s,
            strict=self._strict,
        )
        self._task = asyncio.create_task(transaction.run())
        return transaction, self._task

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._bus.__aexit__(None, None, None)


async def _apply(world: World, desired: Desired, *, strict: bool = False) -> Applied:
    async with _transaction(world, desired, strict=strict) as (_, running):
        return await running


def _child(world: World, kill_at: int) -> list[str]:
    """The steps that it told of."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.network.changes", str(world.folder), str(kill_at)],
        cwd=ROOT,
        env=world.environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == (-signal.SIGKILL if kill_at else 0), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


async def _recover(world: World) -> str:
    async with Bus() as bus:
        return await recover(NetworkManager(bus), NftTable(world.folder), world.folder / "record")


async def _roles(world: World) -> set[str]:
    async with Bus() as bus:
        return {each.role for each in (await NetworkManager(bus).current()).profiles if each.role}


def _settled(world: World, wanted: dict[str, object]) -> dict[str, object]:
    """Addresses come and go a moment after the profiles: the snapshot when it is as wanted, or the last one."""
    with contextlib.suppress(AssertionError):  # whoever compares shows the difference
        wait_for("it is as wanted", lambda: world.snapshot() == wanted)
    return world.snapshot()


async def _until_same(world: World, wanted: dict[str, object]) -> None:
    assert await asyncio.to_thread(_settled, world, wanted) == wanted


def _is_new(world: World) -> None:
    """Everything is as NEW says, and nothing of OLD is left."""

    async def planned() -> bool:
        async with Bus() as bus:
            return not plan(NEW, await read(NetworkManager(bus), NftTable(world.folder)))

    asyncio.run(ask_until("all is as NEW says", planned))
    assert world.addresses("reef0") == {"10.70.0.3/24"}
    assert world.addresses("reef1") == set()
    assert world.addresses("reef2") == {"10.72.0.2/24"}
    assert all(name.startswith("etc/") for name in world.profiles())
    assert len(world.profiles()) == 2
