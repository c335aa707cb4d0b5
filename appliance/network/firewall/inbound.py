"""What may come into the tower, by mode and role: the specification's table "Inbound rules", and what any network needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from appliance.config.network import Mode, Network, Role, WifiMode
from appliance.network.direct_mode import INTERFACE as USB

from .cluster import ETCD, POSTGRESQL, members
from .entry import Entry, Verdict, on_ports
from .zones import CLIENTS, Zone, interfaces

#: TLS in any case, beside `api.port`.
HTTPS = 8443

#: Relayed addresses of a TURN server: RFC 8656, section 7.2; coturn's min-port and max-port.
TURN_RELAYS = "49152-65535"

#: What IPv6 is nothing without (RFC 4890, sections 4.3.1 and 4.4.1); a router in between would have lowered the hop limit.
_NEIGHBOURS = (
    "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } ip6 hoplimit 255",
    "icmpv6 type { mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } ip6 saddr fe80::/10",
)

#: Errors about what was sent, also when it is forgotten by now: without them, large packets vanish in tunnels.
ICMP_ERRORS = (
    "icmp type { destination-unreachable, time-exceeded, parameter-problem }",
    "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }",
)

ECHO = ("icmp type echo-request", "icmpv6 type echo-request")

MDNS = ("ip daddr 224.0.0.251", "ip6 daddr ff02::fb")


def foundations() -> Iterator[Entry]:
    """Before the owner's rules: without these the tower has no network, or no way in is left."""
    yield Entry("in.loopback", "the tower talks to itself", interfaces=("lo",))
    yield Entry("in.usb", "the USB link has a table of its own", interfaces=(USB,))
    yield Entry(
        "in.established",
        "what belongs to a connection that was let through",
        match=("ct state { established, related }",),
    )
    yield Entry("in.icmp-errors", "errors about packets that the tower sent, path MTU too", match=ICMP_ERRORS)
    yield Entry("in.neighbours", "IPv6 neighbours and routers find one another", match=_NEIGHBOURS)
    yield Entry(
        "in.igmp", "switches ask who listens to mDNS", match=("ip protocol igmp ip daddr 224.0.0.0/4",)
    )
    yield Entry(
        "in.dhcp",
        "answers of DHCP servers",
        match=("udp sport 67 udp dport 68", "udp sport 547 udp dport 546 ip6 saddr fe80::/10"),
    )
    yield Entry("in.invalid", "belongs to no connection", Verdict.DROP, match=("ct state invalid",))


def access_point(network: Network, zones: Sequence[Zone]) -> Iterator[Entry]:
    """Who joins the tower's own Wi-Fi gets an address and names from it. Before `spoofed`: who asks has no address yet."""
    if not is_access_point(network):
        return
    wifi = interfaces(zones, "wifi")
    yield on_ports("in.ap-dhcp", "who joins our Wi-Fi asks for an address", wifi, "udp", "67")
    for protocol in ("udp", "tcp"):
        yield on_ports(f"in.ap-dns-{protocol}", "who joins our Wi-Fi asks for names", wifi, protocol, "53")


def is_access_point(network: Network) -> bool:
    """Whether the Wi-Fi port is a network of its own."""
    port = network.interfaces.get(Role.WIFI)
    return port is not None and port.wifi is not None and port.wifi.mode is WifiMode.ACCESS_POINT


def spoofed() -> Iterator[Entry]:
    """Senders that cannot be. After `established`: it costs new connections alone."""
    yield Entry(
        "in.spoofed-self",
        "pretends to come from the tower itself, or from many",
        Verdict.DROP,
        match=("fib saddr type { local, broadcast, anycast, multicast }",),
    )
    yield Entry(
        "in.spoofed-port",
        "pretends to come from a network that is attached to another port",
        Verdict.DROP,
        match=(
            "ip saddr @attached4 iifname . ip saddr != @attached_to4",
            "ip6 saddr @attached6 iifname . ip6 saddr != @attached_to6",
        ),
    )
    yield Entry(
        "in.no-way-back", "no route leads back to its sender", Verdict.DROP, match=("fib saddr oif missing",)
    )


def local_only() -> Entry:
    """allow_local_only."""
    return Entry(
        "in.not-local",
        "does not come from a directly attached network (allow_local_only)",
        Verdict.DROP,
        match=(
            "iifname . ip saddr != @attached_to4",
            "ip6 saddr != fe80::/10 iifname . ip6 saddr != @attached_to6",
        ),
    )


def services(network: Network, zones: Sequence[Zone]) -> Iterator[Entry]:
    """What is offered, and where."""
    api = (str(network.api.port), str(HTTPS))
    clients = interfaces(zones, *CLIENTS)
    management = interfaces(zones, "management")
    yield on_ports("in.api", "API for clients on LAN and VPN", clients, "tcp", *api)
    yield on_ports("in.admin", "web page for administrators, on management", management, "tcp", *api)
    yield on_ports("in.ssh", "SSH, from management alone", management, "tcp", "22")
    yield on_ports("in.metrics", "Prometheus reads metrics, from management alone", management, "tcp", "9090")
    if network.mode is Mode.P2P_HUB:
        yield on_ports("in.stun", "STUN and TURN of the hub", clients, "udp", "3478")
        yield on_ports("in.turn", "TURN of the hub over TCP", clients, "tcp", "3478")
        yield on_ports("in.turns", "TURN of the hub over TLS", clients, "tcp", "5349")
        yield on_ports(
            "in.relays", "what peers send to addresses that TURN relays", clients, "udp", TURN_RELAYS
        )
    if network.mode is Mode.CLUSTER:
        yield from _cluster(network, zones, api)
    yield on_ports(
        "in.mdns",
        "who looks for coral-reef.local",
        interfaces(zones, *CLIENTS, "management"),
        "udp",
        "5353",
        match=MDNS,
    )
    yield Entry(
        "in.echo", "ping", interfaces=interfaces(zones, *CLIENTS, "management", "cluster"), match=ECHO
    )


def _cluster(network: Network, zones: Sequence[Zone], api: tuple[str, ...]) -> Iterator[Entry]:
    """The nodes' own addresses may be on another port than the cluster's."""
    cluster, nodes = interfaces(zones, "cluster"), members(network)
    others = interfaces(zones, "primary", "secondary", "api")
    for key, words, port in (
        ("etcd", "etcd: clients and members", ETCD),
        ("postgresql", "PostgreSQL: conversations of the cluster", POSTGRESQL),
    ):
        yield on_ports(f"in.{key}", f"{words}, on the cluster's network", cluster, "tcp", port)
        yield Entry(
            f"in.{key}-members",
            f"{words}, from the cluster's nodes",
            interfaces=others,
            protocol="tcp",
            ports=(port,),
            networks=nodes,
            idle="" if nodes and others else "no other node can be there",
        )
    yield on_ports("in.balanced", "HAProxy of another node passes requests on", cluster, "tcp", *api)


def rest() -> Iterator[Entry]:
    """What nothing above has let through."""
    yield Entry(
        "in.noise",
        "said to everybody; not logged",
        Verdict.DROP,
        match=("meta pkttype { broadcast, multicast }",),
    )
    yield Entry("in.log", "logged, at most 10 a minute", Verdict.LOG)
    yield Entry("in.rest", "everything else", Verdict.DROP)
