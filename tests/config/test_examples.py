"""The examples that ship: the specification's word for word, and `appliance.toml` with every default."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli
import yaml

from appliance.config.appliance import Appliance
from appliance.config.errors import Severity
from appliance.config.expand import Variables
from appliance.config.load import check, load_appliance, load_network
from appliance.config.network import Mode, Network, Role
from appliance.config.schema import schema
from appliance.config.secret import Secret

EXAMPLES = Path(str(resources.files("appliance.config"))) / "examples"
NOTHING_SET = Variables({})

SPECIFICATION = {
    "local": """\
# config/network.yaml - Local Mode
mode: local
interfaces:
  primary:
    type: usb
    speed: 5gbps
  secondary:
    type: ethernet
    ip: 192.168.1.100
    dhcp: false
firewall:
  enabled: true
  allow_local_only: true
""",
    "server": """\
# config/network.yaml - Home Server Mode
mode: server
interfaces:
  primary:
    type: ethernet
    ip: 192.168.1.100
    dhcp: false
    gateway: 192.168.1.1
  management:
    type: ethernet
    ip: 192.168.1.101
    vlan: 10  # Separate management VLAN
api:
  bind: 0.0.0.0
  port: 8080
  tls: true
  cert: /etc/coral-reef/certs/server.crt
rate_limiting:
  requests_per_minute: 60
  burst: 10
""",
    "cluster": """\
# config/network.yaml - Enterprise Mode
mode: cluster
cluster:
  name: coral-reef-prod
  node_id: node-1
  discovery: etcd://10.0.0.5:2379
  nodes:
    - id: node-1
      ip: 10.0.1.10
    - id: node-2
      ip: 10.0.1.11
    - id: node-3
      ip: 10.0.1.12
interfaces:
  primary:
    type: ethernet
    ip: 10.0.1.10
    speed: 10gbps
  cluster:
    type: ethernet
    ip: 10.0.2.10
    speed: 10gbps
    mtu: 9000  # Jumbo frames
shared_storage:
  type: nfs
  server: 10.0.3.5
  path: /coral-reef/shared
""",
    "p2p_hub": """\
# config/network.yaml - P2P Mode
mode: p2p_hub
p2p:
  enabled: true
  stun_server: stun.coral-reef.local:3478
  turn_server: turn.coral-reef.local:3478
  turn_secret: ${TURN_SECRET}
  ice_servers:
    - url: stun:stun.l.google.com:19302
    - url: turn:turn.coral-reef.local:3478
      username: coral
      credential: ${TURN_CREDENTIAL}
share_codes:
  enabled: true
  expiry: 24h
  max_peers: 10
sync:
  memories: true
  conversations: true
  documents: false  # Opt-in for documents
encryption:
  protocol: noise_ik
  key_exchange: x25519
""",
}


@pytest.fixture(params=sorted(SPECIFICATION))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def network(name: str) -> Network:
    return load_network(EXAMPLES / f"{name}.yaml", variables=NOTHING_SET).settings


def test_is_the_specifications_text(name: str) -> None:
    assert (EXAMPLES / f"{name}.yaml").read_text() == SPECIFICATION[name]


def test_has_no_errors(name: str) -> None:
    problems = check(EXAMPLES / f"{name}.yaml", variables=NOTHING_SET)
    assert [problem for problem in problems if problem.severity is Severity.ERROR] == []
    assert network(name).mode is Mode(name)


def test_fits_the_schema(name: str) -> None:
    found = jsonschema.Draft202012Validator(schema()["network.yaml"]).iter_errors(
        yaml.safe_load(SPECIFICATION[name])
    )
    assert list(found) == []


def test_local() -> None:
    settings = network("local")
    assert list(settings.interfaces) == [Role.PRIMARY, Role.SECONDARY]
    usb, ethernet = settings.interfaces[Role.PRIMARY], settings.interfaces[Role.SECONDARY]
    assert (usb.type, usb.speed_mbps, usb.uses_dhcp, usb.address) == ("usb", 5000.0, False, None)
    assert (str(ethernet.address), ethernet.uses_dhcp) == ("192.168.1.100/24", False)
    assert settings.firewall.allow_local_only


def test_server_warns_of_two_ports_in_one_subnet() -> None:
    path = EXAMPLES / "server.yaml"
    assert [str(problem) for problem in check(path)] == [
        (
            f"{path}:11: interfaces.management.ip: shares the subnet 192.168.1.0/24 with interfaces.primary, "
            "expected a subnet of its own"
        )
    ]
    settings = network("server")
    assert (settings.api.bind, settings.api.port, settings.api.tls) == ("0.0.0.0", 8080, True)
    assert settings.interfaces[Role.MANAGEMENT].vlan == 10
    assert settings.rate_limiting.burst == 10


def test_cluster() -> None:
    settings = network("cluster")
    assert settings.cluster is not None
    assert settings.shared_storage is not None
    assert [node.id for node in settings.cluster.nodes] == ["node-1", "node-2", "node-3"]
    assert settings.interfaces[Role.CLUSTER].mtu == 9000


def test_p2p_hub() -> None:
    path = EXAMPLES / "p2p_hub.yaml"
    variables = Variables({"TURN_SECRET": "one", "TURN_CREDENTIAL": "two"})
    loaded = load_network(path, variables=variables)
    assert loaded.warnings == ()
    assert loaded.settings.p2p.turn_secret == Secret("one")
    assert loaded.settings.p2p.ice_servers[1].credential == Secret("two")
    assert loaded.settings.share_codes.expiry_s == 86_400


def test_appliance_toml_is_every_default() -> None:
    path = EXAMPLES / "appliance.toml"
    loaded = load_appliance(path)
    assert loaded.settings == Appliance()
    assert loaded.warnings == ()
    written = tomli.loads(path.read_text())
    known = schema()["appliance.toml"]["$defs"]
    assert set(written) == set(known["Appliance"]["properties"])
    for section, keys in written.items():
        assert list(keys) == list(known[section.capitalize()]["properties"])


def test_appliance_toml_fits_the_schema() -> None:
    example = tomli.loads((EXAMPLES / "appliance.toml").read_text())
    assert list(jsonschema.Draft202012Validator(schema()["appliance.toml"]).iter_errors(example)) == []


@pytest.mark.parametrize(
    ("file", "value"),
    [
        ("appliance.toml", {"gatway": {}}),
        ("appliance.toml", {"gateway": {"processes": 70_000}}),
        ("network.yaml", {"interfaces": {"primry": {"type": "usb"}}}),
        ("network.yaml", {"interfaces": {"primary": {"type": "usb", "speed": "fast"}}}),
        ("network.yaml", {"p2p": {"turn_secret": 7}}),
    ],
)
def test_schema_refuses(file: str, value: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, schema()[file])


def test_schemas_are_schemas_and_allow_names() -> None:
    for found in schema().values():
        jsonschema.Draft202012Validator.check_schema(found)
        assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.validate({"interfaces": {"usb": {"type": "usb", "ip": "${IP}"}}}, schema()["network.yaml"])
