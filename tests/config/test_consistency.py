"""Values of `network.yaml` that do not agree with one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config.load import check

NODES = "nodes: [{id: a, ip: 10.0.0.1}, {id: b, ip: 10.0.0.2}]"


def said(folder: Path, text: str) -> list[str]:
    path = folder / "network.yaml"
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
            "interfaces: {usb: {type: usb, ip: 'fd00::1', gateway: 10.0.0.1}}",
            "error 1 interfaces.usb.gateway: is outside the port's subnet, expected an address in fd00::/64",
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
        "interfaces: {usb: {type: usb, ip: 10.0.0.0/31, gateway: 10.0.0.1}}",
        "interfaces: {usb: {type: usb, ip: 'fd00::1/64', gateway: 'fe80::1'}}",
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
