"""What the USB link is to be, as the owner's files say it."""

from __future__ import annotations

import configparser
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from appliance.config.load import load_network
from appliance.network.direct_mode import (
    DEFAULT_ADDRESS,
    DirectMode,
    announcement,
    dhcp_configuration,
    firewall,
)

ROOT = Path(__file__).parents[2]


def mode_of(folder: Path, text: str) -> DirectMode | None:
    path = folder / "network.yaml"
    path.write_text(text)
    return DirectMode.of(load_network(path).settings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", DirectMode()),
        ("interfaces: {primary: {type: usb, speed: 5gbps}}", DirectMode()),
        ("interfaces: {usb: {type: usb, ip: 10.9.9.1/29}}", DirectMode(IPv4Interface("10.9.9.1/29"))),
        ("interfaces: {primary: {type: usb, ip: 10.9.9.1}}", DirectMode(IPv4Interface("10.9.9.1/24"))),
        (
            "interfaces: {primary: {type: usb, ip: 10.1.1.1}, usb: {type: usb, ip: 10.9.9.1}}",
            DirectMode(IPv4Interface("10.9.9.1/24")),
        ),
        ("api: {port: 9999}", DirectMode(port=9999)),
        ("interfaces: {usb: {type: usb, enabled: false}}", None),
        ("interfaces: {primary: {type: ethernet, enabled: false}}", DirectMode()),
    ],
)
def test_what_network_yaml_says(tmp_path: Path, text: str, expected: DirectMode | None) -> None:
    assert mode_of(tmp_path, text) == expected


def test_the_gateway_listens_there() -> None:
    """The unit cannot ask the code."""
    text = (ROOT / "units/coral-reef-gateway.socket").read_text()
    assert f"ListenStream={DEFAULT_ADDRESS.ip}:8080\n" in text
    assert f"IPAddressAllow=localhost {DEFAULT_ADDRESS.network}\n" in text


def test_leases_of_a_network() -> None:
    lines = dhcp_configuration(DirectMode(IPv4Interface("10.9.9.9/24"))).splitlines()
    assert "dhcp-range=10.9.9.1,10.9.9.254,255.255.255.0,1h" in lines
    assert {"port=0", "dhcp-option=option:router", "dhcp-option=option:dns-server"} <= set(lines)


def test_the_firewall_touches_one_table_only() -> None:
    text = firewall(DirectMode())
    assert "flush" not in text
    assert text.count("table inet coral_reef_usb") == text.count("table ") == 3
    assert "ip daddr 10.67.82.1 tcp dport 8080 accept" in text


def test_the_announcement_tells_three_things() -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(announcement(DirectMode(), version="1.2.3", fingerprint="SHA256:abc"))
    assert dict(parser["Service"]) == {
        "Name": "%H",
        "Type": "_coral-reef._tcp",
        "Port": "8080",
        "TxtText": "version=1.2.3 fingerprint=SHA256:abc",
    }
