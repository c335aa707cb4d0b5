"""How long a change of the network takes, and how long it takes to see that there is none.

Real NetworkManager, nft and cables (veth) in namespaces of their own. The peer is nmcli, which changes the address of a profile
and activates it; ours also takes a checkpoint, writes down how to go back, looks whether it is so, and keeps the old text.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from textwrap import dedent

from appliance.network.keeper import Keeper
from tests.network.real_nm import World, real_nm
from tests.waiting import wait_until

from .report import ms, row

#: Each side this often a round.
REPETITIONS = 5

NO_OP_GOAL_S = 0.050

TEXT = dedent("""\
    interfaces:
      primary: {{type: ethernet, match: {{interface: reef0}}, ip: 10.70.0.{host}, gateway: 10.70.0.1, ipv6: off}}
    """)


def measure(rounds: int) -> None:
    with real_nm(cables=2) as world:
        world.nmcli("connection", "add", "type", "ethernet", "ifname", "reef1", "con-name", "peer",
                    "ipv4.method", "manual", "ipv4.addresses", "10.71.0.2/24", "ipv6.method", "disabled")  # fmt: skip
        asyncio.run(_measure(world, rounds))


async def _measure(world: World, rounds: int) -> None:
    folder = Path(world.folder)
    keeper = Keeper(folder / "network.yaml", folder / "state", folder / "firewall.json", lambda _: None)
    task = asyncio.create_task(keeper.run())
    try:
        await wait_until("it has begun", lambda: keeper._manager is not None)
        await keeper.apply(TEXT.format(host=2), confirm_s=0, by="", why="")
        nothing, ours, peers = [], [], []
        for number in range(rounds * REPETITIONS):
            host = 3 + number % 2
            began = time.perf_counter()
            said = await keeper.apply(None, confirm_s=0, by="", why="")
            nothing.append(time.perf_counter() - began)
            assert "nothing was changed" in said
            began = time.perf_counter()
            await keeper.apply(TEXT.format(host=host), confirm_s=0, by="", why="")
            ours.append(time.perf_counter() - began)
            assert world.addresses("reef0") == {f"10.70.0.{host}/24"}
            began = time.perf_counter()
            await asyncio.to_thread(_by_nmcli, world, f"10.71.0.{host}/24")
            peers.append(time.perf_counter() - began)
            assert world.addresses("reef1") == {f"10.71.0.{host}/24"}
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    quickest = statistics.median(nothing)
    row("network.yaml applied, nothing to do", ms(quickest), ms(NO_OP_GOAL_S), quickest / NO_OP_GOAL_S)
    our, peer = statistics.median(ours), statistics.median(peers)
    row("a static address changed and verified, against nmcli", ms(our), ms(peer), our / peer)


def _by_nmcli(world: World, address: str) -> None:
    world.nmcli("connection", "modify", "peer", "ipv4.addresses", address)
    world.nmcli("connection", "up", "peer")
