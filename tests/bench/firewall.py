"""How long the firewall takes to be replaced, with 1,000 rules of the owner's.

In a network namespace of its own, with the real nft. The limit is nft alone, loading the same text; ours makes that text from the
settings, too, and looks how the kernel lists it, so that a change behind our back is noticed later.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

from appliance.config.network import Direction, Mode, Network, Rule, RuleAction
from appliance.config.network import Firewall as Settings
from appliance.network.firewall.rules import firewall_of
from appliance.network.firewall.table import Table
from appliance.network.firewall.zones import Zone
from tests.network.firewall.namespaces import Namespace

from .report import ms, row

RULES = 1000

#: Each side this often a round: nft's own time varies by half.
REPETITIONS = 5

ZONES = (
    Zone("eth0", "primary", (ip_network("192.168.1.0/24"), ip_network("fd00:1::/64"))),
    Zone("eth1", "management", (ip_network("10.0.10.0/24"),)),
)


def settings(rules: int) -> Network:
    """Rules as people write them: a port or two, a network or two, now and then an address family more."""
    return Network(
        mode=Mode.SERVER,
        firewall=Settings(
            rules=tuple(
                Rule(
                    name=f"rule {number} of a long list",
                    action=RuleAction.ACCEPT if number % 3 else RuleAction.DROP,
                    direction=Direction.OUT if number % 4 == 0 else Direction.IN,
                    protocol="udp" if number % 5 == 0 else "tcp",
                    ports=(str(1024 + number), f"{20_000 + number * 10}-{20_005 + number * 10}")[
                        : 1 + number % 2
                    ],
                    networks=(
                        f"10.{number % 250}.0.0/16",
                        f"fd00:{number:x}::/32",
                        f"172.16.{number % 250}.0/24",
                    )[: 1 + number % 3],
                )
                for number in range(1, rules + 1)
            )
        ),
    )


def measure(rounds: int) -> None:
    with Namespace("bench") as net, tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm") as folder:
        table = Table(Path(folder) / "firewall.json", net.run)
        for rules in (0, RULES):
            network = settings(rules)
            text = firewall_of(network, ZONES).text()

            def ours(network: Network = network) -> None:
                table.load(firewall_of(network, ZONES).text())

            def limit(text: str = text) -> None:
                net.run("nft", "-f", "-", stdin=text)

            times: dict[Callable[[], None], list[float]] = {ours: [], limit: []}
            for _ in range(rounds * REPETITIONS):
                for side, taken in times.items():
                    began = time.perf_counter()
                    side()
                    taken.append(time.perf_counter() - began)
            mine, least = (statistics.median(taken) for taken in times.values())
            row(f"firewall replaced, {rules:,} rules of the owner's", ms(mine), ms(least), mine / least)
            began = time.perf_counter()
            assert table.standing() == text, "ours was loaded last but one, and is the same"
            row(f"firewall looked at, {rules:,} rules of the owner's", ms(time.perf_counter() - began))
