"""The USB link on a booted machine: the gadget in the real configfs, and a desktop in a network namespace at its other end.

Desktop and tower are one machine: dummy_hcd is both ends of the cable. The port of its root hub is switched off and on for a
cable that is pulled and plugged in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.waiting import wait_for

from .guest import HOME
from .installed import GADGET, TARGET, USB_DHCP, VM_MARKS
from .report import Figures
from .vm import VirtualMachine

pytestmark = VM_MARKS

CONSOLE = "coral-reef-console@ttyGS0.service"

LINK = "/run/coral-reef/gadget/link.json"
GADGETS = "/sys/kernel/config/usb_gadget"
PORT = "/sys/bus/usb/devices/1-0:1.0/usb1-port1"
DEVICE = "/sys/bus/usb/devices/1-1"

#: For a machine that is not slow.
WITHIN_S = 20.0

#: The same from plugging in to an address. On a tower it is 5 s; the machine is also busy.
ADDRESS_WITHIN_S = 10.0

#: Plugs the cable in, and does what a desktop does then; prints what it took in seconds, by the machine's own clock.
DESKTOP = r"""
set -eu
seconds() { cut -d' ' -f1 /proc/uptime; }
ip netns add desktop
ip netns exec desktop ip link set lo up
began=$(seconds)
echo 0 >$1/disable
until interface=$(ls $2/1-1:1.*/net 2>/dev/null) && [ -n "$interface" ]; do sleep 0.05; done
udevadm settle
interface=$(ls $2/1-1:1.*/net)
ip link set $interface netns desktop name tower
ip netns exec desktop ip link set tower up
there=$(seconds)
cat >/run/lease.sh <<'END'
#!/bin/sh
if [ $1 = bound ]; then
    ip address add $ip/$mask dev $interface
    env >/run/lease
fi
END
chmod +x /run/lease.sh
ip netns exec desktop busybox udhcpc -i tower -n -q -f -t 20 -T 1 -s /run/lease.sh >&2
leased=$(seconds)
until ip netns exec desktop ip -6 address show dev tower scope link | grep inet6 | grep -qv tentative; do sleep 0.05; done
echo $began $there $leased $(seconds)
"""

#: Asks by multicast DNS, as a desktop does, for `NAME/TYPE`; prints the answers as JSON: name, type, the data in hex.
MDNS = r"""
import json, socket, struct, sys, time

KINDS = {"A": 1, "PTR": 12, "TXT": 16, "SRV": 33}

def name_at(data, at):
    labels, after = [], None
    while data[at]:
        if data[at] >= 0xC0:
            after = after or at + 2
            at = struct.unpack_from(">H", data, at)[0] & 0x3FFF
        else:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
    return ".".join(labels), after or at + 1

def records(data):
    questions, *counts = struct.unpack_from(">4H", data, 4)
    at = 12
    for _ in range(questions):
        at = name_at(data, at)[1] + 4
    for _ in range(sum(counts)):
        name, at = name_at(data, at)
        kind, _, _, size = struct.unpack_from(">HHIH", data, at)
        text = name_at(data, at + 10)[0] if kind == 12 else data[at + 10 : at + 10 + size].hex()
        yield [name, kind, text]
        at += 10 + size

link = socket.if_nametoindex("tower")
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
asking.bind(("", 5353))
group = socket.inet_aton("224.0.0.251")
asking.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("4s4si", group, bytes(4), link))
asking.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("4s4si", bytes(4), bytes(4), link))
asking.settimeout(2)
found = []
for wanted in sys.argv[1:]:
    name, kind = wanted.split("/")
    question = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + bytes(1)
    answers, deadline = [], time.monotonic() + 60
    while not answers and time.monotonic() < deadline:
        asking.sendto(struct.pack(">6H", 0, 0, 1, 0, 0, 0) + question + struct.pack(">HH", KINDS[kind], 1), ("224.0.0.251", 5353))
        try:
            while not answers:
                data = asking.recv(9000)
                if data[2] & 0x80:
                    answers = [each for each in records(data) if each[:2] == [name, KINDS[kind]]]
        except TimeoutError:
            pass
    found += answers
print(json.dumps(found))
"""

#: A chat by HTTP and one over the WebSocket, as a desktop's program has them.
CHAT = r"""
import json, pathlib, sys
import httpx
from websockets.sync.client import connect
headers = {"Authorization": "Bearer " + pathlib.Path("/var/lib/coral-reef/admin.key").read_text().strip()}
address, question = sys.argv[1], {"persona_id": "finn", "message": "Hello"}
reply = httpx.post(f"http://{address}:8080/api/v1/chat", json=question, headers=headers, timeout=120)
kinds = []
with connect(f"ws://{address}:8080/ws", additional_headers=headers, open_timeout=120) as socket:
    socket.send(json.dumps({"type": "chat", "payload": question}))
    while not kinds or kinds[-1] not in ("done", "error"):
        kinds.append(json.loads(socket.recv(timeout=120))["type"])
print(json.dumps([reply.status_code, bool(reply.json()["content"]), kinds]))
"""

#: Listens on all addresses of where it runs.
LISTEN = """
import socket, time
listening = socket.create_server(("", 4242))
while True:
    listening.accept()[0].close()
"""

#: Prints which of the addresses answer.
REACH = """
import socket, sys
for address in sys.argv[1:]:
    try:
        socket.create_connection((address, 4242), timeout=5).close()
        print(address)
    except OSError:
        pass
"""


def eventually(
    vm: VirtualMachine, what: str, condition: Callable[[], Any], *, within_s: float = WITHIN_S
) -> Any:
    """The first true value; each look costs the machine something."""
    return wait_for(what, condition, within_s=within_s * vm.slowness, look_s=0.5)


def usb(vm: VirtualMachine) -> dict[str, Any]:
    """How the gadget's service says the port is; empty while it says nothing."""
    done = vm.run("cat", LINK, check=False)
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {}


def connect(vm: VirtualMachine, *options: str) -> None:
    """A controller appears, with a desktop behind it, and that has accepted us."""
    vm.run("modprobe", "dummy_hcd", *options)
    eventually(vm, "the desktop is connected", lambda: usb(vm).get("state") == "connected")


def unplug(vm: VirtualMachine) -> None:
    """dummy_hcd's controller does not tell, as some real ones do not: only the desktop sees it."""
    vm.run("sh", "-c", f"echo 1 >{PORT}/disable")
    eventually(vm, "the desktop has lost it", lambda: not attribute(vm, "manufacturer"))


def active(vm: VirtualMachine, unit: str) -> bool:
    return vm.out("systemctl", "show", "--value", "--property=ActiveState", unit) == "active"


def wait_until_stopped(vm: VirtualMachine, unit: str) -> None:
    eventually(vm, f"{unit} has stopped", lambda: not active(vm, unit))


def attribute(vm: VirtualMachine, name: str) -> str:
    """Of the device, as the desktop sees it."""
    return vm.run("cat", f"{DEVICE}/{name}", check=False).stdout.strip()


def exposure(vm: VirtualMachine, unit: str) -> float:
    shown = vm.out("systemd-analyze", "security", "--no-pager", unit)
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", shown)
    assert found is not None, shown
    return float(found[1])


@pytest.mark.parametrize("speed", ["high-speed", "super-speed"])
def test_waits_comes_up_and_leaves_nothing(vm: VirtualMachine, speed: str) -> None:
    assert usb(vm)["state"] == "waiting"
    assert "no USB device controller" in vm.show(GADGET, "StatusText")
    assert vm.out("ls", GADGETS) == ""
    connect(vm, f"is_super_speed={int(speed == 'super-speed')}")
    said = usb(vm)
    assert (said["speed"], said["functions"], said["trouble"]) == (speed, ["acm", "ncm"], "")
    bus = DEVICE if speed == "high-speed" else "/sys/bus/usb/devices/2-1"
    shown = vm.out(
        "sh",
        "-c",
        f"cd {bus} && cat idVendor idProduct bDeviceClass bcdDevice manufacturer speed bNumConfigurations",
    )
    expected = ["1d6b", "0104", "ef", "0101", "Coral-Reef", "480" if speed == "high-speed" else "5000", "1"]
    assert shown.splitlines() == expected
    machine_id = vm.out("cat", "/etc/machine-id")
    assert machine_id not in vm.out("sh", "-c", f"cat {bus}/serial {bus}/*/net/*/address")
    eventually(vm, "DHCP runs", lambda: active(vm, USB_DHCP))
    eventually(vm, "the console runs", lambda: active(vm, CONSOLE))
    for unit in (GADGET, USB_DHCP, CONSOLE):
        assert exposure(vm, unit) <= 2.0, unit
    assert "10.67.82.1/28" in vm.show(GADGET, "StatusText")
    vm.run("systemctl", "stop", GADGET)
    assert vm.out("ls", GADGETS) == ""
    assert vm.run("nft", "list", "table", "inet", "coral_reef_usb", check=False).returncode != 0
    assert vm.run("test", "-e", "/dev/ttyGS0", check=False).returncode != 0
    for unit in (USB_DHCP, CONSOLE):
        wait_until_stopped(vm, unit)
        assert vm.show(unit, "Result") == "success"
    assert vm.show(GADGET, "Result") == "success"
    vm.run("systemctl", "start", GADGET)
    eventually(vm, "the desktop is connected", lambda: usb(vm).get("state") == "connected")


def test_the_cable_and_the_controller(vm: VirtualMachine) -> None:
    """Pulled, plugged in; then the controller itself goes and comes back."""
    connect(vm)
    unplug(vm)
    vm.run("sh", "-c", f"echo 0 >{PORT}/disable")
    eventually(vm, "the desktop sees it", lambda: attribute(vm, "manufacturer") == "Coral-Reef")
    eventually(vm, "it is connected", lambda: usb(vm)["state"] == "connected")
    vm.run("rmmod", "dummy_hcd")
    eventually(vm, "there is no controller", lambda: usb(vm)["state"] == "waiting")
    connect(vm)
    assert usb(vm)["trouble"] == ""


def test_frozen_is_bound_again(vm: VirtualMachine) -> None:
    """A desktop that asks and asks, and accepts nothing, until it does."""
    connect(vm)
    vm.run(
        "sh",
        "-c",
        f"echo 1 >{PORT}/disable; echo 0 >/sys/bus/usb/devices/usb1/authorized_default; echo 0 >{PORT}/disable",
    )
    eventually(
        vm,
        "it was bound again",
        lambda: "binding again" in vm.journal("all", f"--unit={GADGET}"),
        within_s=60,
    )
    vm.run("sh", "-c", "echo 1 >/sys/bus/usb/devices/usb1/authorized_default")
    eventually(vm, "it is connected", lambda: usb(vm)["state"] == "connected", within_s=60)


def test_killed(vm: VirtualMachine, long_run: bool) -> None:
    """While a desktop is there it does not notice; half way, the next one completes what it finds."""

    def kill() -> None:
        before = vm.show(GADGET, "NRestarts")
        vm.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", GADGET)
        eventually(vm, "systemd has started it again", lambda: vm.show(GADGET, "NRestarts") != before)

    connect(vm)
    number = attribute(vm, "devnum")
    kill()
    eventually(vm, "it is up again", lambda: active(vm, GADGET) and usb(vm).get("state") == "connected")
    assert attribute(vm, "devnum") == number, "the desktop saw it go"
    points = ("", "/strings/0x409", "/functions/acm.usb0", "/configs/c.1/ncm.usb0", "/os_desc/c.1")
    for point in points if long_run else points[::2]:
        vm.run("systemctl", "stop", GADGET)
        script = f"""
            systemctl start --no-block {GADGET}
            until [ -e {GADGETS}/coral-reef{point} ]; do :; done
            systemctl kill --signal=KILL --kill-whom=main {GADGET}
        """
        vm.run("sh", "-c", script)
        eventually(vm, "it is up again", lambda: active(vm, GADGET) and usb(vm).get("state") == "connected")
        assert usb(vm)["trouble"] == ""


def test_a_desktop_in_direct_mode(vm: VirtualMachine, figures: Figures) -> None:
    connect(vm)
    unplug(vm)
    took = vm.out("sh", "-c", DESKTOP, "desktop", PORT, DEVICE, timeout_s=60)
    began, there, leased, local = map(float, took.split())
    for what, when in (("interface", there), ("address by DHCP", leased), ("IPv6 link-local address", local)):
        figures.add(f"plugged in until there is an {what}, in the machine", when - began, "s")
    assert max(leased, local) - began < ADDRESS_WITHIN_S * vm.slowness

    # An address, and nothing else. NetworkManager leaves the tower's end alone.
    assert "usb0:unmanaged" in vm.out("nmcli", "--terse", "--fields=DEVICE,STATE", "device").splitlines()
    lease = dict(line.split("=", 1) for line in vm.out("cat", "/run/lease").splitlines() if "=" in line)
    assert (lease["subnet"], lease["serverid"]) == ("255.255.255.240", "10.67.82.1")
    assert not {"router", "dns", "domain", "staticroutes", "ntpsrv"} & set(lease)
    desktop = ("ip", "netns", "exec", "desktop")
    assert vm.out(*desktop, "ip", "route", "show", "default") == ""

    # It finds the tower by name, and learns what it may know.
    service = "_coral-reef._tcp.local"
    asked = ("coral-reef.local/A", f"{service}/PTR", f"coral-reef.{service}/SRV", f"coral-reef.{service}/TXT")
    found = json.loads(vm.out(*desktop, HOME / "bin/python", "-P", "-c", MDNS, *asked, timeout_s=120))
    answers = {kind: data for _, kind, data in found}
    assert len(found) == len(answers) == 4, found
    assert (answers[1], answers[12]) == ("0a435201", f"coral-reef.{service}")  # 10.67.82.1
    assert int(answers[33][8:12], 16) == 8080
    texts, left = [], bytes.fromhex(answers[16])
    while left:
        text, left = left[1 : 1 + left[0]], left[1 + left[0] :]
        texts.append(text.decode())
    version = vm.out("coral-reef", "--version").split()[1]
    assert sorted(text.partition("=")[0] for text in texts) == ["fingerprint", "version"]
    assert f"version={version}" in texts
    assert vm.out("stat", "--format=%a %U", "/var/lib/coral-reef/device.key") == "600 root"
    links = [line for line in vm.out("resolvectl", "mdns").splitlines() if line.startswith("Link")]
    assert [line.endswith("yes") for line in links] == ["(usb0)" in line for line in links], links

    # It talks to the API.
    said = vm.out(
        *desktop, HOME / "bin/python", "-P", "-c", CHAT, lease["ip"].rpartition(".")[0] + ".1", timeout_s=300
    )
    status, answered, kinds = json.loads(said)
    assert (status, answered) == (200, True)
    assert kinds[0] == "system"
    assert "token" in kinds
    assert kinds[-1] == "done"

    # There is no way to anywhere else, even where the machine forwards and listens on all of its addresses.
    vm.run(
        "sh",
        "-c",
        """set -eu
        ip netns add elsewhere
        ip link add elsewhere type veth peer name other netns elsewhere
        ip address add 192.0.2.1/24 dev elsewhere
        ip link set elsewhere up
        ip -n elsewhere address add 192.0.2.2/24 dev other
        ip -n elsewhere link set other up
        ip -n elsewhere route add default via 192.0.2.1
        ip -n desktop route add 192.0.2.0/24 via 10.67.82.1
        sysctl -qw net.ipv4.ip_forward=1""",
    )
    for where in ([], ["ip", "netns", "exec", "elsewhere"]):
        vm.run("systemd-run", "--collect", *where, HOME / "bin/python", "-P", "-c", LISTEN)
    others = ("192.0.2.1", "192.0.2.2", "10.67.82.1")
    reach = (HOME / "bin/python", "-P", "-c", REACH)
    listening = ("192.0.2.1", "192.0.2.2")
    eventually(vm, "both listen", lambda: vm.out(*reach, *listening).split() == list(listening))
    assert vm.out(*desktop, *reach, *others, timeout_s=60) == ""
    # It is our firewall that keeps it in.
    vm.run("nft", "delete", "table", "inet", "coral_reef_usb")
    assert vm.out(*desktop, *reach, *others, timeout_s=60).split() == list(others)


def test_direct_mode_switched_off(vm: VirtualMachine) -> None:
    """By the owner, or by a mistake in the file: the serial line alone, and another release of the device for desktops that
    remember."""
    yaml = "/etc/coral-reef/network.yaml"
    vm.put(yaml, "interfaces: {usb: {type: usb, enabled: no way}}\n")
    vm.run("systemctl", "restart", GADGET)
    connect(vm)
    assert (usb(vm)["functions"], "has errors" in usb(vm)["trouble"]) == (["acm"], True)
    vm.put(yaml, "interfaces: {usb: {type: usb, enabled: false}}\n")
    vm.run("systemctl", "restart", GADGET)
    eventually(vm, "the desktop is connected", lambda: usb(vm).get("state") == "connected")
    assert usb(vm)["trouble"] == ""
    assert usb(vm)["functions"] == ["acm"]
    assert attribute(vm, "bcdDevice") == "0100"
    assert vm.run("test", "-e", "/sys/class/net/usb0", check=False).returncode != 0
    eventually(vm, "the console runs", lambda: active(vm, CONSOLE))
    assert not active(vm, USB_DHCP)
    status = json.loads(vm.out("coral-reef", "status", "--json"))
    assert status["usb"]["interface"] == ""
    assert active(vm, TARGET)
