"""Direct mode: the network between the tower and the one desktop at its USB port. Pure: what is to be, in the words of those that
do it (ip, nft, dnsmasq, systemd-resolved).

The desktop gets an address and nothing else: no router, no name server, no way through the tower to anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Interface

from appliance.config.network import Network

#: The interface's name on the tower; units/network/80-coral-reef-usb.link gives it.
INTERFACE = "usb0"

#: The tower's address unless network.yaml says otherwise. A small network in a corner that hardly anybody uses: a desktop whose
#: own network is the same loses sight of it while it is plugged in. units/coral-reef-gateway.socket listens there.
DEFAULT_ADDRESS = IPv4Interface("10.67.82.1/28")

TABLE = "coral_reef_usb"

SERVICE_TYPE = "_coral-reef._tcp"

LEASE = "1h"


@dataclass(frozen=True)
class DirectMode:
    """The tower's address on the link, with its network, and where the API listens on it."""

    address: IPv4Interface = DEFAULT_ADDRESS
    port: int = 8080

    @classmethod
    def of(cls, network: Network) -> DirectMode | None:
        """What network.yaml says; None when its USB port is switched off."""
        port = network.usb_port()
        if not port.enabled:
            return None
        address = port.address
        return cls(address if isinstance(address, IPv4Interface) else DEFAULT_ADDRESS, network.api.port)


def firewall(mode: DirectMode) -> str:
    """For `nft -f -`: our own table, replaced in one transaction; nobody else's is touched.

    From the desktop only DHCP, mDNS, the ways to find out who has an address, and the API reach the tower, and nothing passes
    through it.
    """
    return f"""\
table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
    chain input {{
        type filter hook input priority filter - 10; policy accept;
        iifname "{INTERFACE}" jump desktop
    }}
    chain desktop {{
        ct state established,related accept
        udp sport 68 udp dport 67 accept
        udp dport 5353 accept
        ip protocol icmp icmp type echo-request accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, echo-request }} accept
        ip daddr {mode.address.ip} tcp dport {mode.port} accept
        drop
    }}
    chain forward {{
        type filter hook forward priority filter - 10; policy accept;
        iifname "{INTERFACE}" drop
        oifname "{INTERFACE}" drop
    }}
}}
"""


def no_firewall() -> str:
    """For `nft -f -`: takes our table away, whether it is there or not."""
    return f"table inet {TABLE}\ndelete table inet {TABLE}\n"


def dhcp_configuration(mode: DirectMode) -> str:
    """For dnsmasq: leases on the link and nothing else, no name service either."""
    network = mode.address.network
    # The tower's own address is left out by dnsmasq itself.
    first, last = network.network_address + 1, network.broadcast_address - 1
    return f"""\
# Made anew at each start by coral-reef-gadget.service.
port=0
interface={INTERFACE}
bind-dynamic
dhcp-range={first},{last},{network.netmask},{LEASE}
dhcp-authoritative
dhcp-rapid-commit
# Neither a router nor a name server: options without a value are not sent.
dhcp-option=option:router
dhcp-option=option:dns-server
dhcp-leasefile=/run/coral-reef-usb-dhcp/leases
no-ping
no-hosts
no-resolv
no-poll
log-facility=-
pid-file=
user=
"""


def announcement(mode: DirectMode, *, version: str, fingerprint: str) -> str:
    """For systemd-resolved (systemd.dnssd(5)): where the API is, which version, whose key; nothing more about the tower."""
    return f"""\
# Made anew at each start by coral-reef-gadget.service.
[Service]
Name=%H
Type={SERVICE_TYPE}
Port={mode.port}
TxtText=version={version} fingerprint={fingerprint}
"""
