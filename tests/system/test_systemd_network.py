"""The network under the real supervisor: a user without rights, the default authorisation, a real NetworkManager."""

from __future__ import annotations

import json
import os
import signal
from textwrap import dedent

import pytest

from tests.waiting import wait_for

from .installed import FIREWALL, MARKS, SUPERVISOR, enable, main_pid, wait_until_ready
from .nspawn import Machine

pytestmark = MARKS

YAML = "/etc/coral-reef/network.yaml"

#: A container's virtual cables are left alone unless somebody says so.
MANAGED = dedent("""\
    [main]
    no-auto-default=*
    [device-reef]
    match-device=interface-name:reef*
    managed=1
    """)

ONE = dedent("""\
    mode: server
    interfaces:
      primary: {type: ethernet, match: {interface: reef0}, ip: 10.70.0.2, ipv6: off}
      management: {type: ethernet, match: {interface: reef1}, ip: 10.71.0.2, ipv6: off}
    """)
OTHER = ONE.replace("10.70.0.2", "10.70.0.3")

BACK_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def tower(machine: Machine) -> Machine:
    """The appliance runs; two cables lead to another network namespace."""
    folder = machine.root / "etc/NetworkManager/conf.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reef.conf").write_text(MANAGED)
    machine.run("ip", "netns", "add", "outside")
    for number in range(2):
        here, there = f"reef{number}", f"sw{number}"
        machine.run("ip", "link", "add", here, "type", "veth", "peer", there, "netns", "outside")
        machine.run("ip", "-n", "outside", "address", "add", f"10.7{number}.0.1/24", "dev", there)
        machine.run("ip", "-n", "outside", "link", "set", there, "up")
    machine.run("systemctl", "start", "NetworkManager")
    enable(machine)
    return machine


def addresses(machine: Machine, interface: str) -> list[str]:
    (found,) = json.loads(machine.out("ip", "-json", "-4", "address", "show", "dev", interface)) or [{}]
    return [each["local"] for each in found.get("addr_info", [])]


def apply(machine: Machine, text: str, *options: str) -> str:
    (machine.root / "root/candidate.yaml").write_text(text)
    return machine.out("coral-reef", "net", "apply", "/root/candidate.yaml", *options)


def reaches(machine: Machine, address: str, port: int) -> str:
    """What becomes of a connection from outside: `open`, `refused` (nobody listens), or `silence` (the firewall)."""
    code = dedent(f"""\
        import socket
        try:
            socket.create_connection(("{address}", {port}), timeout=2).close()
            print("open")
        except ConnectionRefusedError:
            print("refused")
        except TimeoutError:
            print("silence")
        """)
    return machine.out("ip", "netns", "exec", "outside", "python3", "-c", code)


def test_nothing_is_touched_without_a_file(tower: Machine) -> None:
    assert not (tower.root / YAML[1:]).exists()
    state = json.loads(tower.out("coral-reef", "net", "show", "--json"))
    assert state["managed"] is False
    assert {port["state"] for port in state["ports"] if port["interface"].startswith("reef")} == {"not ours"}
    assert "coral_reef " not in tower.out("nft", "list", "tables")


def test_who_has_no_rights_may_ask_networkmanager(tower: Machine) -> None:
    """And only that: the supervisor's user is nobody, with the one capability that nft needs."""
    assert "done" in apply(tower, ONE, "--why", "a test")
    assert addresses(tower, "reef0") == ["10.70.0.2"]
    assert (tower.root / YAML[1:]).read_text() == ONE
    uid, capabilities = tower.python(
        "import pathlib, sys; status = dict(line.split(':', 1) for line in "
        "pathlib.Path('/proc', sys.argv[1], 'status').read_text().splitlines()); "
        "print(status['Uid'].split()[1], int(status['CapEff'], 16))",
        tower.show(SUPERVISOR, "MainPID"),
    ).split()
    assert uid == tower.out("id", "--user", "coral-reef")
    setgid, setuid, kill, net_admin = 6, 7, 5, 12
    assert int(capabilities) == sum(1 << each for each in (setgid, setuid, kill, net_admin))


def test_what_the_owner_sees(tower: Machine) -> None:
    assert "was so already" in tower.out("coral-reef", "net", "apply")
    shown = tower.out("coral-reef", "net", "show")
    assert "10.70.0.2/24" in shown
    assert "management" in shown
    history = tower.out("coral-reef", "net", "history")
    assert "root" in history
    assert "a test" in history
    assert tower.out("coral-reef", "net", "history", "--show", "0") == ONE.strip()
    assert "SSH" in tower.out("coral-reef", "net", "firewall")
    (tower.root / "root/other.yaml").write_text(OTHER)
    lines = tower.out("coral-reef", "net", "diff", "/root/other.yaml").splitlines()
    assert "    + ipv4.address-data: 10.70.0.3/24" in lines
    assert addresses(tower, "reef0") == ["10.70.0.2"]


def test_the_firewall_stands_where_the_roles_say(tower: Machine) -> None:
    assert reaches(tower, "10.70.0.2", 22) == "silence"
    assert reaches(tower, "10.71.0.2", 22) == "refused"
    assert reaches(tower, "10.70.0.2", 8080) == "refused"


def test_a_file_with_errors(tower: Machine) -> None:
    (tower.root / "root/candidate.yaml").write_text("mode: hub\n")
    done = tower.run("coral-reef", "net", "apply", "/root/candidate.yaml", check=False)
    assert done.returncode == os.EX_CONFIG
    assert 'network.yaml:1: mode: is "hub", expected one of local, server, cluster, p2p_hub' in done.stderr


def test_confirmed_and_not_confirmed(tower: Machine) -> None:
    assert "it goes back in 300 s" in apply(tower, OTHER, "--confirm", "300")
    assert addresses(tower, "reef0") == ["10.70.0.3"]
    assert "goes back in" in tower.out("coral-reef", "net", "show")
    assert tower.out("coral-reef", "net", "cancel") == "everything is as it was before"
    assert addresses(tower, "reef0") == ["10.70.0.2"]
    apply(tower, OTHER, "--confirm", "2")
    wait_for("it goes back", lambda: addresses(tower, "reef0") == ["10.70.0.2"], within_s=BACK_WITHIN_S)
    assert (tower.root / YAML[1:]).read_text() == ONE
    apply(tower, OTHER, "--confirm", "300")
    tower.run("coral-reef", "net", "confirm")
    assert (tower.root / YAML[1:]).read_text() == OTHER
    tower.run("coral-reef", "net", "rollback")
    assert addresses(tower, "reef0") == ["10.70.0.2"]
    assert (tower.root / YAML[1:]).read_text() == ONE


@pytest.mark.parametrize("who", ["supervisor", "NetworkManager", "both"])
def test_killed_while_it_waits_for_a_confirmation(tower: Machine, who: str) -> None:
    apply(tower, OTHER, "--confirm", "300")
    assert addresses(tower, "reef0") == ["10.70.0.3"]
    if who != "NetworkManager":
        os.kill(main_pid(tower, SUPERVISOR), signal.SIGKILL)
    if who != "supervisor":
        tower.run("systemctl", "kill", "--signal=KILL", "NetworkManager")
    if who == "NetworkManager":  # with it went the checkpoint; we still wait, and go back by our own hand
        assert tower.out("coral-reef", "net", "cancel") == "everything is as it was before"
    wait_for("it goes back", lambda: addresses(tower, "reef0") == ["10.70.0.2"], within_s=BACK_WITHIN_S)
    wait_until_ready(tower)

    def settled() -> bool:
        state = json.loads(tower.out("coral-reef", "net", "show", "--json"))
        return bool(state["managed"] and not state["confirm_within_s"] and not state["drift"])

    wait_for("all is well", settled, within_s=BACK_WITHIN_S)
    assert (tower.root / YAML[1:]).read_text() == ONE
    profiles = tower.out("nmcli", "-t", "-f", "NAME", "connection", "show").splitlines()
    assert sorted(name for name in profiles if "Coral-Reef" in name) == [
        "Coral-Reef management",
        "Coral-Reef primary",
    ]


def test_after_a_restart_it_is_as_it_was(tower: Machine) -> None:
    before = tower.out("nmcli", "-t", "-f", "UUID,NAME,DEVICE", "connection", "show")
    tower.run("systemctl", "restart", SUPERVISOR)
    wait_until_ready(tower)
    assert "was so already" in tower.out("coral-reef", "net", "apply")
    assert tower.out("nmcli", "-t", "-f", "UUID,NAME,DEVICE", "connection", "show") == before


def test_the_rules_of_before_are_there_at_boot(tower: Machine) -> None:
    """Before any interface is, and by who has no right but that over networks."""
    listing = ("nft", "--stateless", "list", "table", "inet", "coral_reef")
    before = tower.out(*listing)
    tower.run("systemctl", "stop", SUPERVISOR)
    tower.run("nft", "delete", "table", "inet", "coral_reef")
    tower.run("systemctl", "start", FIREWALL)
    assert tower.out(*listing) == before
    assert "network-pre.target" in tower.show(FIREWALL, "Before").split()
    tower.run("systemctl", "start", SUPERVISOR)
    wait_until_ready(tower)
    assert tower.out(*listing) == before
