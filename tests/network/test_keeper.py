"""The keeper before a real NetworkManager and a real nft: what it applies, takes back, repairs and remembers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from textwrap import dedent

import pytest

from appliance.config.errors import ConfigError
from appliance.network import keeper as keeping
from appliance.network.errors import ApplyFailed, Busy, NetworkError, NothingToConfirm, Unmanaged
from appliance.network.keeper import Keeper, Troubles
from tests.waiting import wait_until

from .real_nm import World, real_nm

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]

ONE = dedent("""\
    # mine
    interfaces:
      primary: {type: ethernet, match: {interface: reef0}, ip: 10.70.0.2, gateway: 10.70.0.1, ipv6: off}
    """)
OTHER = ONE.replace("10.70.0.2", "10.70.0.3")
#: Wrong in a way that only the network shows: nobody answers to DHCP there.
LOCKS_OUT = ONE.replace("ip: 10.70.0.2, gateway: 10.70.0.1", "dhcp: true")

PRIMARY = "reef0"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(keeping, "RETRY_S", 0.1)
    monkeypatch.setattr(keeping, "RETRY_EACH_S", 2.0)
    monkeypatch.setattr("appliance.network.transaction.ACTIVATION_S", 3.0)
    with real_nm(cables=2) as found:
        yield found


class Kept:
    """A keeper that runs, and what it says is wrong."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.file = world.folder / "network.yaml"
        self.troubles = Troubles()
        self.keeper = Keeper(self.file, world.folder / "state", world.folder / "firewall.json", self._changed)

    def _changed(self, troubles: Troubles) -> None:
        self.troubles = troubles

    async def apply(self, text: str | None = None, *, confirm_s: float = 0.0) -> str:
        return await self.keeper.apply(text, confirm_s=confirm_s, by="anna", why="a test")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.keeper.run())
        try:
            await wait_until("it has begun", lambda: self.keeper._manager is not None or task.done())
            async with self.keeper._turn:  # what is done at the start
                pass
            yield
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def has(self, address: str) -> bool:
        return self.world.addresses(PRIMARY) == {address}


@pytest.fixture
def kept(world: World) -> Kept:
    return Kept(world)


async def test_without_a_file_nothing_is_touched(world: World, kept: Kept) -> None:
    before = world.snapshot()
    async with kept.running():
        view = await kept.keeper.look()
        assert view.revision is None
        with pytest.raises(Unmanaged, match=r"there is no .*network\.yaml"):
            await kept.apply()
    assert world.snapshot() == before


async def test_from_a_text_to_the_network_and_into_the_file(world: World, kept: Kept) -> None:
    async with kept.running():
        lines, _ = await kept.keeper.difference(ONE)
        assert lines[:2] == ["replace the firewall", "add primary on reef0"]
        assert not kept.file.exists()
        assert await kept.apply(ONE) == "done"
        assert kept.has("10.70.0.2/24")
        assert kept.file.read_text() == ONE
        assert "table inet coral_reef" in world.snapshot()["firewall"]
        assert await kept.keeper.difference(None) == ([], [])
        assert await kept.apply() == "it was so already; nothing was changed"
        assert [each.by for each in kept.keeper.past()] == ["anna"]
        view = await kept.keeper.look()
        assert (view.roles, view.differs, view.firewall) == ({PRIMARY: "primary"}, False, True)


async def test_at_the_start_and_at_the_next(world: World, kept: Kept) -> None:
    """What its owner wrote is applied, and stays while we are not there."""
    kept.file.write_text(ONE)
    async with kept.running():
        assert kept.has("10.70.0.2/24")
    assert kept.has("10.70.0.2/24")
    profiles = world.profiles()
    async with Kept(world).running():
        assert world.profiles() == profiles


async def test_back(world: World, kept: Kept) -> None:
    async with kept.running():
        await kept.apply(ONE)
        await kept.apply(OTHER)
        assert kept.has("10.70.0.3/24")
        await kept.keeper.back(1, confirm_s=0, by="anna")
        assert kept.has("10.70.0.2/24")
        assert kept.file.read_text() == ONE
        assert [each.why for each in kept.keeper.past()] == ["back to revision 1", "a test", "a test"]


async def test_a_text_with_errors_changes_nothing(world: World, kept: Kept) -> None:
    async with kept.running():
        await kept.apply(ONE)
        before = world.snapshot()
        with pytest.raises(ConfigError, match=r"network\.yaml:1: mode"):
            await kept.apply("mode: hub\n")
        assert world.snapshot() == before
        assert kept.file.read_text() == ONE


async def test_what_fails_goes_back_and_is_not_tried_again(world: World, kept: Kept) -> None:
    async with kept.running():
        await kept.apply(ONE)
        profiles = world.profiles()
        kept.file.write_text(LOCKS_OUT)
        with pytest.raises(ApplyFailed, match="Everything is as it was before"):
            await kept.apply()
        await wait_until("it is back", lambda: kept.has("10.70.0.2/24"))
        assert world.profiles() == profiles
    again = Kept(world)
    async with again.running():
        assert again.has("10.70.0.2/24")
        assert "tried before and failed" in again.troubles.not_applied
        assert (await again.keeper.look()).differs


async def test_confirmed(kept: Kept) -> None:
    async with kept.running():
        await kept.apply(ONE)
        said = await kept.apply(OTHER, confirm_s=60)
        assert said == "done; it goes back in 60 s unless 'net confirm' follows"
        assert kept.has("10.70.0.3/24")
        assert kept.file.read_text() == ONE
        assert 0 < (await kept.keeper.look()).confirm_within_s <= 60
        with pytest.raises(Busy):
            await kept.apply(ONE)
        assert await kept.keeper.confirm() == "done"
        assert kept.has("10.70.0.3/24")
        assert kept.file.read_text() == OTHER
        with pytest.raises(NothingToConfirm):
            await kept.keeper.confirm()


@pytest.mark.parametrize("how", ["nobody confirms", "cancelled", "the appliance ends"])
async def test_not_confirmed(world: World, kept: Kept, how: str) -> None:
    async with kept.running():
        await kept.apply(ONE)
        before = world.snapshot()
        await kept.apply(OTHER, confirm_s=1 if how == "nobody confirms" else 60)
        assert kept.has("10.70.0.3/24")
        if how == "nobody confirms":
            await wait_until("it is back", lambda: kept.keeper._waiting is None)
        elif how == "cancelled":
            assert await kept.keeper.cancel() == "everything is as it was before"
    await wait_until("it is as it was", lambda: world.snapshot() == before)
    assert kept.file.read_text() == ONE
    assert len(kept.keeper.past()) == 1


async def test_not_confirmed_and_not_tried_again(world: World, kept: Kept) -> None:
    """The owner edits the file itself and is cut off: whoever starts next must not take the file for good."""
    async with kept.running():
        await kept.apply(ONE)
        before = world.snapshot()
        kept.file.write_text(OTHER)
        await kept.apply(confirm_s=60)
        assert kept.has("10.70.0.3/24")
    await wait_until("it is as it was", lambda: world.snapshot() == before)
    again = Kept(world)
    async with again.running():
        assert world.snapshot() == before
        assert "tried before" in again.troubles.not_applied
        await again.apply()
        assert again.has("10.70.0.3/24")
        assert again.troubles.not_applied == ""


async def test_who_comes_second_waits_for_the_confirmation(kept: Kept) -> None:
    async with kept.running():
        await kept.apply(ONE)
        first = asyncio.create_task(kept.apply(OTHER, confirm_s=60))
        await wait_until("it has its turn", kept.keeper._turn.locked)
        with pytest.raises(Busy):
            await kept.apply(OTHER)
        assert "it goes back in" in await first
        assert await kept.keeper.confirm() == "done"
        assert kept.file.read_text() == OTHER


async def test_a_text_that_cannot_be(kept: Kept) -> None:
    async with kept.running():
        with pytest.raises(NetworkError, match="larger than 256 KiB"):
            await kept.apply("#" * (256 * 1024 + 1))


async def test_what_somebody_changes_behind_our_back(world: World, kept: Kept) -> None:
    async with kept.running():
        await kept.apply(ONE)
        (uuid,) = world.active().values()
        world.nmcli("connection", "modify", uuid, "ipv4.addresses", "10.70.0.9/24")
        world.nmcli("connection", "up", uuid)
        await wait_until("it is as it should be", lambda: kept.has("10.70.0.2/24"), within_s=60)
        await wait_until("all is well", lambda: kept.troubles.drift == [])
        world.nmcli("connection", "delete", *world.active().values())
        await wait_until("it is there again", lambda: kept.has("10.70.0.2/24"), within_s=60)


async def test_drift_that_is_only_told(world: World, kept: Kept) -> None:
    async with kept.running():
        await kept.apply("drift: report\n" + ONE)
        (uuid,) = world.active().values()
        world.nmcli("connection", "modify", uuid, "ipv4.addresses", "10.70.0.9/24")
        await wait_until("it is told", lambda: kept.troubles.drift != [], within_s=60)
        assert "    + ipv4.address-data: 10.70.0.2/24" in kept.troubles.drift
        assert "10.70.0.9" in world.nmcli("-f", "ipv4.addresses", "connection", "show", uuid)
        await kept.apply()
        assert kept.troubles.drift == []
        assert kept.has("10.70.0.2/24")
        world.nmcli("connection", "delete", *world.active().values())
        await wait_until("it is told", lambda: "add primary on reef0" in kept.troubles.drift, within_s=60)
        assert not world.addresses(PRIMARY)


async def test_the_firewall_is_put_up_again(
    world: World, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "LOOK_S", 0.5)
    async with kept.running():
        await kept.apply(ONE)
        before = world.snapshot()["firewall"]
        for harm in ("delete table inet coral_reef", "add rule inet coral_reef input accept"):
            world._start("nft", *harm.split()).wait()
            await wait_until("it is up again", lambda: world.snapshot()["firewall"] == before, within_s=60)


async def test_a_tunnel_that_comes_up_is_no_drift(
    world: World, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The firewall learns of its network, even where drift is only reported."""
    monkeypatch.setattr(keeping, "LOOK_S", 0.5)
    async with kept.running():
        await kept.apply("drift: report\n" + ONE)
        assert "10.88.0.0/24" not in world.snapshot()["firewall"]
        for words in (
            "link add wg0 type veth peer name elsewhere",
            "address add 10.88.0.1/24 dev wg0",
            "link set elsewhere up",
            "link set wg0 up",
        ):
            world._start("ip", *words.split()).wait()
        await wait_until(
            "the firewall knows it",
            lambda: '"wg0" . 10.88.0.0/24' in world.snapshot()["firewall"],
            within_s=60,
        )
        assert not kept.troubles.drift


async def test_a_change_again_and_again_is_not_fought_for_ever(
    world: World, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "LOOK_S", 0.1)
    monkeypatch.setattr(keeping, "REPAIRS_LIMIT", 2)
    async with kept.running():
        await kept.apply(ONE)

        def harmed() -> bool:
            world._start("nft", "delete", "table", "inet", "coral_reef").wait()
            return any("again and again" in line for line in kept.troubles.drift)

        await wait_until("it gives up", harmed, within_s=60)


async def test_networkmanager_is_killed_and_comes_back(world: World, kept: Kept) -> None:
    async with kept.running():
        await kept.apply(ONE)
        world.kill_nm()
        await wait_until("it is missed", lambda: kept.troubles.missing_manager != "")
        with pytest.raises(NetworkError, match="NetworkManager"):
            await kept.apply(OTHER)
        world.start_nm()
        await wait_until("it is found", lambda: kept.troubles.missing_manager == "", within_s=60)
        await kept.apply(OTHER)
        assert kept.has("10.70.0.3/24")


async def test_ports_that_can_only_be_guessed(kept: Kept) -> None:
    async with kept.running():
        await kept.apply(ONE + "  secondary: {type: ethernet}\n")
        assert kept.troubles.missing == {"secondary": "there is no ethernet device for it"}


async def test_without_a_firewall(world: World, kept: Kept) -> None:
    async with kept.running():
        await kept.apply(ONE)
        await kept.apply(ONE + "firewall: {enabled: false}\n")
        assert world.snapshot()["firewall"] == ""
        assert "everybody may connect" in kept.troubles.firewall_off
        await kept.apply(ONE)
        assert kept.troubles.firewall_off == ""
