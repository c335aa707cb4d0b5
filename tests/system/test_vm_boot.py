"""The whole machine boots, reboots and switches itself off, and nothing in it has failed."""

from __future__ import annotations

import re

from .installed import SERVICES, SOCKET, TARGET, VM_MARKS, served
from .vm import VirtualMachine

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
