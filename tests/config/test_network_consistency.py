"""What of ports, VLANs, bonds and Wi-Fi does not agree with one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from .test_consistency import said

PORT = "interfaces: {primary: {type: ethernet}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            PORT + "vlans: [{id: 10, parent: secondary}]",
            "error 2 vlans[0].parent: secondary is none of the interfaces, expected one of primary",
        ),
        (
            "vlans: [{id: 10, parent: primary}]",
            "error 1 vlans[0].parent: primary is none of the interfaces: there are none",
        ),
        (
            "interfaces: {usb: {type: usb}}\nvlans: [{id: 10, parent: usb}]",
            "error 2 vlans[0].parent: usb is the USB port, expected an Ethernet port",
        ),
        (
            PORT + "vlans:\n- {id: 10, parent: primary}\n- {id: 10, parent: primary}",
            "error 4 vlans[1].id: is the same as vlans[0].id on line 3, expected another id",
        ),
        (
            "interfaces: {primary: {type: ethernet, vlan: 10}}\nvlans: [{id: 10, parent: primary}]",
            "error 2 vlans[0].id: is the same as interfaces.primary.vlan on line 1, expected another id",
        ),
        (
            PORT + "vlans: [{id: 10, parent: primary, mtu: 9000}]",
            (
                "error 2 vlans[0].mtu: is 9000, more than its parent's, "
                "expected at most 1500 or a larger interfaces.primary.mtu"
            ),
        ),
        (
            PORT
            + "vlans:\n- {id: 1, parent: primary, ip: 10.0.0.1}\n- {id: 2, parent: primary, ip: 10.0.0.1}",
            "error 4 vlans[1].ip: is the same as vlans[0].ip on line 3, expected another ip",
        ),
        (
            "interfaces: {primary: {type: ethernet, ip: 10.0.0.1, addresses: [10.1.0.1, 10.0.0.1]}}",
            (
                "error 1 interfaces.primary.addresses[1]: is the same as interfaces.primary.ip on line 1, "
                "expected another address"
            ),
        ),
        (
            "interfaces:\n  primary: {type: ethernet, ip: 10.0.0.1}\nvlans: [{id: 1, parent: primary, ip: 10.0.0.2/8}]",
            "warning 3 vlans[0].ip: shares the subnet 10.0.0.0/24 with interfaces.primary, expected a subnet of its own",
        ),
        (
            "interfaces: {primary: {type: ethernet, gateway: 10.0.0.1}}",
            "error 1 interfaces.primary.gateway: is set without ip, expected ip too, or the router that DHCP names",
        ),
        (
            "interfaces: {primary: {type: ethernet, addresses: [10.0.0.1], dhcp: true}}",
            "error 1 interfaces.primary.dhcp: is true although addresses is set, expected one of the two",
        ),
        (
            "interfaces: {primary: {type: ethernet, ip: 10.0.0.1, routes: [{to: 10.9.0.0/16, via: 10.1.0.1}]}}",
            (
                "error 1 interfaces.primary.routes[0].via: is outside the port's subnet, "
                "expected an address in 10.0.0.0/24"
            ),
        ),
        (
            "interfaces: {primary: {type: ethernet, routes: [{to: 10.9.0.0/16, via: 'fe80::1'}]}}",
            "error 1 interfaces.primary.routes[0].via: is IPv6, expected a router of IPv4",
        ),
        (
            "interfaces: {primary: {type: ethernet, addresses: ['fd00::1'], ipv6: off}}",
            (
                "error 1 interfaces.primary.ipv6: is off although interfaces.primary.addresses[0] is an IPv6 address, "
                "expected static or auto"
            ),
        ),
        (
            "interfaces: {primary: {type: ethernet, ipv6: static}}",
            (
                "error 1 interfaces.primary.ipv6: is static without an IPv6 address, "
                "expected one in addresses, or auto"
            ),
        ),
        (
            (
                "interfaces:\n"
                "  primary: {type: ethernet, match: {mac: '52:54:00:00:00:0A'}}\n"
                "  secondary: {type: ethernet, match: {mac: '52:54:00:00:00:0a'}}"
            ),
            (
                "error 3 interfaces.secondary.match.mac: is the same as interfaces.primary.match.mac on line 2, "
                "expected another mac"
            ),
        ),
        (
            "interfaces: {primary: {type: ethernet, bond: {ports: [primary]}}}",
            "error 1 interfaces.primary.bond.ports[0]: is the role of the bond itself, expected the other ports",
        ),
        (
            "interfaces: {primary: {type: ethernet, bond: {ports: [wifi]}}, wifi: {type: wifi}}",
            "error 1 interfaces.primary.bond.ports[0]: wifi is no Ethernet port of interfaces, expected one that is",
        ),
        (
            (
                "interfaces:\n"
                "  primary: {type: ethernet, bond: {ports: [secondary]}}\n"
                "  secondary: {type: ethernet, ip: 10.0.0.1}"
            ),
            (
                "error 3 interfaces.secondary.ip: is set although the port belongs to the bond of "
                "interfaces.primary, expected it there"
            ),
        ),
        (
            "interfaces: {primary: {type: ethernet, wifi: {ssid: home}}}",
            "error 1 interfaces.primary.wifi: is set although type is not wifi, expected type: wifi",
        ),
        (
            "interfaces: {wifi: {type: wifi, wifi: {ssid: home, password: short}}}",
            (
                "error 1 interfaces.wifi.wifi.password: has a wrong length, "
                "expected 8 to 63 characters, or 64 hexadecimal digits"
            ),
        ),
        (
            "interfaces: {wifi: {type: wifi, wifi: {ssid: home, password: long enough, security: open}}}",
            "error 1 interfaces.wifi.wifi.password: is set although security is open, expected none",
        ),
        (
            "interfaces: {wifi: {type: wifi, wifi: {ssid: work, security: enterprise-peap}}}",
            "error 1 interfaces.wifi.wifi.identity: missing although security is enterprise-peap, expected it",
        ),
        (
            "interfaces: {wifi: {type: wifi, wifi: {ssid: me, mode: access-point, password: long enough, security: wpa3}}}",
            (
                "error 1 interfaces.wifi.wifi.security: is wpa3, which an access point cannot be here, "
                "expected auto, wpa2 or open"
            ),
        ),
        (
            "interfaces: {wifi: {type: wifi, wifi: {ssid: me, channel: 6}}}",
            "error 1 interfaces.wifi.wifi.channel: is set without band, expected band, too",
        ),
        (
            "interfaces: {wifi: {type: wifi, vlan: 5, wifi: {ssid: home}}}",
            "error 1 interfaces.wifi.vlan: is set on a Wi-Fi port, which carries no VLANs, expected none",
        ),
        (
            "interfaces: {wifi: {type: wifi, wifi: {ssid: me, mode: access-point}}}",
            (
                "error 1 interfaces.wifi.wifi.password: missing although security is auto, "
                "expected one, or security: open"
            ),
        ),
        (
            "interfaces: {wifi: {type: wifi, bond: {ports: [primary]}}, primary: {type: ethernet}}",
            "error 1 interfaces.wifi.bond: is set although type is not ethernet, expected none",
        ),
        (
            "firewall: {rules: [{name: x, action: accept, ports: ['22']}]}",
            (
                "error 1 firewall.rules[0].ports: is set without a protocol that has ports, "
                "expected protocol: tcp or udp"
            ),
        ),
        (
            "firewall: {rules: [{name: x, action: accept, protocol: tcp, ports: ['99999']}]}",
            (
                'error 1 firewall.rules[0].ports[0]: is "99999", '
                "expected a port like 8080, or a range like 5000-5010"
            ),
        ),
        (
            "firewall: {rules: [{name: x, action: accept, networks: [10.0.0.1/8]}]}",
            (
                'error 1 firewall.rules[0].networks[0]: is "10.0.0.1/8", '
                "expected a network like 10.20.0.0/16 or fd00:1::/64, or 0.0.0.0/0 for everywhere"
            ),
        ),
    ],
)
def test_says(tmp_path: Path, text: str, message: str) -> None:
    assert said(tmp_path, text) == [message]


@pytest.mark.parametrize(
    "text",
    [
        "interfaces: {primary: {type: ethernet, ip: 10.0.0.2, gateway: 10.0.0.1, addresses: [10.1.0.1, 'fd00::1']}}",
        "interfaces: {primary: {type: ethernet, mtu: 9000}}\nvlans: [{id: 10, parent: primary, mtu: 9000}]",
        "interfaces: {primary: {type: ethernet, routes: [{to: 10.9.0.0/16, via: 10.1.0.1, metric: 5}]}}",
        "interfaces: {primary: {type: ethernet, bond: {ports: [secondary]}}, secondary: {type: ethernet}}",
        f"interfaces: {{wifi: {{type: wifi, wifi: {{ssid: home, password: {'0a' * 32}}}}}}}",
        "interfaces: {wifi: {type: wifi, wifi: {ssid: me, mode: access-point, password: long enough, hidden: true}}}",
        "firewall: {rules: [{name: x, action: drop, protocol: udp, ports: [53, 5000-5010]}]}".replace(
            "53", "'53'"
        ),
    ],
)
def test_agrees(tmp_path: Path, text: str) -> None:
    assert said(tmp_path, text) == []
