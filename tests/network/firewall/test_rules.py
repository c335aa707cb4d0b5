"""What network.yaml makes of the firewall, as data and in words; pure."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import msgspec
import pytest

from appliance.config.load import load_network
from appliance.config.network import Network
from appliance.network.firewall.cluster import discovery, members
from appliance.network.firewall.explain import explained
from appliance.network.firewall.nft import differ_in_networks_alone, removal
from appliance.network.firewall.rules import Firewall, firewall_of
from appliance.network.firewall.table import Counter
from appliance.network.firewall.zones import Zone

EXAMPLES = Path(__file__).parents[3] / "appliance/config/examples"

ZONES = (
    Zone("eth0", "primary", (ip_network("10.0.1.0/24"),)),
    Zone("eth1", "management"),
    Zone("eth2", "cluster"),
    Zone("eth0.40", "storage"),
)


def network(text: str) -> Network:
    return msgspec.yaml.decode(text or "{}", type=Network)


@pytest.mark.parametrize("example", ["local", "server", "cluster", "p2p_hub"])
def test_the_specifications_examples(example: str) -> None:
    found = firewall_of(load_network(EXAMPLES / f"{example}.yaml").settings, ZONES)
    keys = [entry.key for entry in (*found.inbound, *found.outbound, *found.forward)]
    assert len(set(keys)) == len(keys)
    assert ("in.not-local" in keys) == (example == "local")
    assert ("in.turns" in keys) == (example == "p2p_hub")
    assert ("in.etcd" in keys) == (example == "cluster")
    assert found.text().startswith(removal())
    assert "flush" not in found.text()


def test_no_firewall() -> None:
    assert firewall_of(network("firewall: {enabled: false}"), ZONES) == Firewall()
    assert Firewall().text() == ""


def test_the_same_settings_give_the_same_text() -> None:
    assert (
        firewall_of(network("mode: server"), ZONES).text()
        == firewall_of(network("mode: server"), ZONES).text()
    )


def test_a_lease_is_no_change_of_the_rules() -> None:
    settings = network("firewall: {allow_local_only: true}")
    before = firewall_of(settings, ZONES).text()
    leased = Zone("eth1", "management", (ip_network("10.0.10.0/24"), ip_network("fd00::/64")))
    after = firewall_of(settings, [*ZONES, leased]).text()
    assert differ_in_networks_alone(before, after)
    assert not differ_in_networks_alone(before, before)
    assert not differ_in_networks_alone(before, firewall_of(network(""), ZONES).text())
    assert not differ_in_networks_alone(before, "")


def test_a_port_of_the_api_that_is_another() -> None:
    text = firewall_of(network("api: {port: 9999}"), ZONES).text()
    assert "tcp dport 9999 counter accept" in text
    assert "8080" not in text


def test_one_interface_for_everything() -> None:
    """A tower with a single port: what its roles offer adds up."""
    found = firewall_of(network(""), [Zone("eth0", "primary"), Zone("eth0", "management")])
    offered = {entry.key for entry in found.inbound if "eth0" in entry.interfaces}
    assert {"in.api", "in.ssh", "in.metrics", "in.mdns", "in.echo"} <= offered


def test_names_of_a_cluster_are_not_looked_up() -> None:
    found = network(
        """
mode: cluster
cluster: {name: reef, node_id: a, discovery: "etcd://10.0.0.5,[fd00::5]:4001,etcd.example.org:4002",
          nodes: [{id: a, ip: 10.0.1.10}, {id: b, ip: 10.0.1.11/16}, {id: c, ip: "fd00::c"}]}
shared_storage: {type: iscsi, server: disks.example.org, path: iqn.2026-01.org.example:reef}
"""
    )
    assert members(found) == (ip_network("10.0.1.11/32"), ip_network("fd00::c/128"))
    assert discovery(found) == (
        ((ip_network("10.0.0.5/32"),), "2379"),
        ((ip_network("fd00::5/128"),), "4001"),
        ((), "4002"),
    )
    text = firewall_of(found, ZONES).text()
    assert "        tcp dport 3260 counter accept" in text
    assert "example" not in text


@pytest.mark.parametrize("name", ["", "a b", 'a"', "a*", "a\\", "a/b", "sixteen-letters!", "é", "\x7f"])
def test_names_that_nft_cannot_be_told(name: str) -> None:
    with pytest.raises(ValueError, match="no interface's name"):
        Zone(name, "primary")


def test_a_role_that_is_none() -> None:
    with pytest.raises(ValueError, match="'lan' is no role, expected one of api, cluster, management"):
        Zone("eth0", "lan")


def test_every_rule_in_words() -> None:
    firewall = firewall_of(
        network(
            """
firewall: {rules: [
  {name: my printer, action: accept, direction: out, protocol: tcp, ports: ["9100"], networks: [10.0.1.7/32]},
  {name: the neighbours, action: drop, networks: [10.1.0.0/16, 10.2.0.0/16, 10.3.0.0/16, 10.4.0.0/16, 10.5.0.0/16]},
  {name: guests, action: drop, roles: [wifi]}]}
"""
        ),
        ZONES,
    )
    said = list(explained(firewall, {"owner.1": Counter(3, 180)}))
    assert all(each.words and each.verdict in {"accept", "drop", "reject", "log"} for each in said)
    by_words = {each.words: each for each in said}
    printer = by_words["my printer"]
    assert (printer.direction, printer.which, printer.counter) == (
        "out",
        "tcp 9100 to 10.0.1.7/32",
        Counter(3, 180),
    )
    neighbours = by_words["the neighbours"]
    assert neighbours.which == "from 10.1.0.0/16, 10.2.0.0/16, 10.3.0.0/16, 10.4.0.0/16 and 1 more"
    assert by_words["guests"].idle == "no port is wifi now"
    assert by_words["SSH, from management alone"].which == "tcp 22 on eth1"
