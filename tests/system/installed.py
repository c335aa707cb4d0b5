"""The appliance as a service of a machine of `nspawn`, as its administrator sees it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_for

from .guest import Guest
from .nspawn import Machine

#: For every module of tests that boots a machine.
MARKS = [
    pytest.mark.system,
    pytest.mark.timeout(900),
    pytest.mark.skipif("CORAL_REEF_FRESH_DEBIAN" in os.environ, reason="namespaces in namespaces"),
    pytest.mark.skipif(os.geteuid() != 0, reason="systemd-nspawn is root's"),
]

#: The same for the virtual machine, which takes longer.
VM_MARKS = [pytest.mark.timeout(1800) if mark.name == "timeout" else mark for mark in MARKS]

SUPERVISOR, GATEWAY, SOCKET, TARGET = (
    "coral-reef.service",
    "coral-reef-gateway.service",
    "coral-reef-gateway.socket",
    "coral-reef.target",
)
SERVICES = (SUPERVISOR, GATEWAY)

#: What serves the desktop at the USB port.
GADGET, USB_DHCP = "coral-reef-gadget.service", "coral-reef-usb-dhcp.service"

#: What loads the firewall's rules of before, at boot.
FIREWALL = "coral-reef-firewall.service"

#: What looks at the network, for each who asks at its socket.
DOCTOR, DOCTOR_SOCKET = "coral-reef-doctor@.service", "coral-reef-doctor.socket"

#: How long until it serves again, whatever was killed; the machine may be busy.
SERVED_AGAIN_WITHIN_S = 60.0

#: Asks for a reply of some words, and prints its status and all of it.
CHAT = """
import httpx, pathlib, sys
key = pathlib.Path("/var/lib/coral-reef/admin.key").read_text().strip()
reply = httpx.post(
    "http://127.0.0.1:8080/api/v1/chat",
    json={"persona_id": "finn", "message": "Hello"},
    headers={"Authorization": f"Bearer {key}"},
    timeout=60,
)
print(reply.status_code, reply.text)
"""


def enable(machine: Machine) -> None:
    """Enables and starts it, and returns when a worker is ready."""
    for unit in SERVICES:
        # Titles would overwrite the environment that the kernel shows.
        folder = machine.root / f"run/systemd/system/{unit}.d"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "environment.conf").write_text("[Service]\nEnvironment=SPT_NOENV=1\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "stop", *SERVICES, SOCKET)
    machine.run("systemctl", "enable", "--now", TARGET)
    wait_until_ready(machine)


def wait_until_ready(machine: Guest) -> None:
    def ready() -> bool:
        done = machine.run("coral-reef", "status", "--json", check=False)
        return done.returncode == 0 and bool(json.loads(done.stdout)["ready"])

    wait_for("a worker is ready", ready, within_s=SERVED_AGAIN_WITHIN_S * machine.slowness)


def served(machine: Guest) -> dict[str, Any]:
    """A whole reply through the gateway."""
    status, _, body = machine.python(CHAT).partition(" ")
    assert status == "200", body
    reply: dict[str, Any] = json.loads(body)
    assert reply["content"], reply
    return reply


def main_pid(machine: Machine, unit: str) -> int:
    """The unit's main process, by this machine's process ids."""
    inside = int(machine.show(unit, "MainPID"))
    for pid in machine.processes():
        if status_of(pid)["NSpid"].split()[-1] == str(inside):
            return pid
    raise AssertionError(f"{unit} has no main process")


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
    return dict(line.split(":\t", 1) for line in lines)


def environment_of(pid: int) -> dict[str, str]:
    items = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(item.decode("utf-8", "replace").split("=", 1) for item in items if b"=" in item)
