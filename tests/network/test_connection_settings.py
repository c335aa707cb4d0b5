"""Settings on their way to NetworkManager and back."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.network.connection_settings import decode, encode
from appliance.network.errors import BadSettings
from appliance.network.profiles import OWNED, Settings, owned
from appliance.system_bus import Typed, plain

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
names = st.text(string.ascii_lowercase, min_size=1, max_size=12)

hosts = {4: st.ip_addresses(v=4).map(str), 6: st.ip_addresses(v=6).map(str)}


def networks(family: int) -> st.SearchStrategy[str]:
    prefixes = st.integers(0, 32 if family == 4 else 128)

    def of(pair: tuple[Any, int]) -> str:
        from ipaddress import ip_network

        return str(ip_network(f"{pair[0]}/{pair[1]}", strict=False))

    return st.tuples(st.ip_addresses(v=family), prefixes).map(of)  # type: ignore[arg-type]


def routes(family: int) -> st.SearchStrategy[str]:
    via = st.one_of(st.just(""), hosts[family].map(lambda each: f" via {each}"))
    metric = st.one_of(st.just(""), st.integers(0, 2**32 - 1).map(lambda each: f" metric {each}"))
    return st.tuples(networks(family), via, metric).map("".join)


def ip(family: int) -> st.SearchStrategy[dict[str, Any]]:
    length = 32 if family == 4 else 128
    addresses = st.tuples(hosts[family], st.integers(0, length)).map(lambda each: f"{each[0]}/{each[1]}")
    rules = st.tuples(st.integers(0, 99), networks(family), st.integers(1, 99)).map(
        lambda each: f"{each[0]} from {each[1]} table {each[2]}"
    )
    return st.fixed_dictionaries(
        {"method": st.sampled_from(["auto", "manual", "disabled"])},
        optional={
            "address-data": st.lists(addresses, max_size=3),
            "gateway": hosts[family],
            "dns": st.lists(hosts[family], max_size=3),
            "dns-search": st.lists(names, max_size=3),
            "route-data": st.lists(routes(family), max_size=3),
            "routing-rules": st.lists(rules, max_size=3),
            "route-table": st.integers(0, 2**32 - 1),
            "route-metric": st.integers(-1, 2**32 - 1),
            "may-fail": st.booleans(),
        },
    )


def options() -> st.SearchStrategy[list[str]]:
    def of(found: dict[str, str]) -> list[str]:
        return [f"{key}={found[key]}" for key in sorted(found, key=lambda key: (key != "mode", key))]

    return st.dictionaries(names, words, max_size=4).map(of)


ssids = st.binary(min_size=1, max_size=32).map(lambda name: name.decode("utf-8", "surrogateescape"))

settings = st.fixed_dictionaries(
    {
        "connection": st.fixed_dictionaries(
            {"id": words, "type": names}, optional={"autoconnect": st.booleans(), "mdns": st.integers(-1, 2)}
        ),
        "ipv4": ip(4),
        "ipv6": ip(6),
    },
    optional={
        "802-3-ethernet": st.fixed_dictionaries({"mtu": st.integers(0, 2**32 - 1)}),
        "vlan": st.fixed_dictionaries({"id": st.integers(0, 4095), "parent": names}),
        "bond": st.fixed_dictionaries({"options": options()}),
        "802-11-wireless": st.fixed_dictionaries({"ssid": ssids, "hidden": st.booleans()}),
        "802-11-wireless-security": st.fixed_dictionaries({"key-mgmt": names}),
        "802-1x": st.fixed_dictionaries(
            {"eap": st.lists(names, max_size=2), "ca-cert": words.map(lambda path: f"/{path}")}
        ),
    },
)


@given(settings)
def test_there_and_back(wanted: Settings) -> None:
    assert decode(encode(wanted)) == owned(wanted)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.binary(max_size=40),
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=10), each, max_size=4),
    max_leaves=8,
)
keys_of_all = sorted({"dns-data", *(key for keys in OWNED.values() for key in keys)})
entries = st.dictionaries(
    st.sampled_from(
        ["address", "prefix", "dest", "next-hop", "metric", "family", "from", "from-len", "table", "x"]
    ),
    anything,
    max_size=5,
)
hostile = st.dictionaries(
    st.sampled_from([*OWNED, "user"]),
    st.dictionaries(st.sampled_from(keys_of_all), anything | st.lists(entries, max_size=3), max_size=8)
    | anything,
    max_size=6,
)


@given(hostile)
def test_whatever_comes_is_settings_or_a_named_error(raw: dict[str, Any]) -> None:
    try:
        found = decode(raw)
    except BadSettings:
        return
    assert owned(found) == found
    try:
        again = encode(found)
    except BadSettings:
        return  # what only others say, in words of theirs
    assert decode(again) == found


@pytest.mark.parametrize(
    ("section", "key", "value", "why"),
    [
        ("connection", "id", "x" * 20_000, "at most 16384 characters"),
        ("ipv4", "dns-data", ["10.0.0.1"] * 2000, "at most 1024 entries"),
        ("802-11-wireless", "ssid", b"x" * 33, "at most 32 bytes"),
        ("802-1x", "ca-cert", b"x" * 20_000, "at most 16384 bytes"),
        ("ipv4", "address-data", [{"address": "10.0.0.1"}], "ipv4.address-data: 'prefix'"),
        ("vlan", "id", True, "vlan.id: expected a number, found bool"),
    ],
)
def test_limits(section: str, key: str, value: Any, why: str) -> None:
    with pytest.raises(BadSettings, match=why):
        decode({section: {key: value}})


def test_too_many_sections_and_keys() -> None:
    with pytest.raises(BadSettings, match="at most 64 sections"):
        decode({f"s{number}": {} for number in range(100)})
    with pytest.raises(BadSettings, match="ipv4: expected at most 256 keys"):
        decode({"ipv4": {f"k{number}": 1 for number in range(300)}})


@pytest.mark.parametrize(
    ("section", "key", "value", "why"),
    [
        ("ipv4", "address-data", ["fd00::1/64"], "expected an IPv4 address, found 'fd00::1'"),
        ("ipv6", "dns", ["fe80::1%eth0"], "expected an IPv6 address"),
        ("ipv4", "route-data", ["10.0.0.0/8 by 10.0.0.1"], r"expected NETWORK \[via ROUTER\] \[metric N\]"),
        ("ipv4", "routing-rules", ["from 10.0.0.1"], "expected PRIORITY from ADDRESS/PREFIX table N"),
        ("bond", "options", ["mode"], "expected NAME=VALUE"),
        ("802-11-wireless", "ssid", "", "expected 1 to 32 bytes, found 0"),
        ("802-1x", "ca-cert", "relative.pem", "expected an absolute path"),
        ("802-3-ethernet", "mtu", -1, "expected 0 to 4294967295, found -1"),
        ("connection", "id", "a\0b", "a NUL character"),
        ("connection", "stable-id", "x", "not a key of ours"),
    ],
)
def test_what_is_refused(section: str, key: str, value: Any, why: str) -> None:
    with pytest.raises(BadSettings, match=f"{section}.{key}: {why}"):
        encode({section: {key: value}})


def test_what_others_add_makes_a_difference() -> None:
    """A route or rule of ours that somebody gave more to is not the one that we want."""
    route = {"dest": Typed("s", "10.0.0.0"), "prefix": Typed("u", 8), "table": Typed("u", 5)}
    assert decode({"ipv4": {"route-data": [plain(route)]}}) == {
        "ipv4": {"route-data": ["10.0.0.0/8 table=5"]}
    }
    rule = {"family": 2, "priority": 1, "to": "10.0.0.0"}
    assert decode({"ipv4": {"routing-rules": [rule]}}) == {
        "ipv4": {"routing-rules": ["rule family=2 priority=1 to=10.0.0.0"]}
    }
