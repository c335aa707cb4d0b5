"""What may leave the tower, by mode: the specification's table "Outbound rules", and what any network needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from appliance.config.network import Mode, Network
from appliance.network.direct_mode import INTERFACE as USB

from .cluster import ETCD, POSTGRESQL, STORAGE, discovery, members, where
from .entry import Entry, Verdict, on_ports
from .inbound import ECHO, HTTPS, ICMP_ERRORS, MDNS, is_access_point
from .zones import Zone, interfaces

_NEIGHBOURS = (
    "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } ip6 hoplimit 255",
    "icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report }",
)


def foundations() -> Iterator[Entry]:
    """Before the owner's rules."""
    yield Entry("out.loopback", "the tower talks to itself", interfaces=("lo",))
    yield Entry("out.usb", "the USB link has a table of its own", interfaces=(USB,))
    yield Entry(
        "out.established",
        "what belongs to a connection that was let through",
        match=("ct state { established, related }",),
    )
    yield Entry("out.icmp-errors", "errors about packets that came, path MTU too", match=ICMP_ERRORS)
    yield Entry("out.neighbours", "IPv6 neighbours and routers find one another", match=_NEIGHBOURS)
    yield Entry(
        "out.igmp", "tells switches that we listen to mDNS", match=("ip protocol igmp ip daddr 224.0.0.0/4",)
    )
    yield Entry(
        "out.dhcp",
        "asks DHCP servers for addresses",
        match=("udp sport 68 udp dport 67", "udp sport 546 udp dport 547 ip6 saddr fe80::/10"),
    )


def destinations(network: Network, zones: Sequence[Zone]) -> Iterator[Entry]:
    """What the tower itself begins."""
    yield Entry("out.https", "HTTPS: updates, APIs, models", protocol="tcp", ports=("443",))
    yield Entry("out.dns-udp", "names", protocol="udp", ports=("53",))
    yield Entry("out.dns-tcp", "names, long answers", protocol="tcp", ports=("53",))
    yield Entry("out.ntp", "time", protocol="udp", ports=("123",))
    yield Entry("out.echo", "ping", match=ECHO)
    yield Entry("out.mdns", "announces coral-reef.local", protocol="udp", ports=("5353",), match=MDNS)
    yield Entry(
        "out.mdns-answers",
        "tells who asked by mDNS, on a directly attached network",
        match=(
            "oifname . ip daddr @attached_to4 udp sport 5353",
            "oifname . ip6 daddr @attached_to6 udp sport 5353",
            "ip6 daddr fe80::/10 udp sport 5353",
        ),
    )
    if is_access_point(network):
        yield Entry(
            "out.ap-dhcp",
            "addresses for who joins our Wi-Fi",
            interfaces=interfaces(zones, "wifi"),
            match=("udp sport 67 udp dport 68",),
        )
    if network.mode is Mode.P2P_HUB:
        yield Entry("out.webrtc", "WebRTC and TURN to peers, on whichever port they have", protocol="udp")
    if network.mode is Mode.CLUSTER:
        yield from _cluster(network, zones)


def _cluster(network: Network, zones: Sequence[Zone]) -> Iterator[Entry]:
    cluster, nodes = interfaces(zones, "cluster"), members(network)
    for key, words, ports in (
        ("etcd", "etcd", (ETCD,)),
        ("postgresql", "PostgreSQL: conversations of the cluster", (POSTGRESQL,)),
        ("balance", "HAProxy passes requests on to other nodes", (str(network.api.port), str(HTTPS))),
    ):
        yield on_ports(f"out.{key}", f"{words}, on the cluster's network", cluster, "tcp", *ports)
        yield Entry(
            f"out.{key}-members",
            f"{words}, to the cluster's nodes",
            protocol="tcp",
            ports=ports,
            networks=nodes,
            idle="" if nodes else "network.yaml names no other node",
        )
    for number, (networks, port) in enumerate(discovery(network), 1):
        yield Entry(
            f"out.discovery-{number}",
            "the etcd of cluster.discovery",
            protocol="tcp",
            ports=(port,),
            networks=networks,
        )
    if network.shared_storage is not None:
        kind = network.shared_storage.type
        yield Entry(
            "out.storage",
            f"shared storage ({kind})",
            protocol="tcp",
            ports=(STORAGE[kind],),
            networks=where(network.shared_storage.server),
        )


def rest() -> Iterator[Entry]:
    """What nothing above has let through. Rejected: the program that wanted it learns so at once."""
    yield Entry("out.log", "logged, at most 10 a minute", Verdict.LOG)
    yield Entry("out.rest", "everything else", Verdict.REJECT)
