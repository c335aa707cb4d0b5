"""What network.yaml means: profiles and zones."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from appliance.config.load import check
from appliance.config.network import Network
from appliance.network.desired import vlan_interface, wanted
from appliance.network.firewall.zones import Zone
from appliance.network.hardware import bind
from appliance.network.plan import in_order
from appliance.network.profiles import Device, Profile

from .networks import network_of

DEVICES = (
    Device("eth0", "ethernet", "52:54:00:00:00:01", speed_mbps=10_000),
    Device("eth1", "ethernet", "52:54:00:00:00:02"),
    Device("eth2", "ethernet", "52:54:00:00:00:03"),
    Device("wlan0", "wifi", "52:54:00:00:00:04"),
)
EXAMPLES = Path(__file__).parents[2] / "appliance/config/examples"


def found(network: Network) -> tuple[dict[str, Profile], dict[str, Zone]]:
    profiles, zones = wanted(network, bind(network.interfaces, DEVICES))
    assert len({each.role for each in profiles}) == len(profiles)
    assert len(list(in_order(profiles))) == len(profiles)
    return {each.role: each for each in profiles}, {each.interface: each for each in zones}


def of(text: str) -> tuple[dict[str, Profile], dict[str, Zone]]:
    return found(network_of(dedent(text)))


@pytest.mark.parametrize("name", ["local", "server", "cluster", "p2p_hub", "vlans"])
def test_the_examples_mean_something(name: str) -> None:
    path = EXAMPLES / f"{name}.yaml"
    assert not [problem for problem in check(path) if problem.severity == "error"]
    profiles, zones = found(network_of(path.read_text("utf-8")))
    assert bool(profiles) == (name != "p2p_hub")
    assert zones["usb0"].role == "usb"


def test_a_static_address() -> None:
    profiles, zones = of("""
        interfaces:
          primary:
            type: ethernet
            ip: 192.168.1.100
            gateway: 192.168.1.1
            addresses: ["fd00::1"]
            dns: [192.168.1.1, "fd00::53"]
            routes: [{to: 10.0.0.0/8, via: 192.168.1.2, metric: 50}]
            mtu: 9000
    """)
    assert profiles["primary"].settings == {
        "connection": {
            "id": "Coral-Reef primary",
            "type": "802-3-ethernet",
            "interface-name": "eth0",
            "autoconnect-priority": 100,
            "autoconnect-retries": 0,
            "mdns": 2,
        },
        "802-3-ethernet": {"mtu": 9000},
        "ipv4": {
            "method": "manual",
            "address-data": ["192.168.1.100/24"],
            "gateway": "192.168.1.1",
            "dns": ["192.168.1.1"],
            "route-data": ["10.0.0.0/8 via 192.168.1.2 metric 50"],
            "route-metric": 100,
        },
        "ipv6": {
            "method": "auto",
            "address-data": ["fd00::1/64"],
            "dns": ["fd00::53"],
            "route-metric": 100,
        },
    }
    assert [str(each) for each in zones["eth0"].networks] == ["192.168.1.0/24", "fd00::/64"]


@pytest.mark.parametrize(
    ("port", "ipv4", "ipv6"),
    [
        ("", "auto", "auto"),
        (", dhcp: false", "disabled", "auto"),
        (", dhcp: true, ipv6: off", "auto", "disabled"),
        (", ip: 'fd00::1', ipv6: static", "auto", "manual"),
        (", ip: 10.0.0.1, ipv6: link-local", "manual", "link-local"),
    ],
)
def test_methods(port: str, ipv4: str, ipv6: str) -> None:
    profiles, _ = of(f"interfaces: {{primary: {{type: ethernet{port}}}}}")
    settings = profiles["primary"].settings
    assert (settings["ipv4"]["method"], settings["ipv6"]["method"]) == (ipv4, ipv6)


def test_vlans() -> None:
    profiles, zones = of("""
        interfaces: {primary: {type: ethernet, dhcp: false, mtu: 9000}}
        vlans:
          - {id: 10, parent: primary, use: management, ip: 10.0.10.1}
          - {id: 40, parent: primary, use: storage, ip: 10.0.40.1, mtu: 9000}
    """)
    assert list(profiles) == ["primary", "primary.vlan10", "primary.vlan40"]
    storage = profiles["primary.vlan40"]
    assert (storage.interface, storage.needs) == ("eth0.40", ("primary",))
    assert storage.settings["vlan"] == {"id": 40, "parent": "eth0"}
    assert storage.settings["802-3-ethernet"] == {"mtu": 9000}
    assert {name: zone.role for name, zone in zones.items()} == {
        "usb0": "usb",
        "eth0": "primary",
        "eth0.10": "management",
        "eth0.40": "storage",
    }


def test_a_role_on_a_vlan_of_its_own_port() -> None:
    """As in the specification's home server."""
    profiles, zones = of("interfaces: {management: {type: ethernet, ip: 10.0.0.1, vlan: 10}}")
    assert profiles["management"].settings["ipv4"] == {"method": "disabled"}
    assert profiles["management"].settings["ipv6"] == {"method": "disabled"}
    assert profiles["management.vlan10"].settings["ipv4"]["address-data"] == ["10.0.0.1/24"]
    assert zones["eth0.10"].role == "management"
    assert "eth0" not in zones


def test_two_ports_in_one_subnet_answer_each_by_itself() -> None:
    profiles, _ = found(network_of((EXAMPLES / "server.yaml").read_text("utf-8")))
    assert "routing-rules" not in profiles["primary"].settings["ipv4"]
    second = profiles["management.vlan10"].settings["ipv4"]
    assert second["route-table"] == 6700
    assert second["routing-rules"] == ["6700 from 192.168.1.101/32 table 6700"]


def test_a_bond() -> None:
    profiles, zones = of("""
        interfaces:
          primary: {type: ethernet, ip: 10.0.0.1, mtu: 9000, bond: {ports: [secondary], mode: 802.3ad}}
          secondary: {type: ethernet}
        vlans: [{id: 10, parent: secondary, use: api, ip: 10.0.10.1}]
    """)
    assert profiles["primary"].settings["bond"] == {"options": ["mode=802.3ad", "miimon=100"]}
    assert profiles["primary"].interface == "bond-primary"
    for role, interface in (("primary", "eth0"), ("secondary", "eth1")):
        port = profiles[f"primary.port.{role}"]
        assert (port.interface, port.needs) == (interface, ("primary",))
        assert port.settings["connection"]["master"] == "bond-primary"
        assert "ipv4" not in port.settings
    assert profiles["secondary.vlan10"].settings["vlan"]["parent"] == "bond-primary"
    assert set(zones) == {"usb0", "bond-primary", vlan_interface("bond-primary", 10)}


def test_a_bond_whose_role_is_on_a_vlan() -> None:
    profiles, zones = of("""
        interfaces:
          primary: {type: ethernet, ip: 10.0.0.1, vlan: 20, mtu: 9000, bond: {ports: [secondary]}}
          secondary: {type: ethernet}
    """)
    assert profiles["primary"].settings["ipv4"] == {"method": "disabled"}
    assert profiles["primary"].settings["802-3-ethernet"] == {"mtu": 9000}
    assert profiles["primary.vlan20"].settings["ipv4"]["address-data"] == ["10.0.0.1/24"]
    assert set(zones) == {"usb0", vlan_interface("bond-primary", 20)}


def test_ipv6_is_written_as_it_is_read_back() -> None:
    profiles, _ = of("""
        interfaces:
          primary:
            type: ethernet
            addresses: ["2001:DB8::2/64"]
            gateway: "2001:DB8:0::1"
            dns: ["2606:4700:4700:0::1111"]
            routes: [{to: "2001:DB8:5::/48", via: "2001:DB8::9"}]
    """)
    ipv6 = profiles["primary"].settings["ipv6"]
    assert ipv6["address-data"] == ["2001:db8::2/64"]
    assert ipv6["gateway"] == "2001:db8::1"
    assert ipv6["dns"] == ["2606:4700:4700::1111"]
    assert ipv6["route-data"] == ["2001:db8:5::/48 via 2001:db8::9"]


def test_a_radio_without_a_network() -> None:
    profiles, zones = of("interfaces: {wifi: {type: wifi}}")
    assert not profiles
    assert set(zones) == {"usb0"}


def test_wifi() -> None:
    profiles, _ = of("""
        interfaces: {wifi: {type: wifi, wifi: {ssid: home, password: swordfish, band: 5ghz}}}
    """)
    profile = profiles["wifi"]
    assert profile.settings["802-11-wireless"] == {"ssid": "home", "band": "a", "powersave": 2}
    assert profile.settings["802-11-wireless-security"] == {"key-mgmt": "wpa-psk"}
    assert profile.secrets == {"802-11-wireless-security": {"psk": "swordfish"}}
    assert "swordfish" not in repr(profile)


def test_an_access_point_has_an_address_without_asking() -> None:
    profiles, _ = of("""
        interfaces: {wifi: {type: wifi, wifi: {ssid: reef, mode: access-point, password: swordfish}}}
    """)
    settings = profiles["wifi"].settings
    assert settings["ipv4"] == {"method": "shared", "address-data": ["10.67.83.1/24"]}
    assert settings["802-11-wireless-security"]["proto"] == ["rsn"]


def test_an_enterprise() -> None:
    profiles, _ = of("""
        interfaces:
          wifi:
            type: wifi
            wifi: {ssid: work, security: enterprise-peap, identity: anna, password: x, ca_cert: /etc/ca.pem}
    """)
    assert profiles["wifi"].settings["802-1x"] == {
        "eap": ["peap"],
        "identity": "anna",
        "ca-cert": "/etc/ca.pem",
        "phase2-auth": "mschapv2",
    }
    assert profiles["wifi"].secrets == {"802-1x": {"password": "x"}}


def test_a_port_that_is_off_and_hardware_that_is_missing() -> None:
    profiles, zones = of("""
        interfaces:
          primary: {type: ethernet, enabled: false}
          secondary: {type: ethernet, match: {driver: nothing}}
          usb: {type: usb, enabled: false}
    """)
    assert not profiles
    assert not zones


def test_names_of_vlans_fit() -> None:
    assert vlan_interface("eth0", 10) == "eth0.10"
    assert vlan_interface("enp129s0f1np1", 4094) == "enp129s0f1.4094"
