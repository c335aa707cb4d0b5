"""The settings of `network.yaml`: where the appliance stands in the network and who may reach it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.config.appliance import Section
from appliance.config.document import KeyPath
from appliance.config.forms import (
    Address,
    Discovery,
    Duration,
    FilePath,
    Host,
    HostAddress,
    HostPort,
    IceUrl,
    Interface,
    InterfaceName,
    MacAddress,
    Name,
    NetworkAddress,
    PciPath,
    PortRange,
    Speed,
    Ssid,
    Text,
    duration_s,
    interface_address,
    speed_mbps,
)
from appliance.config.secret import Secret


class Mode(StrEnum):
    """How the appliance is deployed."""

    LOCAL = "local"
    SERVER = "server"
    CLUSTER = "cluster"
    P2P_HUB = "p2p_hub"


class Role(StrEnum):
    """What a port is for."""

    PRIMARY = "primary"
    SECONDARY = "secondary"
    MANAGEMENT = "management"
    USB = "usb"
    WIFI = "wifi"
    CLUSTER = "cluster"


class Ipv6(StrEnum):
    """How a port gets its IPv6 addresses, besides those that are written down."""

    AUTO = "auto"
    STATIC = "static"
    LINK_LOCAL = "link-local"
    OFF = "off"


class BondMode(StrEnum):
    """How the ports of a bond share the work; 802.3ad needs a switch that speaks LACP."""

    ACTIVE_BACKUP = "active-backup"
    LACP = "802.3ad"
    BALANCE_ALB = "balance-alb"


class WifiMode(StrEnum):
    """Whether a radio joins a network or is one."""

    CLIENT = "client"
    ACCESS_POINT = "access-point"


class Security(StrEnum):
    """How a Wi-Fi network is protected; `auto` is WPA3 where the network has it, else WPA2."""

    AUTO = "auto"
    OPEN = "open"
    WPA2 = "wpa2"
    WPA3 = "wpa3"
    PEAP = "enterprise-peap"
    TLS = "enterprise-tls"


class Band(StrEnum):
    """In gigahertz."""

    TWO = "2.4ghz"
    FIVE = "5ghz"


class Use(StrEnum):
    """What a VLAN is for: which of the appliance's services are there."""

    MANAGEMENT = "management"
    API = "api"
    CLUSTER = "cluster"
    STORAGE = "storage"
    NONE = "none"


class Match(Section, frozen=True):
    """Which hardware a role is: everything that is given must be so."""

    mac: Annotated[MacAddress, Meta(description="Its permanent MAC address.")] | None = None
    path: (
        Annotated[PciPath, Meta(description="Where it is plugged, as udev's ID_PATH; * for any text.")] | None
    ) = None
    driver: Annotated[Name, Meta(description="The kernel's driver for it, like ixgbe.")] | None = None
    interface: Annotated[InterfaceName, Meta(description="The kernel's name for it.")] | None = None


class Route(Section, frozen=True):
    """A network that is reached through another router than `gateway`."""

    to: Annotated[NetworkAddress, Meta(description="Where it leads.")]
    via: Annotated[Address, Meta(description="The router, within a subnet of this port.")]
    metric: Annotated[int, Meta(ge=1, le=65_535, description="The lower one wins.")] | None = None


class Bond(Section, frozen=True):
    """Several ports as one: this role's own port and those of others."""

    ports: Annotated[tuple[Role, ...], Meta(min_length=1, max_length=4, description="The other roles.")]
    mode: Annotated[BondMode, Meta(description="How they share the work.")] = BondMode.ACTIVE_BACKUP


class Wifi(Section, frozen=True):
    """One Wi-Fi network. A password that is not here is the one that NetworkManager keeps ('coral-reef net wifi join')."""

    ssid: Annotated[Ssid, Meta(description="Name of the network.")]
    mode: Annotated[WifiMode, Meta(description="Whether to join it or to be it.")] = WifiMode.CLIENT
    security: Annotated[Security, Meta(description="How it is protected.")] = Security.AUTO
    password: Annotated[Secret, Meta(description="Its password, better as ${NAME}.")] | None = None
    hidden: Annotated[bool, Meta(description="Whether it does not announce its name.")] = False
    identity: Annotated[Text, Meta(description="User of an enterprise network.")] | None = None
    ca_cert: Annotated[FilePath, Meta(description="Who signs the network's certificate, PEM.")] | None = None
    client_cert: Annotated[FilePath, Meta(description="Ours for enterprise-tls, PEM.")] | None = None
    private_key: Annotated[FilePath, Meta(description="Its key, PEM; `password` unlocks it.")] | None = None
    band: Annotated[Band, Meta(description="Only in this band.")] | None = None
    channel: Annotated[int, Meta(ge=1, le=177, description="An access point's channel.")] | None = None


class Addressing(Section, frozen=True):
    """What an Ethernet or Wi-Fi port, a bond or a VLAN has of addresses. Without `dhcp` and `ip` it asks for one."""

    ip: (
        Annotated[HostAddress, Meta(description="Static address; without a prefix, /24 (IPv6: /64).")] | None
    ) = None
    addresses: Annotated[
        tuple[HostAddress, ...], Meta(max_length=32, description="Further static addresses, IPv4 or IPv6.")
    ] = ()
    dhcp: Annotated[bool, Meta(description="Whether to ask for an IPv4 address.")] | None = None
    ipv6: Annotated[
        Ipv6, Meta(description="How IPv6 comes: from the router, by hand, within the link, or not.")
    ] = Ipv6.AUTO
    gateway: Annotated[Address, Meta(description="Router, within the subnet of `ip`.")] | None = None
    dns: Annotated[tuple[Address, ...], Meta(max_length=8, description="Name servers.")] = ()
    search: Annotated[
        tuple[Host, ...], Meta(max_length=8, description="Domains that names are completed with.")
    ] = ()
    routes: Annotated[tuple[Route, ...], Meta(max_length=64, description="Further routes.")] = ()
    mtu: Annotated[int, Meta(ge=68, le=9216, description="Largest packet, in bytes.")] | None = None

    @property
    def address(self) -> Interface | None:
        """`ip` with its network. Raises ValueError on a `${NAME}` that is not set."""
        return None if self.ip is None else interface_address(self.ip)

    @property
    def static(self) -> tuple[Interface, ...]:
        """`ip` and `addresses`, with their networks. ValueError as above."""
        return tuple(map(interface_address, (*([] if self.ip is None else [self.ip]), *self.addresses)))


class Port(Addressing, frozen=True, kw_only=True):
    """One port of the tower."""

    type: Annotated[Literal["usb", "ethernet", "wifi"], Meta(description="Kind of port.")]
    speed: Annotated[Speed, Meta(description="Speed to expect.")] | None = None
    match: Annotated[Match, Meta(description="Which hardware it is; guessed where that is clear.")] | None = (
        None
    )
    vlan: (
        Annotated[
            int, Meta(ge=1, le=4094, description="VLAN whose tagged frames this role uses on its own port.")
        ]
        | None
    ) = None
    bond: Annotated[Bond, Meta(description="Other ports that are one with this.")] | None = None
    wifi: Annotated[Wifi, Meta(description="The network of a Wi-Fi port.")] | None = None
    enabled: Annotated[
        bool,
        Meta(description="Whether there is a network on this port; without one, USB is a serial line alone."),
    ] = True

    @property
    def uses_dhcp(self) -> bool:
        """What `dhcp` says, else whether nothing else gives the port an IPv4 address."""
        return _uses_dhcp(self) and self.type != "usb"

    @property
    def speed_mbps(self) -> float | None:
        """`speed` in megabits a second."""
        return None if self.speed is None else speed_mbps(self.speed)


class Vlan(Addressing, frozen=True, kw_only=True):
    """Tagged frames on a port, as an interface of their own."""

    id: Annotated[int, Meta(ge=1, le=4094, description="Its number.")]
    parent: Annotated[Role, Meta(description="The role whose port carries it.")]
    use: Annotated[Use, Meta(description="What is served there.")] = Use.NONE

    @property
    def uses_dhcp(self) -> bool:
        """As a port's."""
        return _uses_dhcp(self)


def _uses_dhcp(addressing: Addressing) -> bool:
    if addressing.dhcp is not None:
        return addressing.dhcp
    return all(each.version == 6 for each in addressing.static)


class Drift(StrEnum):
    """What becomes of a change that somebody made behind our back."""

    REPAIR = "repair"
    REPORT = "report"


class RuleAction(StrEnum):
    """What becomes of a packet that a rule of the owner's matches."""

    ACCEPT = "accept"
    DROP = "drop"


class Direction(StrEnum):
    """Seen from the tower."""

    IN = "in"
    OUT = "out"


class Rule(Section, frozen=True):
    """A rule of the owner's; the first that matches decides, before ours."""

    name: Annotated[Text, Meta(description="What it is for; 'coral-reef net firewall' shows it.")]
    action: Annotated[RuleAction, Meta(description="Let through or not.")]
    direction: Annotated[Direction, Meta(description="Into the tower or out of it.")] = Direction.IN
    protocol: Annotated[Literal["tcp", "udp", "icmp"], Meta(description="Only this one.")] | None = None
    ports: Annotated[
        tuple[PortRange, ...], Meta(max_length=32, description="Only to these ports; needs tcp or udp.")
    ] = ()
    networks: Annotated[
        tuple[NetworkAddress, ...],
        Meta(max_length=256, description="Only from these networks (in), or to them (out)."),
    ] = ()
    roles: Annotated[tuple[Role, ...], Meta(max_length=6, description="Only on these ports.")] = ()


class Firewall(Section, frozen=True):
    """Who may connect."""

    enabled: Annotated[bool, Meta(description="Whether there is a firewall.")] = True
    allow_local_only: Annotated[
        bool, Meta(description="Whether only directly attached networks may connect.")
    ] = False
    rules: Annotated[tuple[Rule, ...], Meta(max_length=2000, description="Rules of your own.")] = ()


class Api(Section, frozen=True):
    """Where clients connect."""

    bind: Annotated[Address, Meta(description="Address to listen on; 0.0.0.0 or :: for all.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65_535, description="TCP port.")] = 8080
    tls: Annotated[bool, Meta(description="Whether that port speaks TLS.")] = False
    cert: Annotated[FilePath, Meta(description="Certificate, PEM.")] | None = None
    key: (
        Annotated[
            FilePath,
            Meta(description="Its private key, PEM; without it, the file beside `cert` that ends in .key."),
        ]
        | None
    ) = None


class RateLimiting(Section, frozen=True):
    """Limits of one client."""

    requests_per_minute: Annotated[int, Meta(ge=1, le=1_000_000, description="In the long run.")] = 60
    burst: Annotated[int, Meta(ge=1, le=1_000_000, description="At once.")] = 10


class Node(Section, frozen=True):
    """One member of a cluster."""

    id: Annotated[Name, Meta(description="Its name.")]
    ip: Annotated[HostAddress, Meta(description="Where the others reach it.")]


class Cluster(Section, frozen=True):
    """The cluster that this appliance is a member of."""

    name: Annotated[Name, Meta(description="Name of the cluster.")]
    node_id: Annotated[Name, Meta(description="Which of `nodes` this appliance is.")]
    nodes: Annotated[tuple[Node, ...], Meta(min_length=1, max_length=64, description="All members.")]
    discovery: Annotated[Discovery, Meta(description="The etcd that knows who is alive.")] | None = None


class SharedStorage(Section, frozen=True):
    """Storage of a cluster for models, documents and backups."""

    type: Annotated[Literal["nfs", "iscsi"], Meta(description="Protocol.")]
    server: Annotated[Host, Meta(description="Where it is.")]
    path: Annotated[Text, Meta(description="Exported folder of NFS, target name of iSCSI.")]


class IceServer(Section, frozen=True):
    """One STUN or TURN server that peers are told about."""

    url: Annotated[IceUrl, Meta(description="stun:, stuns:, turn: or turns: URL.")]
    username: Annotated[Text, Meta(description="User of a TURN server.")] | None = None
    credential: Annotated[Secret, Meta(description="Its password.")] | None = None


class P2P(Section, frozen=True):
    """The hub through which phones find and reach one another."""

    enabled: Annotated[bool, Meta(description="Whether this appliance is a hub.")] = False
    stun_server: Annotated[HostPort, Meta(description="Our STUN server as peers see it.")] | None = None
    turn_server: Annotated[HostPort, Meta(description="Our TURN server as peers see it.")] | None = None
    turn_secret: (
        Annotated[Secret, Meta(description="What our TURN server and we derive passwords of peers from.")]
        | None
    ) = None
    ice_servers: Annotated[tuple[IceServer, ...], Meta(max_length=32, description="Further servers.")] = ()


class ShareCodes(Section, frozen=True):
    """Codes by which peers join a conversation."""

    enabled: Annotated[bool, Meta(description="Whether codes are handed out.")] = False
    expiry: Annotated[Duration, Meta(description="How long a code is good for.")] = "24h"
    max_peers: Annotated[int, Meta(ge=1, le=1000, description="Peers that may join by one code.")] = 10

    @property
    def expiry_s(self) -> int:
        """`expiry` in seconds."""
        return duration_s(self.expiry)


class Sync(Section, frozen=True):
    """What peers share; documents only when the owner says so."""

    memories: Annotated[bool, Meta(description="Memories of personas.")] = True
    conversations: Annotated[bool, Meta(description="Conversations.")] = True
    documents: Annotated[bool, Meta(description="Documents.")] = False


class Encryption(Section, frozen=True):
    """How peers encrypt: Noise_IK_25519_ChaChaPoly_BLAKE2s, the one choice."""

    protocol: Annotated[Literal["noise_ik"], Meta(description="Handshake.")] = "noise_ik"
    key_exchange: Annotated[Literal["x25519"], Meta(description="Key exchange.")] = "x25519"


class Network(Section, frozen=True):
    """All of `network.yaml`."""

    mode: Annotated[Mode, Meta(description="How the appliance is deployed.")] = Mode.LOCAL
    interfaces: Annotated[
        dict[Role, Port],
        Meta(
            description="Ports, by what they are for.",
            extra_json_schema={"propertyNames": {"enum": [str(role) for role in Role]}},
        ),
    ] = msgspec.field(default_factory=dict)
    vlans: Annotated[
        tuple[Vlan, ...], Meta(max_length=64, description="VLANs, each on one of the ports.")
    ] = ()
    drift: Annotated[
        Drift, Meta(description="Whether a change made behind our back is undone or only told.")
    ] = Drift.REPAIR
    firewall: Firewall = Firewall()
    api: Api = Api()
    rate_limiting: RateLimiting = RateLimiting()
    cluster: Cluster | None = None
    shared_storage: SharedStorage | None = None
    p2p: P2P = P2P()
    share_codes: ShareCodes = ShareCodes()
    sync: Sync = Sync()
    encryption: Encryption = Encryption()

    def usb_port(self) -> Port:
        """The port towards a desktop: the role `usb`, else the first of that type, else one as nobody has set it."""
        if Role.USB in self.interfaces:
            return self.interfaces[Role.USB]
        return next((port for port in self.interfaces.values() if port.type == "usb"), Port(type="usb"))


def applies(network: Network, path: KeyPath) -> bool:
    """Whether the mode makes use of the section that `path` is in: a file may keep those of another mode."""
    match path[0]:
        case "cluster" | "shared_storage":
            return network.mode is Mode.CLUSTER
        case "p2p":
            return network.mode is Mode.P2P_HUB or network.p2p.enabled
        case _:
            return True
