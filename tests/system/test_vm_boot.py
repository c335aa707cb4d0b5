"""The whole machine boots, reboots and switches itself off, and nothing in it has failed."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

from .booted import ROOT, free_port
from .image import Image
from .installed import SERVICES, SOCKET, TARGET, VM_MARKS, served
from .terminal import terminal
from .vm import BOOT_TIMEOUT_S, EMULATED, VirtualMachine

pytestmark = VM_MARKS


def check_health(machine: VirtualMachine) -> None:
    """Everything runs that should, nothing has failed, and the order of the start had no knots."""
    assert machine.out("systemctl", "--failed", "--plain", "--no-legend") == ""
    for unit in (TARGET, SOCKET, *SERVICES):
        assert machine.out("systemctl", "is-active", unit) == "active"
    said = machine.journal("all", "--boot", "_PID=1")
    knots = [line for line in said.splitlines() if re.search(r"ordering cycle|deleted to break", line)]
    assert not knots, knots


def test_it_boots(vm: VirtualMachine) -> None:
    check_health(vm)
    assert served(vm)["finish_reason"] == "stop"


def test_it_reboots(vm: VirtualMachine) -> None:
    vm.reboot()
    check_health(vm)
    assert served(vm)["finish_reason"] == "stop"


def test_it_switches_itself_off(vm: VirtualMachine) -> None:
    """In order: nothing had to be killed."""
    vm.switch_off()
    vm.switch_on()
    vm.wait_until_booted()
    said = vm.journal("all", "--boot=-1", "--unit=coral-reef*")
    assert "Stopped coral-reef.service" in said
    assert "stop-sigterm" not in said, said  # the state that a service is in when it has to be killed


def test_a_person_boots_one(vm_image: Image) -> None:
    """`make vm`: its console is the terminal, and Ctrl-A X is the end of it."""
    command = [sys.executable, "-m", "tests.system.vm"]
    port = free_port()
    with terminal(command, cwd=ROOT, env={**os.environ, "PORT": str(port)}) as person:
        person.expect(rf"http://127\.0\.0\.1:{port}", within_s=BOOT_TIMEOUT_S)
        person.expect("Welcome to", within_s=BOOT_TIMEOUT_S * EMULATED)
        person.type("\x01x")
        assert person.wait() == 0


def test_a_person_whose_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "tests.system.vm"],
            cwd=ROOT,
            env={**os.environ, "PORT": str(port)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert (
        done.stderr == f"coral-reef: 127.0.0.1:{port}: Address already in use; try make vm PORT={port + 1}\n"
    )
