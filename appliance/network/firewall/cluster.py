"""What the mode `cluster` talks to, and where that is."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network

from appliance.config.forms import interface_address
from appliance.config.network import Network

from .zones import AnyNetwork

#: Clients and members of etcd: its documented defaults, registered at IANA.
ETCD = "2379-2380"

POSTGRESQL = "5432"

#: NFS 4 needs this one alone (RFC 8881, section 2.9.3); iSCSI: RFC 7143, section 13.
STORAGE = {"nfs": "2049", "iscsi": "3260"}

_ETCD_PORT = "2379"
_HOST = re.compile(r"(?P<host>\[[^\]]*\]|[^:]+)(?::(?P<port>[0-9]+))?")


def members(network: Network) -> tuple[AnyNetwork, ...]:
    """Addresses of the other nodes."""
    if network.cluster is None:
        return ()
    return tuple(
        ip_network(interface_address(node.ip).ip)
        for node in network.cluster.nodes
        if node.id != network.cluster.node_id
    )


def discovery(network: Network) -> tuple[tuple[tuple[AnyNetwork, ...], str], ...]:
    """Networks (none: a name, which could be anywhere) and port of each etcd that knows the members."""
    if network.cluster is None or network.cluster.discovery is None:
        return ()
    texts = network.cluster.discovery.removeprefix("etcd://").split(",")
    return tuple(
        (where(match["host"].strip("[]")), match["port"] or _ETCD_PORT)
        for match in map(_HOST.fullmatch, texts)
        if match
    )


def where(host: str) -> tuple[AnyNetwork, ...]:
    """A host's address as a network of one; none when it is a name: nft would look it up once and never again."""
    try:
        return (ip_network(ip_address(host)),)
    except ValueError:
        return ()
