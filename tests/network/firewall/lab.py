"""A tower and everybody around it, each in a network namespace, connected by cables (veth).

                    outsider            the internet, behind the router
                       |
 home (router) --- eth0|
 admin ----------- eth1|
 node ------------ eth2|
 disks ----------- eth3| tower
 ...                   |

Everybody has an IPv4 and an IPv6 address. Nobody but the tower filters.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import msgspec

from appliance.config.network import Firewall as FirewallSettings
from appliance.config.network import Network
from appliance.network.firewall.rules import Firewall, firewall_of
from appliance.network.firewall.table import Table
from appliance.network.firewall.zones import Zone
from tests.network.firewall.namespaces import Namespace, cable
from tests.waiting import wait_for

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

#: Who is there: the port of the tower that leads to them, and what the port is for; "" for nothing.
SIDES = {
    "home": ("eth0", "primary"),
    "admin": ("eth1", "management"),
    "node": ("eth2", "cluster"),
    "disks": ("eth3", "storage"),
    "second": ("eth4", "secondary"),
    "phone": ("wlan0", "wifi"),
    "balancer": ("eth5", "api"),
    "remote": ("wg0", ""),
    "stranger": ("eth6", ""),
    "desktop": ("usb0", "usb"),
}

#: setsockopt(2), without regard to net.core.rmem_max.
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 64 * 2**20

#: Flags of TCP's answer to who wants to connect (RFC 9293, section 3.1).
_SYN_ACK = 0x12

_OUTSIDE = {4: "203.0.113.9", 6: "2001:db8:9::9"}


@dataclass(frozen=True)
class Side:
    """Somebody near the tower. Addresses are by IP version; `tower` is the tower's own towards it."""

    name: str
    interface: str
    role: str
    net: Namespace
    addresses: dict[int, str]
    tower: dict[int, str]


class Lab:
    """`sides` by name; `outsider` reaches the tower through `home`."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.tower = stack.enter_context(Namespace("tower"))
        _quiet(self.tower)
        self.sides = {
            name: self._side(stack, number, name, interface, role)
            for number, (name, (interface, role)) in enumerate(SIDES.items(), 1)
        }
        self.sides["outsider"] = self._outsider(stack)
        self.table = Table(folder / "firewall.json", self.tower.run)

    def zones(self) -> tuple[Zone, ...]:
        """As network.yaml would have them, with static addresses."""
        return tuple(
            Zone(interface, role, (ip_network(f"10.{number}.0.0/24"), ip_network(f"fd00:{number}::/64")))
            for number, (interface, role) in enumerate(SIDES.values(), 1)
            if role
        )

    def load(self, network: Network, zones: Iterable[Zone] | None = None) -> Firewall:
        """The firewall of `network` is in effect."""
        firewall = firewall_of(network, tuple(self.zones() if zones is None else zones))
        self.table.load(firewall.text())
        return firewall

    def _side(self, stack: ExitStack, number: int, name: str, interface: str, role: str) -> Side:
        net = stack.enter_context(Namespace(name))
        _quiet(net)
        cable(self.tower, interface, net, "eth0")
        for version, form in ((4, "10.{}.0.{}/24"), (6, "fd00:{}::{}/64")):
            flags = ["nodad"] if version == 6 else []
            self.tower.run("ip", "address", "add", form.format(number, 1), "dev", interface, *flags)
            net.run("ip", "address", "add", form.format(number, 2), "dev", "eth0", *flags)
            net.run(
                "ip",
                f"-{version}",
                "route",
                "add",
                "default",
                "via",
                form.format(number, 1).partition("/")[0],
            )
        return Side(
            name,
            interface,
            role,
            net,
            {4: f"10.{number}.0.2", 6: f"fd00:{number}::2"},
            {4: f"10.{number}.0.1", 6: f"fd00:{number}::1"},
        )

    def _outsider(self, stack: ExitStack) -> Side:
        home = self.sides["home"]
        net = stack.enter_context(Namespace("outsider"))
        _quiet(net)
        cable(home.net, "eth1", net, "eth0", mtu=1300)
        home.net.set(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        for version, near, prefix in ((4, "203.0.113.1", 24), (6, "2001:db8:9::1", 64)):
            flags = ["nodad"] if version == 6 else []
            home.net.run("ip", "address", "add", f"{near}/{prefix}", "dev", "eth1", *flags)
            net.run("ip", "address", "add", f"{_OUTSIDE[version]}/{prefix}", "dev", "eth0", *flags)
            net.run("ip", f"-{version}", "route", "add", "default", "via", near)
            self.tower.run("ip", f"-{version}", "route", "add", "default", "via", home.addresses[version])
        return Side("outsider", home.interface, home.role, net, dict(_OUTSIDE), home.tower)


@contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """A lab without any firewall."""
    with ExitStack() as stack:
        yield Lab(stack, folder)


def settings(text: str, **firewall: object) -> Network:
    """What a network.yaml would say; `firewall` are its settings of that name."""
    network = msgspec.yaml.decode(text or "{}", type=Network)
    return msgspec.structs.replace(network, firewall=msgspec.convert(firewall, FirewallSettings))


def _quiet(net: Namespace) -> None:
    """Addresses that can be used at once, and answers as often as there are questions."""
    net.set(ipv6__conf__default__accept_dad=0, ipv6__conf__all__accept_dad=0, ipv4__icmp_ratelimit=0)
    net.set(ipv6__icmp__ratelimit=0)


class Observer:
    """Hears every packet of one protocol that reaches a namespace's own programs, whatever its port: a raw socket stands behind
    the filter and needs nobody who listens."""

    def __init__(self, net: Namespace, version: int, protocol: int) -> None:
        self._version = version
        self._socket = net.socket(FAMILIES[version], socket.SOCK_RAW, protocol)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def heard(self, source: str) -> list[bytes]:
        """What has come from `source` since the last call, from its transport header on."""
        packets: list[bytes] = []
        while True:
            try:
                packet, (address, *_) = self._socket.recvfrom(2048)
            except BlockingIOError:
                return packets
            if address == source:
                packets.append(packet[(packet[0] & 15) * 4 :] if self._version == 4 else packet)


def swept(
    source: Namespace,
    source_address: str,
    target: Namespace,
    address: str,
    protocol: int,
    ports: Iterable[int],
    *,
    within_s: float = 30.0,
) -> set[int]:
    """Those of `ports` at which a real socket's connection or datagram arrives: nobody need listen there, and none is lost."""
    version = 6 if ":" in address else 4
    with _one_processor(), Observer(target, version, protocol) as observer:
        arrived: set[int] = set()
        _sentinel(source, source_address, target, address, within_s)
        with source.here():
            for count, port in enumerate(ports):
                _send(version, protocol, (source_address, 0), (address, port))
                if count % 256 == 0:
                    arrived |= ports_of(observer.heard(source_address), protocol)
        _sentinel(source, source_address, target, address, within_s)
        return arrived | ports_of(observer.heard(source_address), protocol)


def _send(version: int, protocol: int, source: tuple[str, int], target: tuple[str, int]) -> None:
    with socket.socket(FAMILIES[version], KINDS[protocol]) as sender:
        sender.setblocking(False)
        sender.bind(source)
        # What a firewall of its own forbids, fails at once or vanishes.
        if protocol == TCP:
            sender.connect_ex(target)
        else:
            with suppress(OSError):
                sender.sendto(b"?", target)


def ports_of(packets: Iterable[bytes], protocol: int = TCP) -> set[int]:
    """To which they went; of TCP only those that are no answers."""
    return {
        int.from_bytes(packet[2:4], "big")
        for packet in packets
        if protocol == UDP or packet[13] & _SYN_ACK != _SYN_ACK
    }


def _sentinel(
    source: Namespace, source_address: str, target: Namespace, address: str, within_s: float
) -> None:
    """Returns when an ICMP error has arrived, which everybody lets through: everything sent before has arrived by then or never
    will, as one processor handles packets in their order."""
    version = 6 if ":" in address else 4
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    mark = os.urandom(8)
    with (
        Observer(target, version, protocol) as observer,
        source.socket(FAMILIES[version], socket.SOCK_RAW, protocol) as sender,
    ):
        sender.bind((source_address, 0))
        # The first may wait for the neighbour's address: what is queued behind it is short.
        sender.sendto(_icmp_error(version, mark), (address, 0))
        wait_for(
            f"an ICMP error from {source_address} reaches {address}",
            lambda: any(mark in packet for packet in observer.heard(source_address)),
            within_s=within_s,
            look_s=0.001,
        )


def _icmp_error(version: int, mark: bytes) -> bytes:
    """Destination unreachable, about a packet that nobody sent. The kernel fills in ICMPv6's checksum."""
    kind = 3 if version == 4 else 1
    packet = struct.pack("!BBHI", kind, 1, 0, 0) + mark
    words = struct.unpack(f"!{len(packet) // 2}H", packet)
    folded = sum(words)
    folded = (folded & 0xFFFF) + (folded >> 16)
    return packet[:2] + struct.pack("!H", ~folded & 0xFFFF) + packet[4:]


@contextmanager
def _one_processor() -> Iterator[None]:
    all_of_them = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(all_of_them)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_of_them)
