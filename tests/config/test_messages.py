"""What is said about each kind of mistake, to the letter."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config.errors import ConfigError, Problem, Severity
from appliance.config.expand import Variables
from appliance.config.load import check, load_network

PORT = "an integer from 1 to 65535"
PROCESSES = "an integer from 0 to 64"
ICE = "a URL like stun:stun.example.org:3478 or turns:turn.example.org:5349?transport=tcp"
SECTIONS = "gateway, chat, text, inference, scheduler, devices, console, supervisor"
GATEWAY_KEYS = "processes, connections_limit, message_limit_chars, body_limit_bytes, drain_s"


def said(folder: Path, name: str, text: str) -> list[str]:
    path = folder / name
    path.write_bytes(text.encode())
    return [str(problem).removeprefix(f"{folder}/") for problem in check(path, variables=Variables({}))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "\n[gateway]\ndrian_s = 1",
            f"3: gateway.drian_s: unknown key, expected one of {GATEWAY_KEYS}, nearest valid key: drain_s",
        ),
        ("[gateway]\nqqq = 1", f"2: gateway.qqq: unknown key, expected one of {GATEWAY_KEYS}"),
        (
            "gatewy.processes = 1",
            (f"1: gatewy: unknown key, expected one of {SECTIONS}, nearest valid key: gateway"),
        ),
        ("gateway.processes = -1", f"1: gateway.processes: is -1, expected {PROCESSES}"),
        (
            f"gateway.processes = 0x{'f' * 20}",
            f"1: gateway.processes: is a huge number, expected {PROCESSES}",
        ),
        ("gateway.processes = '80'", f'1: gateway.processes: is the text "80", expected {PROCESSES}'),
        ("gateway.processes = true", f"1: gateway.processes: is true, expected {PROCESSES}"),
        ("gateway.processes = 1.5", f"1: gateway.processes: is a number, expected {PROCESSES}"),
        (
            "gateway.processes = 2020-01-01",
            f"1: gateway.processes: is a date or a time, expected {PROCESSES}",
        ),
        ("gateway = []", "1: gateway: is a list, expected a table"),
        (
            "chat.temperature = {}",
            "1: chat.temperature: is a table, expected a number from 0 to 2",
        ),
        ("chat.temperature = nan", "1: chat.temperature: is nan, expected a number from 0 to 2"),
        ("chat.top_p = 0", "1: chat.top_p: is 0, expected a number above 0 and at most 1"),
        (
            "scheduler.queue_timeout_s = 0",
            "1: scheduler.queue_timeout_s: is 0, expected a number from 0.1 to 600",
        ),
        (
            "gateway.message_limit_chars = 0",
            "1: gateway.message_limit_chars: is 0, expected an integer from 1 to 100000",
        ),
        (
            '"a.b\\u0007" = 1',
            f'1: "a.b\\u0007": unknown key, expected one of {SECTIONS}',
        ),
        ("a = 1\nb = \n", "2: invalid value, expected valid TOML"),
        ("x = 1\n\nx = 2", "3: cannot overwrite a value, expected valid TOML"),
        ("\nx = '''\n\n\n", "2: expected \"'''\", expected valid TOML"),
        (f"\na = {'[' * 40}{']' * 40}", "2: is nested too deeply, expected at most 32 levels"),
        (f"\na{'.a' * 40} = 1", "2: is nested too deeply, expected at most 32 levels"),
        (f"\na = {'1' * 5000}", "2: holds a number too long, expected valid TOML"),
    ],
)
def test_toml(tmp_path: Path, text: str, message: str) -> None:
    assert said(tmp_path, "appliance.toml", text) == [f"appliance.toml:{message}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mode: locl", '1: mode: is "locl", expected one of local, server, cluster, p2p_hub'),
        (
            "interfaces:\n  primry:\n    type: usb",
            (
                "2: interfaces.primry: unknown key, expected one of primary, secondary, management, "
                "usb, wifi, cluster, nearest valid key: primary"
            ),
        ),
        (
            "# ports\ninterfaces:\n  usb:\n    mtu: 1500",
            "3: interfaces.usb.type: missing, expected one of ethernet, usb, wifi",
        ),
        ("interfaces:", "1: interfaces: is empty, expected a mapping"),
        ("api: 8080", "1: api: is an integer, expected a mapping"),
        ("api:\n  tls: on", '2: api.tls: is the text "on", expected true or false'),
        (
            "share_codes:\n  expiry: 12:34:56",
            '2: share_codes.expiry: is "12:34:56", expected a duration like 24h, 30m or 7d',
        ),
        (
            "share_codes: {expiry: 24}",
            "1: share_codes.expiry: is an integer, expected a duration like 24h, 30m or 7d",
        ),
        ("encryption:\n\n  protocol: tls", '3: encryption.protocol: is "tls", expected noise_ik'),
        (
            "interfaces: {usb: {type: usb, speed: fast}}",
            '1: interfaces.usb.speed: is "fast", expected a speed like 5gbps, 2.5gbps or 100mbps',
        ),
        (
            "interfaces: {usb: {type: usb, vlan: 4095}}",
            "1: interfaces.usb.vlan: is 4095, expected an integer from 1 to 4094",
        ),
        (
            "interfaces: {usb: {type: usb, mtu: 67}}",
            "1: interfaces.usb.mtu: is 67, expected an integer from 68 to 9216",
        ),
        (
            "p2p:\n  ice_servers:\n  - url: stun:a\n  - url: http://a",
            f'4: p2p.ice_servers[1].url: is "http://a", expected {ICE}',
        ),
        (
            "p2p:\n  ice_servers:\n  - url: stun:a\n  - username: a",
            f"4: p2p.ice_servers[1].url: missing, expected {ICE}",
        ),
        ("p2p: {ice_servers: [url]}", '1: p2p.ice_servers[0]: is the text "url", expected a mapping'),
        (
            "p2p: {stun_server: 'a:65536'}",
            '1: p2p.stun_server: is "a:65536", expected a host and port like stun.example.org:3478',
        ),
        ("p2p: {turn_secret: 12}", "1: p2p.turn_secret: is an integer, expected a text"),
        ("p2p: {turn_secret: ''}", "1: p2p.turn_secret: is empty, expected a text"),
        (
            "cluster: {name: a, node_id: a, nodes: []}",
            "1: cluster.nodes: has 0 items, expected 1 to 64",
        ),
        ("mode: local\n\nmode: local", "3: mode: is set a second time, expected once (first on line 1)"),
        ("api: &a {}", "1: api: has an anchor, expected the value alone"),
        ("api: *a", "1: api: is an alias, expected the value itself"),
        ("api: !!map {}", "1: api: has a tag, expected the value alone"),
        ("mode: ! local", "1: mode: has a tag, expected the value alone"),
        ("mode: local\n---\nmode: local", "2: a second document begins, expected one a file"),
        ("- mode", "1: the file holds a single value, expected a mapping of keys to values"),
        ("? [a]\n: 1", "1: has a key that is no text, expected plain keys"),
        (f"mode: local\nx: {'[' * 40}", "2: is nested too deeply, expected at most 32 levels"),
        ("? " * 5000, "1: is nested too deeply, expected at most 32 levels"),
        (
            "mode: local\nx: [",
            (
                "2: while parsing a flow node, expected the node content, but found '<stream end>', "
                "expected valid YAML"
            ),
        ),
        ('mode: local\nx: "\\UFFFFFFFF"', "2: an escape or a directive is out of range, expected valid YAML"),
        ('mode: "\\uD800"', "1: mode: holds half a surrogate pair, expected text"),
        ("mode: local\n\x07", "2: holds a control character, expected text"),
    ],
)
def test_yaml(tmp_path: Path, text: str, message: str) -> None:
    assert said(tmp_path, "network.yaml", text) == [f"network.yaml:{message}"]


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "---\n", "~", "\ufeffmode: local\n", "mode: local\r\napi: {}\r\n"]
)
def test_yaml_that_says_little(tmp_path: Path, text: str) -> None:
    assert said(tmp_path, "network.yml", text) == []


def test_all_errors_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    text = """\
mode: hub
interfaces:
  primary:
    type: ethernet
    ip: 10.0.0.1
    dhcp: true
    color: red
p2p:
  ice_servers:
    - url: *other
    - credential: ${
api:
  port: none
api: {}
"""
    assert said(tmp_path, "network.yaml", text) == [
        'network.yaml:1: mode: is "hub", expected one of local, server, cluster, p2p_hub',
        "network.yaml:6: interfaces.primary.dhcp: is true although ip is set, expected one of the two",
        (
            "network.yaml:7: interfaces.primary.color: unknown key, "
            "expected one of ip, addresses, dhcp, ipv6, gateway, dns, search, routes, mtu, type, speed, match, vlan, bond, "
            "wifi, enabled"
        ),
        "network.yaml:10: p2p.ice_servers[0].url: is an alias, expected the value itself",
        (
            "network.yaml:11: p2p.ice_servers[1].credential: has ${ without a name and }, "
            "expected ${NAME}, or $${ for the characters ${"
        ),
        f"network.yaml:11: p2p.ice_servers[1].url: missing, expected {ICE}",
        f'network.yaml:13: api.port: is the text "none", expected {PORT}',
        "network.yaml:14: api: is set a second time, expected once (first on line 12)",
    ]


def test_config_error_holds_problems_and_reads_as_their_errors(tmp_path: Path) -> None:
    path = tmp_path / "network.yaml"
    path.write_text("api: {tls: true}\nmode: x\n")
    with pytest.raises(ConfigError) as caught:
        load_network(path)
    assert [problem.severity for problem in caught.value.problems] == [Severity.WARNING, Severity.ERROR]
    assert str(caught.value) == f'{path}:2: mode: is "x", expected one of local, server, cluster, p2p_hub'


def test_values_of_names_and_secrets_are_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "network.yaml"
    path.write_text("api: {bind: '${WHERE}'}")
    with pytest.raises(ConfigError) as caught:
        load_network(path, variables=Variables({"WHERE": "hunter2"}))
    assert caught.value.problems == (
        Problem(
            str(path),
            1,
            "api.bind",
            'the value of "${WHERE}" does not fit, expected an IP address like 127.0.0.1, 0.0.0.0 or ::',
        ),
    )


def test_long_values_are_shortened(tmp_path: Path) -> None:
    (message,) = said(tmp_path, "network.yaml", f"mode: {'x' * 1000}")
    assert (
        message
        == f'network.yaml:1: mode: is "{"x" * 77}...", expected one of local, server, cluster, p2p_hub'
    )
