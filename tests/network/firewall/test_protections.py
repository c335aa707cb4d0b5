"""Beside the tables of ports: who counts as local, who pretends, what any network needs, and the owner's rules."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Interface
from pathlib import Path

import msgspec
import pytest

from appliance.network.direct_mode import DirectMode, firewall, no_firewall
from appliance.network.firewall.attached import with_attached
from appliance.network.firewall.zones import Zone
from tests.network.firewall.lab import FAMILIES, TCP, UDP, Lab, Side, lab, settings, swept
from tests.network.firewall.namespaces import Namespace
from tests.waiting import wait_for

pytestmark = pytest.mark.system

API = [8080]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("firewall")) as found:
        yield found


@pytest.fixture
def own_place(tmp_path: Path) -> Iterator[Lab]:
    """For who changes addresses or routes."""
    with lab(tmp_path) as found:
        yield found


def reaches(place: Lab, side: Side, version: int, ports: list[int], protocol: int = TCP) -> set[int]:
    return swept(side.net, side.addresses[version], place.tower, side.tower[version], protocol, ports)


def without_networks(place: Lab) -> list[Zone]:
    """As for ports that get their addresses from somebody else."""
    return [Zone(zone.interface, zone.role) for zone in place.zones()]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("dynamic", [False, True])
def test_only_directly_attached_networks(place: Lab, version: int, dynamic: bool) -> None:
    """Static zones know their networks; of others, and of tunnels, the kernel's routes tell."""
    network = settings("mode: server", allow_local_only=True)
    zones = with_attached(without_networks(place), place.tower.run) if dynamic else place.zones()
    place.load(network, zones)
    for name in ("home", "admin", "second", "phone", "balancer"):
        assert reaches(place, place.sides[name], version, API) == {8080}, name
    assert reaches(place, place.sides["outsider"], version, API) == set()
    assert reaches(place, place.sides["remote"], version, API) == ({8080} if dynamic else set())
    place.load(settings("mode: server"), zones)
    assert reaches(place, place.sides["outsider"], version, API) == {8080}


def test_a_lease_that_changes(own_place: Lab) -> None:
    """Another network on a port: known as soon as the zones are looked at again."""
    home, network = own_place.sides["home"], settings("", allow_local_only=True)
    own_place.load(network, with_attached(without_networks(own_place), own_place.tower.run))
    own_place.tower.run("ip", "address", "add", "192.168.77.1/24", "dev", "eth0")
    home.net.run("ip", "address", "add", "192.168.77.2/24", "dev", "eth0")
    args = (home.net, "192.168.77.2", own_place.tower, "192.168.77.1", TCP, API)
    assert swept(*args) == set()
    own_place.load(network, with_attached(without_networks(own_place), own_place.tower.run))
    assert swept(*args) == {8080}


def test_a_route_through_a_router_is_not_attached(own_place: Lab) -> None:
    own_place.tower.run("ip", "route", "add", "203.0.113.0/24", "via", "10.1.0.2")
    own_place.tower.run("ip", "-6", "route", "add", "2001:db8:9::/64", "via", "fd00:1::2")
    own_place.load(
        settings("", allow_local_only=True), with_attached(without_networks(own_place), own_place.tower.run)
    )
    for version in (4, 6):
        assert reaches(own_place, own_place.sides["outsider"], version, API) == set()


def test_link_local_addresses_are_local(place: Lab) -> None:
    """A desktop without any configuration finds the tower by them."""
    place.load(settings("", allow_local_only=True), without_networks(place))
    home = place.sides["home"]
    said = place.tower.run("ip", "-json", "-6", "address", "show", "dev", "eth0", "scope", "link")
    address = next(each["local"] for each in msgspec.json.decode(said)[0]["addr_info"] if each)
    with place.tower.here():
        listener = socket.create_server(("::", 8080), family=socket.AF_INET6)
    with listener, home.net.here(), socket.create_connection((f"{address}%eth0", 8080), timeout=30):
        pass


@pytest.mark.parametrize("version", [4, 6])
def test_who_pretends_to_be_at_another_port(own_place: Lab, version: int) -> None:
    """The stranger takes the address of a client on the LAN."""
    own_place.load(settings(""), [*own_place.zones(), Zone("eth6", "secondary")])
    stranger, pretended = own_place.sides["stranger"], own_place.sides["home"].addresses[version]
    stranger.net.run("ip", "address", "add", f"{pretended}/{32 if version == 4 else 128}", "dev", "lo")
    target = (own_place.tower, stranger.tower[version], TCP, API)
    assert swept(stranger.net, stranger.addresses[version], *target) == {8080}
    assert swept(stranger.net, pretended, *target) == set()
    assert own_place.table.counters()["in.spoofed-port"].packets == 1


@pytest.mark.parametrize("version", [4, 6])
def test_nothing_goes_through_the_tower(own_place: Lab, version: int) -> None:
    """The tower would route: only its firewall is in the way."""
    own_place.tower.set(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
    home, admin = own_place.sides["home"], own_place.sides["admin"]
    home.net.run("ip", f"-{version}", "route", "replace", "default", "via", home.tower[version])
    args = (home.net, home.addresses[version], admin.net, admin.addresses[version])
    own_place.load(settings("", enabled=False))
    assert swept(*args, TCP, [443, 8080]) == {443, 8080}
    own_place.load(settings(""))
    with pytest.raises(AssertionError, match="an ICMP error"):
        swept(*args, TCP, [443, 8080], within_s=1.0)
    assert own_place.table.counters()["forward.rest"].packets > 0


def test_mdns(place: Lab) -> None:
    """Questions to everybody come in from clients, and the announcement goes out."""
    place.load(settings(""))
    for name, expected in (
        ("home", True),
        ("admin", True),
        ("remote", True),
        ("disks", False),
        ("stranger", False),
    ):
        for version, group in ((4, "224.0.0.251"), (6, "ff02::fb")):
            side = place.sides[name]
            inwards = told_to_group(side.net, "eth0", place.tower, side.interface, version, group)
            assert inwards is expected, (name, version)
            assert told_to_group(place.tower, side.interface, side.net, "eth0", version, group)


def told_to_group(
    source: Namespace,
    source_interface: str,
    target: Namespace,
    target_interface: str,
    version: int,
    group: str,
) -> bool:
    family = FAMILIES[version]
    with (
        target.socket(family, socket.SOCK_DGRAM) as ear,
        source.socket(family, socket.SOCK_DGRAM) as mouth,
    ):
        with target.here():
            index = socket.if_nametoindex(target_interface)
        with source.here():
            own = socket.if_nametoindex(source_interface)
        ear.bind(("", 5353))
        if version == 4:
            join = socket.inet_aton(group) + struct.pack("@4si", b"\0" * 4, index)
            ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, join)
            mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("@4s4si", b"", b"", own))
        else:
            join = socket.inet_pton(family, group) + struct.pack("@I", index)
            ear.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, join)
            mouth.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, own)
        mark = os.urandom(8)

        def told() -> bool:
            mouth.sendto(mark, (group, 5353))
            try:
                return ear.recv(64) == mark
            except BlockingIOError:
                return False

        try:
            return wait_for("it is heard", told, within_s=0.5)
        except AssertionError:
            return False


def test_answers_of_a_dhcp_server(place: Lab) -> None:
    """To a question that went to everybody: nothing but the ports tells that it is one."""
    place.load(settings(""))
    for side in place.sides.values():
        for source, expected in ((67, True), (6767, side.name == "desktop")):
            with (
                place.tower.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear,
                side.net.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth,
            ):
                ear.bind((side.tower[4], 68))
                mouth.bind((side.addresses[4], source))
                assert datagram(mouth, ear, (side.tower[4], 68)) is expected, (side.name, source)


def datagram(mouth: socket.socket, ear: socket.socket, target: tuple[str, int]) -> bool:
    def told() -> bool:
        try:
            mouth.sendto(b"!", target)
            return bool(ear.recv(64))
        except OSError:
            return False

    try:
        return wait_for("it is heard", told, within_s=0.3)
    except AssertionError:
        return False


@pytest.mark.parametrize("version", [4, 6])
def test_ping(place: Lab, version: int) -> None:
    place.load(settings(""))
    for side in place.sides.values():
        expected = side.name not in {"disks", "stranger"}
        assert pinged(side.net, side.tower[version], version) is expected, side.name
        assert pinged(place.tower, side.addresses[version], version), side.name


def pinged(net: Namespace, address: str, version: int) -> bool:
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    mark = os.urandom(8)
    # Another one of before would make it an established conversation.
    number = int.from_bytes(os.urandom(2), "big")
    packet = struct.pack("!BBHHH", 8 if version == 4 else 128, 0, 0, number, 1) + mark
    total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    total = (total & 0xFFFF) + (total >> 16)
    packet = packet[:2] + struct.pack("!H", ~total & 0xFFFF) + packet[4:]
    with net.socket(FAMILIES[version], socket.SOCK_RAW, protocol) as sender:

        def answered() -> bool:
            sender.sendto(packet, (address, 0))
            try:
                while True:
                    answer = sender.recv(256)
                    kind = answer[(answer[0] & 15) * 4] if version == 4 else answer[0]
                    if mark in answer and kind == (0 if version == 4 else 129):
                        return True
            except BlockingIOError:
                return False

        try:
            return wait_for("an answer", answered, within_s=0.5)
        except AssertionError:
            return False


@pytest.mark.parametrize("version", [4, 6])
def test_large_packets_find_their_size(place: Lab, version: int) -> None:
    """Behind the router the way is narrower (1,300 bytes): it says so by ICMP, and what the API sends arrives."""
    place.load(settings(""))
    side = place.sides["outsider"]
    with place.tower.here():
        listener = socket.create_server((side.tower[version], 8080), family=FAMILIES[version])
    with side.net.here():
        near = socket.create_connection((side.tower[version], 8080), timeout=30)
    far, _ = listener.accept()
    with listener, near, far:
        content = os.urandom(100_000)
        far.settimeout(30)
        received = b""
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(content))
        far.sendall(content)
        while len(received) < len(content):
            part = near.recv(65536)
            assert part
            received += part
        assert received == content
    found = place.tower.run("ip", f"-{version}", "route", "get", side.addresses[version])
    assert "mtu 1300" in found


def test_the_owners_rules_come_first(place: Lab) -> None:
    place.load(
        settings(
            "mode: server",
            allow_local_only=True,
            rules=[
                {"name": "one outsider", "action": "accept", "protocol": "tcp", "ports": ["8080"],
                 "networks": ["203.0.113.9/32", "2001:db8:9::9/128"]},
                {"name": "no SSH", "action": "drop", "protocol": "tcp", "ports": ["22"]},
                {"name": "SSH after all: too late", "action": "accept", "protocol": "tcp", "ports": ["20-25"]},
                {"name": "a game", "action": "accept", "protocol": "udp", "ports": ["27000-27010", "27020"], "roles": ["wifi"]},
                {"name": "both", "action": "accept", "ports": ["7000"], "roles": ["secondary"]},
                {"name": "many networks", "action": "accept", "protocol": "tcp", "ports": ["1-2", "3-4", "9", "11", "13", "15"],
                 "networks": [f"10.9.0.{each}/32" for each in (1, 2, 3, 5, 7, 9)] + ["10.4.0.0/24"]},
                {"name": "nobody pings", "action": "drop", "protocol": "icmp", "networks": ["fd00:1::/64"]},
                {"name": "a printer", "action": "accept", "direction": "out", "protocol": "tcp", "ports": ["9100"],
                 "networks": ["10.5.0.0/24"]},
                {"name": "no HTTPS there", "action": "drop", "direction": "out", "networks": ["10.6.0.0/24"]},
                {"name": "no USB", "action": "drop", "roles": ["usb"]},
                {"name": "nothing at all from USB", "action": "drop", "networks": ["10.10.0.0/24"]},
            ],
        )
    )  # fmt: skip
    sides = place.sides
    for version in (4, 6):
        assert reaches(place, sides["outsider"], version, [8080, 8443]) == {8080}
        assert reaches(place, sides["admin"], version, [20, 22, 25, 9090]) == {20, 25, 9090}
        assert reaches(place, sides["phone"], version, [26999, 27000, 27010, 27020], UDP) == {
            27000,
            27010,
            27020,
        }
        assert reaches(place, sides["home"], version, [27000, 27010], UDP) == set()
        assert reaches(place, sides["second"], version, [7000]) == {7000}
        assert reaches(place, sides["second"], version, [7000], UDP) == {7000}
        assert reaches(place, sides["disks"], version, [1, 4, 5, 9]) == ({1, 4, 9} if version == 4 else set())
        assert pinged(sides["home"].net, sides["home"].tower[version], version) is (version == 4)
        assert reaches(place, sides["desktop"], version, [1, 22, 8080]) == {1, 22, 8080}
        printer, phone = sides["second"], sides["phone"]
        out = (place.tower, printer.tower[version], printer.net, printer.addresses[version], TCP, [9100, 443])
        assert swept(*out) == ({9100, 443} if version == 4 else {443})
        out = (place.tower, phone.tower[version], phone.net, phone.addresses[version], TCP, [443])
        assert swept(*out) == (set() if version == 4 else {443})


def test_the_usb_link_has_its_own_table(place: Lab) -> None:
    """Both must let a packet through: that one decides, whatever the owner's rules say."""
    place.load(
        settings(
            "",
            rules=[
                {"name": "nobody", "action": "drop"},
                {"name": "no one", "action": "drop", "direction": "out"},
            ],
        )
    )
    desktop = place.sides["desktop"]
    place.tower.run("nft", "-f", "-", stdin=firewall(DirectMode(IPv4Interface(f"{desktop.tower[4]}/24"))))
    with desktop.net.here():
        # That table lets no ICMP error in, by which `reaches` would know that it has tried: nobody listens, and who gets through
        # is told so.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((desktop.tower[4], 8080), timeout=30)
        for port in (22, 8443):
            with pytest.raises(TimeoutError):
                socket.create_connection((desktop.tower[4], port), timeout=0.5)
    assert pinged(desktop.net, desktop.tower[4], 4)
    assert reaches(place, place.sides["home"], 4, [22, 8080, 8443]) == set()
    place.tower.run("nft", "-f", "-", stdin=no_firewall())


def test_a_forbidden_destination_says_so_at_once(place: Lab) -> None:
    """A program in the tower need not wait until its patience ends."""
    place.load(settings(""))
    for version, side in ((4, place.sides["home"]), (6, place.sides["home"])):
        with (
            place.tower.here(),
            pytest.raises(OSError, match=r"No route to host|Permission denied"),
        ):
            socket.create_connection((side.addresses[version], 80), timeout=60)


def test_our_own_wifi_gives_addresses(place: Lab) -> None:
    """Only where it is our own, and nobody's address is nobody's sender."""
    for mode, expected in (("access-point", {53, 67}), ("client", set())):
        place.load(settings(f"interfaces: {{wifi: {{type: wifi, wifi: {{ssid: reef, mode: {mode}}}}}}}"))
        phone = place.sides["phone"]
        assert reaches(place, phone, 4, [53, 67, 68], UDP) == expected
        assert reaches(place, phone, 4, [53], TCP) == expected - {67}
        assert reaches(place, place.sides["home"], 4, [53, 67], UDP) == set()
