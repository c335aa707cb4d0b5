"""Who reaches which port, and whom the tower reaches: the specification's tables, tried with real sockets from every side.

With --long every port from 1 to 65,535 is tried, else those of the tables, their neighbours, and others at random.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import pytest

from appliance.config.network import Mode
from tests.network.firewall.lab import TCP, UDP, Lab, Side, lab, settings, swept

pytestmark = [pytest.mark.system, pytest.mark.timeout(3600)]

CLIENTS = {"home", "second", "phone", "balancer", "remote", "outsider"}

CLUSTER = """
mode: cluster
cluster:
  name: reef
  node_id: node-1
  discovery: etcd://10.2.0.2:2379,[fd00:2::2]:4001,etcd.example.org:4002
  nodes: [{id: node-1, ip: 10.1.0.1}, {id: node-2, ip: 10.1.0.2}]
shared_storage: {type: nfs, server: 10.4.0.2, path: /shared}
"""
MODES = {mode: f"mode: {mode}\n" for mode in Mode} | {Mode.CLUSTER: CLUSTER}

API = {8080, 8443}
MEMBERS = {2379, 2380, 5432}
RELAYS = set(range(49152, 65536))
EVERY = set(range(1, 65536))


def expected_in(mode: Mode, side: str, version: int) -> dict[int, set[int]]:
    """TCP and UDP ports that the tables open to `side`."""
    tcp: set[int] = set()
    udp: set[int] = set()
    if side == "desktop":
        return {TCP: EVERY, UDP: EVERY}  # its own table, which is not here, decides
    if side in CLIENTS:
        tcp |= API
    if side == "admin":
        tcp |= API | {22, 9090}
    if mode is Mode.P2P_HUB and side in CLIENTS:
        tcp |= {3478, 5349}
        udp |= {3478} | RELAYS
    if mode is Mode.CLUSTER:
        if side == "node":
            tcp |= MEMBERS | API
        if side == "home" and version == 4:
            tcp |= MEMBERS  # node-2
    return {TCP: tcp, UDP: udp}


def expected_out(mode: Mode, side: str, version: int) -> dict[int, set[int]]:
    """The same for what the tower begins."""
    tcp, udp = {443, 53}, {53, 123}
    if side == "desktop":
        return {TCP: EVERY, UDP: EVERY}
    if mode is Mode.P2P_HUB:
        udp = EVERY
    if mode is Mode.CLUSTER:
        tcp.add(4002)  # of an etcd that could be anywhere
        if side == "node":
            tcp |= MEMBERS | API
        if side == "home" and version == 4:
            tcp |= MEMBERS | API
        if side == "admin":
            tcp.add(2379 if version == 4 else 4001)
        if side == "disks" and version == 4:
            tcp.add(2049)
    return {TCP: tcp, UDP: udp}


INTERESTING = {
    port + near
    for port in (
        1,
        22,
        53,
        68,
        80,
        111,
        123,
        443,
        546,
        2049,
        2379,
        3260,
        3478,
        4001,
        4002,
        5349,
        5353,
        5432,
        8080,
        8443,
        9090,
    )
    for near in (-1, 0, 1)
} - {0} | {49151, 49152, 65535}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("firewall")) as found:
        yield found


@pytest.fixture(scope="module")
def ports(long_run: bool) -> list[int]:
    if long_run:
        return sorted(EVERY)
    return sorted(INTERESTING | set(random.sample(sorted(EVERY), 200)))


@pytest.mark.parametrize("mode", Mode)
def test_into_the_tower(place: Lab, ports: list[int], mode: Mode) -> None:
    place.load(settings(MODES[mode]))
    wrong = []
    for side in place.sides.values():
        for version, protocol in product():
            arrived = inwards(place, side, version, protocol, ports)
            wrong += differences(
                side, version, protocol, arrived, expected_in(mode, side.name, version)[protocol] & set(ports)
            )
    assert not wrong


@pytest.mark.parametrize("mode", Mode)
def test_out_of_the_tower(place: Lab, ports: list[int], mode: Mode) -> None:
    place.load(settings(MODES[mode]))
    wrong = []
    for side in place.sides.values():
        for version, protocol in product():
            arrived = outwards(place, side, version, protocol, ports)
            wrong += differences(
                side,
                version,
                protocol,
                arrived,
                expected_out(mode, side.name, version)[protocol] & set(ports),
            )
    assert not wrong


def test_without_a_firewall(place: Lab, ports: list[int]) -> None:
    place.load(settings("", enabled=False))
    for side in place.sides.values():
        for version, protocol in product():
            assert inwards(place, side, version, protocol, ports) == set(ports), side.name
            assert outwards(place, side, version, protocol, ports) == set(ports), side.name


def product() -> Iterator[tuple[int, int]]:
    return ((version, protocol) for version in (4, 6) for protocol in (TCP, UDP))


def inwards(place: Lab, side: Side, version: int, protocol: int, ports: Iterable[int]) -> set[int]:
    return swept(side.net, side.addresses[version], place.tower, side.tower[version], protocol, ports)


def outwards(place: Lab, side: Side, version: int, protocol: int, ports: Iterable[int]) -> set[int]:
    return swept(place.tower, side.tower[version], side.net, side.addresses[version], protocol, ports)


def differences(side: Side, version: int, protocol: int, arrived: set[int], expected: set[int]) -> list[str]:
    if arrived == expected:
        return []
    name = "TCP" if protocol == TCP else "UDP"
    return [
        f"{side.name}, IPv{version}, {name}: open {sorted(arrived - expected)[:9]}, closed {sorted(expected - arrived)[:9]}"
    ]
