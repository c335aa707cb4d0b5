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
    Name,
    Speed,
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


class Port(Section, frozen=True):
    """One port of the tower. Without `dhcp` and `ip`, an Ethernet or Wi-Fi port asks for an address."""

    type: Annotated[Literal["usb", "ethernet", "wifi"], Meta(description="Kind of port.")]
    speed: Annotated[Speed, Meta(description="Speed to expect.")] | None = None
    ip: (
        Annotated[HostAddress, Meta(description="Static address; without a prefix, /24 (IPv6: /64).")] | None
    ) = None
    dhcp: Annotated[bool, Meta(description="Whether to ask for an address.")] | None = None
    gateway: Annotated[Address, Meta(description="Router, within the subnet of `ip`.")] | None = None
    vlan: (
        Annotated[
            int, Meta(ge=1, le=4094, description="VLAN whose tagged frames this role uses on its own port.")
        ]
        | None
    ) = None
    mtu: Annotated[int, Meta(ge=68, le=9216, description="Largest packet, in bytes.")] | None = None
    enabled: Annotated[
        bool,
        Meta(description="Whether there is a network on this port; without one, USB is a serial line alone."),
    ] = True

    @property
    def address(self) -> Interface | None:
        """`ip` with its network. Raises ValueError on a `${NAME}` that is not set."""
        return None if self.ip is None else interface_address(self.ip)

    @property
    def uses_dhcp(self) -> bool:
        """What `dhcp` says, else whether nothing else gives the port an address."""
        return self.dhcp if self.dhcp is not None else self.ip is None and self.type != "usb"

    @property
    def speed_mbps(self) -> float | None:
        """`speed` in megabits a second."""
        return None if self.speed is None else speed_mbps(self.speed)


class Firewall(Section, frozen=True):
    """Who may connect."""

    enabled: Annotated[bool, Meta(description="Whether there is a firewall.")] = True
    allow_local_only: Annotated[
        bool, Meta(description="Whether only directly attached networks may connect.")
    ] = False


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
