"""Values that do not agree with one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config.forms import same_port
from appliance.config.load import check

NODES = "nodes: [{id: a, ip: 10.0.0.1}, {id: b, ip: 10.0.0.2}]"


def said(folder: Path, text: str, name: str = "network.yaml") -> list[str]:
    path = folder / name
    path.write_text(text)
    return [f"{problem.severity} {problem.line} {problem.key}: {problem.message}" for problem in check(path)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "mode: cluster",
            "error 1 cluster: missing although mode is cluster, expected name, node_id and nodes",
        ),
        (
            f"cluster:\n  name: c\n  node_id: x\n  {NODES}",
            "error 3 cluster.node_id: is none of the nodes, expected one of a, b",
        ),
        (
            "cluster:\n name: c\n node_id: a\n nodes:\n - {id: a, ip: 10.0.0.1}\n - {id: a, ip: 10.0.0.2}",
            "error 6 cluster.nodes[1].id: is the same as cluster.nodes[0].id on line 5, expected another id",
        ),
        (
            "cluster:\n name: c\n node_id: a\n nodes:\n - {id: a, ip: 10.0.0.1}\n - {id: b, ip: 10.0.0.1/8}",
            "error 6 cluster.nodes[1].ip: is the same as cluster.nodes[0].ip on line 5, expected another ip",
        ),
        (
            "interfaces:\n  usb: {type: usb, ip: 10.0.0.1}\n  wifi: {type: wifi, ip: 10.0.0.1/30}",
            "error 3 interfaces.wifi.ip: is the same as interfaces.usb.ip on line 2, expected another ip",
        ),
        (
            "interfaces: {usb: {type: usb, ip: 10.0.0.1, dhcp: true}}",
            "error 1 interfaces.usb.dhcp: is true although ip is set, expected one of the two",
        ),
        (
            "interfaces: {usb: {type: usb, ip: 10.0.0.1/28, gateway: 10.0.0.17}}",
            (
                "error 1 interfaces.usb.gateway: "
                "is outside the port's subnet, expected an address in 10.0.0.0/28"
            ),
        ),
        (
            "interfaces: {primary: {type: ethernet, ip: 'fd00::1', gateway: 10.0.0.1}}",
            "error 1 interfaces.primary.gateway: is outside the port's subnet, expected an address in fd00::/64",
        ),
        (
            "interfaces: {usb: {type: usb, ip: 10.0.0.1, gateway: 10.0.0.1}}",
            "error 1 interfaces.usb.gateway: is the port's own address, expected that of the router",
        ),
        (
            "interfaces:\n  usb: {type: usb, ip: 10.0.0.1}\n  wifi: {type: wifi, ip: 10.0.0.2}",
            (
                "warning 3 interfaces.wifi.ip: shares the subnet 10.0.0.0/24 with interfaces.usb, "
                "expected a subnet of its own"
            ),
        ),
        *(
            (
                f"interfaces: {{primary: {{type: usb, ip: '{ip}'}}}}",
                (
                    "error 1 interfaces.primary.ip: leaves no address for the desktop, "
                    f"expected an IPv4 address of a network up to /30, not {ip}"
                ),
            )
            for ip in ("fd00::1/64", "10.0.0.0/31", "10.0.0.1/32")
        ),
        (
            "api:\n  tls: true",
            "warning 1 api.cert: missing although tls is true, expected the path of a certificate",
        ),
        (
            "shared_storage: {type: nfs, server: nas, path: models}",
            "error 1 shared_storage.path: does not begin with /, expected an exported folder",
        ),
    ],
)
def test_says(tmp_path: Path, text: str, message: str) -> None:
    assert said(tmp_path, text) == [message]


@pytest.mark.parametrize(
    "text",
    [
        (
            f"mode: cluster\ncluster: {{name: c, node_id: b, {NODES}}}\n"
            "interfaces: {cluster: {type: ethernet, ip: 10.0.0.2}}"
        ),
        "interfaces: {primary: {type: ethernet, ip: 10.0.0.0/31, gateway: 10.0.0.1}}",
        "interfaces: {primary: {type: ethernet, ip: 'fd00::1/64', gateway: 'fe80::1'}}",
        "interfaces: {usb: {type: usb, ip: 10.0.0.1/30}}",
        "interfaces: {usb: {type: usb, ip: 10.0.0.1}, wifi: {type: wifi, ip: 'fd00::1'}}",
        "api: {tls: true, cert: /etc/coral-reef/certs/server.crt}",
        "shared_storage: {type: iscsi, server: nas, path: 'iqn.2026-01.org.example:models'}",
        "p2p: {stun_server: '[fd00::1]:3478', ice_servers: [{url: 'turns:a:1?transport=tcp'}]}",
    ],
)
def test_accepts(tmp_path: Path, text: str) -> None:
    assert said(tmp_path, text) == []


@pytest.mark.parametrize(
    "ip",
    [
        "10.0.0.0",
        "10.0.0.255",
        "10.0.0.1/33",
        "10.0.0.1/0",
        "10.0.0.1/255.0.0.0",
        "0.0.0.0",
        "224.0.0.1",
        "127.0.0.1",
        "010.0.0.1",
        "10.0.1",
        "fe80::1%eth0",
        "::1",
        "10.0.0.1/",
        "10.0.0.1/8/8",
    ],
)
def test_refuses_addresses_that_no_port_can_have(tmp_path: Path, ip: str) -> None:
    (message,) = said(tmp_path, f"interfaces: {{usb: {{type: usb, ip: '{ip}'}}}}")
    assert message.startswith(f'error 1 interfaces.usb.ip: is "{ip}", expected a host\'s IP address like')


A_PORT = "a USB port like usb-1-2.4, or usb-*-2.4 on any bus, or a PCI address like pci-0000:03:00.0"

# --- appliance.toml ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (
            "[devices]\nthrottle_c = 86\nshutdown_c = 90",
            ["error 3 devices.shutdown_c: is 90, expected at least throttle_c + hysteresis_c = 91"],
        ),
        (
            "[devices]\nthrottle_c = 95",
            ["error 1 devices.shutdown_c: is 90, expected at least throttle_c + hysteresis_c = 100"],
        ),
        (
            (
                '[[devices.trays]]\nname = "a"\nslots = [\n"usb-1-1",\n"usb-1-1"]\n'
                '[[devices.trays]]\nname = "b"\nslots = ["usb-*-1"]'
            ),
            [
                (
                    "warning 5 devices.trays[0].slots[1]: is the same port as devices.trays[0].slots[0] on line 4, "
                    "which counts; expected each port once"
                ),
                (
                    "warning 8 devices.trays[1].slots[0]: is the same port as devices.trays[0].slots[0] on line 4, "
                    "which counts; expected each port once"
                ),
            ],
        ),
        (
            '[[devices.trays]]\nname = "a"\nslots = ["usb-1-1"]\n[[devices.trays]]\nname = "a"\nslots = ["usb-2-1"]',
            [
                "error 5 devices.trays[1].name: is the same as devices.trays[0].name on line 2, expected another name"
            ],
        ),
        (
            '[devices]\nlayout = "4x8"\n[[devices.trays]]\nname = "a"\nslots = ["usb-1-1"]',
            ["warning 2 devices.layout: does not count beside devices.trays, expected one of the two"],
        ),
        (
            '[[devices.trays]]\nname = "a"\nslots = ["usb-1", 7]',
            [
                f'error 3 devices.trays[0].slots[0]: is "usb-1", expected {A_PORT}',
                f"error 3 devices.trays[0].slots[1]: is an integer, expected {A_PORT}",
            ],
        ),
        (
            "[devices]\nidentity = 'x'",
            [
                'error 2 devices.identity: is "x", expected a path from the root like /etc/coral-reef/tray.json, or nothing'
            ],
        ),
    ],
)
def test_says_of_devices(tmp_path: Path, text: str, messages: list[str]) -> None:
    assert said(tmp_path, text, "appliance.toml") == messages


def test_accepts_devices(tmp_path: Path) -> None:
    text = """
[devices]
throttle_c = 70
shutdown_c = 75
[[devices.trays]]
name = "top"
slots = ["usb-1-2.1", "usb-*-2.2", "pci-0000:03:00.0", "pci-10000:e1:00.0"]
identity = "/sys/bus/nvmem/devices/1-00500/nvmem"
persona = "marina"
[[devices.trays]]
name = "low"
slots = ["usb-2-2.1"]
"""
    assert said(tmp_path, text, "appliance.toml") == []


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("usb-1-2", "usb-1-2", True),
        ("usb-*-2", "usb-7-2", True),
        ("usb-7-2", "usb-*-2", True),
        ("usb-1-2", "usb-2-2", False),
        ("usb-*-2", "usb-1-2.1", False),
        ("pci-0000:03:00.0", "pci-0000:03:00.0", True),
        ("pci-0000:03:00.0", "usb-*-2", False),
    ],
)
def test_same_ports(one: str, other: str, same: bool) -> None:
    assert same_port(one, other) is same
