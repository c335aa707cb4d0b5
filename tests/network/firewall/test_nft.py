"""Whatever the owner writes, nft takes it and understands what we mean: the real nft, in a network of its own."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Literal

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from appliance.config.network import Direction, Network, Role, Rule, RuleAction
from appliance.config.network import Firewall as Settings
from appliance.network.firewall.entry import Entry
from appliance.network.firewall.nft import COMMENT_BYTES, comment_of, key_of
from appliance.network.firewall.rules import Firewall, firewall_of
from appliance.network.firewall.zones import Zone
from tests.network.firewall.namespaces import Namespace

#: What could end a comment, or begin something else.
NASTY = [
    '"', '\\"', "'", "\\", '" accept #', "}", "; flush ruleset", "\x7f", "\u2028", "$x", "@set1", "*", "ü" * 70, "x" * 200,
    ": ", "in.rest", "include \"/etc/passwd\"", "\u202e", "\ud800",
]  # fmt: skip
NAMES = st.lists(st.sampled_from(NASTY) | st.text(st.characters(min_codepoint=32)), min_size=1).map("".join)

NETWORKS = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)), st.tuples(st.ip_addresses(v=6), st.integers(0, 128))
).map(lambda found: str(ip_network(found, strict=False)))

PORTS = st.tuples(st.integers(1, 65_535), st.integers(0, 3000)).map(
    lambda found: f"{found[0]}-{min(65_535, sum(found))}" if found[1] else str(found[0])
)

ZONES = (
    Zone("eth0", "primary", (ip_network("10.0.0.0/8"), ip_network("10.0.1.0/24"), ip_network("fe80::/64"))),
    Zone("eth1", "management", (ip_network("10.0.0.0/8"), ip_network("::/0"))),
    Zone("wg7", "vpn", (ip_network("10.8.0.0/24"), ip_network("0.0.0.0/0"))),
    Zone("usb0", "usb"),
    Zone("eth0.30", "cluster"),
)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    protocol: Literal["tcp", "udp", "icmp"] | None = draw(st.sampled_from([None, "tcp", "udp", "icmp"]))
    return Rule(
        name=draw(NAMES),
        action=draw(st.sampled_from(RuleAction)),
        direction=draw(st.sampled_from(Direction)),
        protocol=protocol,
        ports=() if protocol in {None, "icmp"} else tuple(draw(st.lists(PORTS, max_size=8))),
        networks=tuple(draw(st.lists(NETWORKS, max_size=12))),
        roles=tuple(draw(st.lists(st.sampled_from(Role), max_size=3))),
    )


@pytest.fixture(scope="module")
def net() -> Iterator[Namespace]:
    with Namespace("nft") as found:
        yield found


@pytest.mark.system
@hypothesis.settings(max_examples=150, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(found=st.lists(rules(), max_size=6), local_only=st.booleans())
def test_whatever_the_owner_writes(net: Namespace, found: list[Rule], local_only: bool) -> None:
    firewall = firewall_of(Network(firewall=Settings(allow_local_only=local_only, rules=tuple(found))), ZONES)
    net.run("nft", "-c", "-f", "-", stdin=firewall.text())
    net.run("nft", "-f", "-", stdin=firewall.text())
    assert net.run("nft", "list", "tables").split() == ["table", "inet", "coral_reef"]
    assert keys_in(net) == expected_keys(firewall)


def keys_in(net: Namespace) -> dict[str, list[str]]:
    """By chain: keys of the rules that nft has, in their order, each once; and what else they would be."""
    listing = msgspec.json.decode(net.run("nft", "--json", "list", "ruleset"))["nftables"]
    found: dict[str, dict[str, None]] = {}
    for each in listing:
        if "rule" in each:
            found.setdefault(each["rule"]["chain"], {})[key_of(each["rule"]["comment"])] = None
    return {chain: list(keys) for chain, keys in found.items()}


def expected_keys(firewall: Firewall) -> dict[str, list[str]]:
    chains = {"input": firewall.inbound, "output": firewall.outbound, "forward": firewall.forward}
    return {chain: [entry.key for entry in entries if not entry.idle] for chain, entries in chains.items()}


@hypothesis.given(NAMES, st.integers(1, 2000))
def test_comments(name: str, number: int) -> None:
    said = comment_of(Entry(f"owner.{number}", name, label=name))
    assert said[0] == said[-1] == '"'
    assert not set(said[1:-1]) & set('"\\\n\r\0')
    assert len(said[1:-1].encode()) <= COMMENT_BYTES
    assert key_of(said[1:-1]) == f"owner.{number}"
