"""Directly attached networks, as ip(8) tells of routes."""

from __future__ import annotations

import contextlib
from ipaddress import ip_network
from typing import Any

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from appliance.network.errors import CommandFailed
from appliance.network.firewall.attached import parse_routes, with_attached
from appliance.network.firewall.zones import Zone

#: As ip says it (iproute2 6.1); the last three are a router's advertisement, a route over several routers, and IPv4 over IPv6.
FOUR = """[
{"dst":"default","gateway":"192.168.1.1","dev":"eth0","protocol":"dhcp","metric":100,"flags":[]},
{"dst":"192.168.1.0/24","dev":"eth0","protocol":"kernel","scope":"link","prefsrc":"192.168.1.9","flags":[]},
{"dst":"172.16.0.0/12","gateway":"192.168.1.254","dev":"eth0","flags":[]},
{"dst":"10.8.0.0/24","dev":"wg0","scope":"link","flags":[]},
{"dst":"default","dev":"wg0","table":"51820","scope":"link","flags":[]},
{"type":"local","dst":"192.168.1.9","dev":"eth0","table":"local","scope":"host","flags":[]},
{"type":"broadcast","dst":"192.168.1.255","dev":"eth0","table":"local","flags":[]},
{"type":"unreachable","dst":"10.66.0.0/16","dev":"lo","flags":[]},
{"dst":"10.9.0.0/16","dev":"eth0","via":{"family":"inet6","host":"fe80::1"},"flags":[]},
{"dst":"10.10.0.0/16","flags":[],"nexthops":[{"gateway":"192.168.1.3","dev":"eth0","weight":1}]}]"""
SIX = """[
{"dst":"fe80::/64","dev":"eth0","protocol":"kernel","flags":[]},
{"dst":"2001:db8::/64","dev":"eth0","protocol":"ra","flags":[]},
{"type":"multicast","dst":"ff00::/8","dev":"eth0","table":"local","flags":[]},
{"dst":"default","gateway":"fe80::1","dev":"eth0","protocol":"ra","flags":[]}]"""


def ip(*words: str, stdin: str = "") -> str:
    assert words[:2] == ("ip", "-json")
    return FOUR if words[2] == "-4" else SIX


def test_zones_learn_their_networks() -> None:
    static = ip_network("10.20.0.0/24")
    assert with_attached([Zone("eth0", "primary", (static,)), Zone("eth1", "management")], ip) == (
        Zone(
            "eth0",
            "primary",
            (static, ip_network("192.168.1.0/24"), ip_network("2001:db8::/64"), ip_network("fe80::/64")),
        ),
        Zone("eth1", "management"),
        Zone("wg0", "vpn", (ip_network("10.8.0.0/24"),)),
    )


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | st.text() | st.sampled_from(["dst", "default", "unicast", "10.0.0.0/8"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["dst", "dev", "via", "type"]), inner),
)


@hypothesis.given(st.text() | JSON.map(lambda found: msgspec.json.encode(found).decode()))
def test_whatever_ip_says(said: str) -> None:
    with contextlib.suppress(CommandFailed):
        assert all(interface for interface, _ in parse_routes(said))


def test_too_much() -> None:
    with pytest.raises(CommandFailed, match="expected at most"):
        parse_routes(" " * (4 * 2**20 + 1))
    with pytest.raises(CommandFailed, match="unexpected"):
        parse_routes('[{"dst":"10.0.0.0/33","dev":"eth0"}]')
