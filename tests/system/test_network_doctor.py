"""The doctor in network namespaces: a tower, its router with a real dnsmasq, and a machine behind it; then what can be wrong with
them, one thing at a time."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.waiting import wait_for

from .namespaces import Cabling, Node, cabling

pytestmark = pytest.mark.system

EXAMINE = """
import asyncio, json, sys
from pathlib import Path
import msgspec
from appliance.config.network import Network, Role
from appliance.network.doctor.examination import Machine, exit_status, run
from appliance.network.doctor.ours import Listener

asked = json.loads(sys.stdin.read())
findings = asyncio.run(
    run(
        msgspec.convert(asked["network"], Network),
        roles={name: Role(role) for name, role in asked["roles"].items()},
        listeners=[Listener(*each) for each in asked["listeners"]],
        host=asked["host"],
        machine=Machine(resolv_conf=Path(asked["resolv_conf"]), ntp_servers=tuple(asked["ntp_servers"])),
    )
)
print(json.dumps({"status": exit_status(findings), "findings": msgspec.to_builtins(findings)}))
"""

#: Answers as an NTP server whose clock is ahead by so many seconds.
NTP = """
import socket, struct, sys, time

ahead = float(sys.argv[1])
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("10.99.0.1", 123))
while True:
    question, peer = server.recvfrom(512)
    now = time.time() + ahead + 2208988800
    stamp = struct.pack("!II", int(now), int(now % 1 * 2**32))
    server.sendto(b"\\x24\\2\\0\\0" + bytes(20) + question[40:48] + stamp + stamp, peer)
"""

TOWER, ROUTER, FAR = "10.99.0.20", "10.99.0.1", "10.98.0.2"
SERVER = {
    "mode": "server",
    "interfaces": {"primary": {"type": "ethernet", "ip": f"{TOWER}/24", "gateway": ROUTER}},
}


@dataclass
class House:
    """`lan0` of the tower leads to `lan0` of the router, `far0` of the router to `far0` of the far machine."""

    tower: Node
    router: Node
    far: Node
    folder: Path
    cables: Cabling

    def examine(
        self,
        host: str | None = None,
        *,
        ntp: bool = False,
        listeners: list[list[object]] | None = None,
        **network: object,
    ) -> tuple[int, list[dict[str, str]]]:
        """Exit status and findings."""
        asked = {
            "network": SERVER | network,
            "roles": {"lan0": "primary"},
            "listeners": listeners or [],
            "host": host,
            "resolv_conf": str(self.folder / "resolv.conf"),
            "ntp_servers": [ROUTER] if ntp else [],
        }
        answer = json.loads(self.tower.run(sys.executable, "-c", EXAMINE, stdin=json.dumps(asked)))
        return answer["status"], answer["findings"]

    def one(self, check: str, subject: str = "", **how: object) -> dict[str, str]:
        """The one finding of this check, of this subject if one is named."""
        found = self.all(check, subject, **how)
        assert len(found) == 1, found
        return found[0]

    def all(self, check: str, subject: str = "", **how: object) -> list[dict[str, str]]:
        _, findings = self.examine(**how)  # type: ignore[arg-type]
        return [each for each in findings if each["check"] == check and subject in (each["subject"], "")]


@pytest.fixture
def house() -> Iterator[House]:
    with cabling() as cables, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        tower, router, far = cables.node("tower"), cables.node("router"), cables.node("far")
        cables.cable(tower, "lan0", router, "lan0")
        cables.cable(router, "far0", far, "far0")
        tower.address("lan0", f"{TOWER}/24")
        router.address("lan0", f"{ROUTER}/24")
        router.address("far0", "10.98.0.1/24")
        far.address("far0", f"{FAR}/24")
        tower.run("ip", "route", "add", "default", "via", ROUTER)
        far.run("ip", "route", "add", "default", "via", "10.98.0.1")
        router.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        Path(folder, "resolv.conf").write_text(f"nameserver {ROUTER}\n")
        yield House(tower, router, far, Path(folder), cables)


def name_server(house: House) -> None:
    """dnsmasq, which knows one name and asks nobody else."""
    house.router.start(
        "dnsmasq",
        "--no-daemon",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        f"--listen-address={ROUTER}",
        "--bind-interfaces",
        "--host-record=phone.home," + FAR,
        "--local=/home/",
        f"--pid-file={house.folder}/dnsmasq.pid",
        "--user=root",
    )
    wait_for("dnsmasq listens", lambda: ":53 " in house.router.run("ss", "-Hlun"))


def test_all_is_well(house: House) -> None:
    name_server(house)
    house.router.start(sys.executable, "-c", NTP, "0")
    house.tower.start(sys.executable, "-m", "http.server", "--bind", TOWER, "8080")
    wait_for("it listens", lambda: ":8080 " in house.tower.run("ss", "-Hltn"))
    wait_for("the time server listens", lambda: ":123 " in house.router.run("ss", "-Hlun"))
    status, findings = house.examine(FAR, ntp=True, listeners=[["the API", TOWER, 8080]])
    seen = [(each["check"], each["subject"], each["outcome"]) for each in findings]
    checks = [each["check"] for each in findings]
    order = ["link", "address", "gateway", "dns", "time", "mtu", "ports", "certificate", "clients", "latency"]
    assert checks == sorted(checks, key=order.index)
    for well in (
        ("link", "lan0"),
        ("address", "lan0"),
        ("gateway", ROUTER),
        ("time", ROUTER),
        ("mtu", ROUTER),
        ("mtu", FAR),
        ("ports", f"{TOWER}:8080"),
        ("latency", ROUTER),
        ("latency", FAR),
    ):
        assert (*well, "ok") in seen, (well, findings)
    assert ("dns", ROUTER, "warning") in seen, "it is there, and has nobody to ask for the root"
    assert ("certificate", "api", "skipped") in seen
    assert status == 0


def test_a_name_and_a_name_server(house: House) -> None:
    name_server(house)
    found = house.one("dns", host="phone.home")
    assert (found["subject"], found["outcome"]) == (ROUTER, "ok")


def test_a_cable_that_is_out(house: House) -> None:
    house.router.run("ip", "link", "set", "lan0", "down")
    status, findings = house.examine()
    link = next(each for each in findings if each["check"] == "link")
    assert (link["subject"], link["outcome"], link["symptom"]) == (
        "lan0",
        "failed",
        "no signal: nothing is at the other end",
    )
    assert "cable" in link["remedy"]
    assert status == 1
    house.tower.run("ip", "link", "set", "lan0", "down")
    assert house.one("link")["symptom"] == "the interface is switched off"


def test_a_port_without_an_address(house: House) -> None:
    house.tower.run("ip", "address", "flush", "dev", "lan0")
    found = house.one("address")
    assert (found["outcome"], found["cause"]) == ("failed", "network.yaml is not in effect on it")
    dhcp = {"primary": {"type": "ethernet", "dhcp": True}}
    found = house.one("address", interfaces=dhcp)
    assert (found["symptom"], found["cause"]) == (
        "it has no address",
        "no DHCP server answers on this network",
    )
    house.tower.address("lan0", "169.254.7.7/16")
    found = house.one("address", interfaces=dhcp)
    assert (found["outcome"], found["symptom"]) == ("failed", "only 169.254.7.7, which it gave itself")


def test_an_address_that_another_has_too(house: House) -> None:
    house.router.run("ip", "address", "add", f"{TOWER}/24", "dev", "lan0")
    hardware = house.router.run("cat", "/sys/class/net/lan0/address").strip()
    (found,) = house.all("address")
    assert found["outcome"] == "failed"
    assert found["symptom"] == f"{TOWER} is taken: another machine ({hardware}) has it, too"


def test_an_ipv6_address_that_another_has_too(house: House) -> None:
    house.router.address("lan0", "fd99::20/64")
    house.tower.run("ip", "address", "add", "fd99::20/64", "dev", "lan0")
    wait_for(
        "the kernel has found out", lambda: "dadfailed" in house.tower.run("ip", "address", "show", "lan0")
    )
    assert "fd99::20 is taken: another machine has it, too" in [
        each["symptom"] for each in house.all("address")
    ]


def test_a_router_that_is_not_there(house: House) -> None:
    house.router.run("ip", "address", "flush", "dev", "lan0")
    status, findings = house.examine()
    found = [each for each in findings if each["check"] == "gateway"]
    assert [(each["subject"], each["outcome"]) for each in found] == [(ROUTER, "failed")]
    assert status == 1
    assert not [each for each in findings if each["check"] in ("mtu", "latency")], (
        "nothing behind it is blamed"
    )


def test_a_router_that_does_not_like_pings(house: House) -> None:
    drop_pings(house.router)
    found = house.one("gateway")
    assert (found["outcome"], found["symptom"]) == (
        "ok",
        "it is there on lan0, though it does not answer pings",
    )
    assert house.one("mtu")["outcome"] == "skipped"
    assert house.one("latency")["outcome"] == "skipped"


def test_no_router_at_all(house: House) -> None:
    house.tower.run("ip", "route", "delete", "default")
    assert house.one("gateway")["symptom"] == "there is no default route"
    assert house.one("gateway", mode="local")["outcome"] == "skipped"


def test_a_name_server_that_is_silent_and_none(house: House) -> None:
    firewall(house.router, "udp dport 53 drop")
    found = house.one("dns")
    assert (found["outcome"], found["symptom"]) == ("failed", "the name server does not answer")
    (house.folder / "resolv.conf").write_text("")
    assert house.one("dns")["symptom"] == "there is no name server"
    assert house.one("dns", mode="local")["outcome"] == "skipped"


@pytest.mark.parametrize(
    ("ahead", "outcome", "symptom"), [(30, "warning", "30 s behind"), (-4000, "failed", "4e+03 s ahead")]
)
def test_a_clock_that_is_off(house: House, ahead: int, outcome: str, symptom: str) -> None:
    house.router.start(sys.executable, "-c", NTP, str(ahead))
    wait_for("it listens", lambda: ":123 " in house.router.run("ss", "-Hlun"))
    found = house.one("time", ROUTER, ntp=True)
    assert found["outcome"] == outcome
    assert symptom in found["symptom"]


def test_a_time_server_that_is_silent(house: House) -> None:
    found = house.one("time", ROUTER, ntp=True)
    assert (found["outcome"], found["symptom"]) == ("warning", "the time server does not answer")


def test_large_packets_that_vanish(house: House) -> None:
    """The router's end of the cable takes less than the tower sends: nobody says so."""
    house.router.run("ip", "link", "set", "lan0", "mtu", "1400")
    found = house.one("mtu", ROUTER)
    assert found["outcome"] == "failed"
    passes = int(found["symptom"].split()[4])
    assert 1400 <= passes < 1420, "the kernel lets a VLAN tag more through"
    assert f"mtu: {passes}" in found["remedy"]


def test_a_narrow_path_that_says_so_and_one_that_does_not(house: House) -> None:
    for node in (house.router, house.far):
        node.run("ip", "link", "set", "far0", "mtu", "1300")
    found = house.one("mtu", FAR, host=FAR)
    assert (found["outcome"], "1300 get through" in found["symptom"]) == ("warning", True), found
    assert house.one("mtu", ROUTER, host=FAR)["outcome"] == "ok"
    firewall(house.router, "icmp type destination-unreachable drop", hook="output")
    found = house.one("mtu", FAR, host=FAR)
    assert (found["outcome"], found["symptom"]) == (
        "failed",
        "packets of more than 1300 bytes vanish (of 1500 that the interface sends)",
    )


def test_packets_that_are_lost(house: House) -> None:
    firewall(house.far, "icmp type echo-request numgen random mod 100 < 50 drop")
    found = house.one("latency", FAR, host=FAR)
    assert found["outcome"] in ("failed", "warning")
    lost = re.search(r"(\d+)% lost", found["symptom"])
    assert lost is not None
    assert 5 < int(lost[1]) < 100
    assert house.one("latency", ROUTER, host=FAR)["outcome"] == "ok"


def test_who_listens_where_and_who_is_there(house: House) -> None:
    wanted = [["the API", TOWER, 8080]]
    assert house.one("ports", listeners=wanted)["symptom"] == "nothing listens for the API"
    house.tower.start(sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "8080")
    wait_for("it listens", lambda: ":8080 " in house.tower.run("ss", "-Hltn"))
    found = house.one("ports", listeners=wanted)
    assert found["symptom"] == "the API is there, but only on 127.0.0.1"
    house.tower.start(sys.executable, "-m", "http.server", "--bind", TOWER, "8081")
    wait_for("it listens", lambda: ":8081 " in house.tower.run("ss", "-Hltn"))
    connect = f"import socket, time; s = socket.create_connection(({TOWER!r}, 8081)); time.sleep(600)"
    house.far.start(sys.executable, "-c", connect)
    wait_for(
        "somebody is connected", lambda: ":8081 " in house.tower.run("ss", "-Htn", "state", "established")
    )
    found = house.one("clients", listeners=[["the API", TOWER, 8081]])
    assert FAR in found["symptom"]


def firewall(node: Node, rule: str, *, hook: str = "input") -> None:
    """One rule, before all others."""
    node.run("nft", "add table inet t")
    node.run("nft", f"add chain inet t c {{ type filter hook {hook} priority 0; }}")
    node.run("nft", f"add rule inet t c {rule}")


def drop_pings(node: Node) -> None:
    firewall(node, "icmp type echo-request drop")
