"""What only a kernel of its own shows: memory limits that hold, and that nothing comes of a process that hangs or ends."""

from __future__ import annotations

import random
import re
from typing import Any

import httpx

from tests.waiting import wait_for

from .installed import SERVICES, SUPERVISOR, VM_MARKS, served
from .report import Figures
from .vm import VirtualMachine

pytestmark = VM_MARKS

KILLS = 3

#: For a machine that is not slow: systemd waits for the watchdog for ten seconds.
NOTICED_WITHIN_S = 30.0

#: What `systemd-analyze security` may say at most.
EXPOSURE_LIMIT = 2.0

IDLE_S = 30

UNITS = "coral-reef*.service"

GROUP = "/sys/fs/cgroup/system.slice/coral-reef.service"


def status_of(machine: VirtualMachine) -> dict[str, Any]:
    key = machine.out("cat", "/var/lib/coral-reef/admin.key")
    headers = {"Authorization": f"Bearer {key}"}
    response = httpx.get(f"{machine.url}/api/v1/system/status", headers=headers, timeout=120, trust_env=False)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_a_worker_that_needs_too_much_memory_ends_alone(vm: VirtualMachine) -> None:
    """The kernel ends it, again and again; nobody else is touched; with more memory it is well again."""
    before, restarts = vm.ours(), vm.show(SUPERVISOR, "NRestarts")
    worker = next(each for each in status_of(vm)["workers"] if each["kind"] == "text")
    limit_mib = max(1, worker["rss_bytes"] // 2 >> 20)
    vm.put("/etc/coral-reef/appliance.toml", f"[text]\nmemory_limit_mib = {limit_mib}\n")
    vm.run(
        "coral-reef", "reload", check=False
    )  # the new worker is not ready: there is too little memory for it, too

    def ended() -> bool:
        events = vm.out("cat", f"{GROUP}/memory.events")  # those of the groups below count here
        return re.search(r"^oom_kill [1-9]", events, re.MULTILINE) is not None

    wait_for("the kernel has ended it", ended, within_s=NOTICED_WITHIN_S * vm.slowness, look_s=1.0)
    said = vm.journal("all", "--dmesg", "--grep=Memory cgroup out of memory")
    assert "coral-reef" in said
    others = {pid for pid, line in before.items() if "worker text" not in line}
    assert others <= set(vm.ours()), "nobody else was to end"
    assert vm.show(SUPERVISOR, "NRestarts") == restarts
    told = [each["id"] for each in status_of(vm)["repairs"]]
    assert f"worker_memory:{worker['name']}" in told or f"worker_crash_loop:{worker['name']}" in told, told
    vm.run("rm", "/etc/coral-reef/appliance.toml")
    vm.run("coral-reef", "reload")
    vm.wait_until_healthy()
    assert served(vm)["content"]


def test_the_supervisor_hangs(vm: VirtualMachine) -> None:
    """The watchdog ends it; it is back, and the gateway was not touched."""
    before = vm.ours()
    hanging = int(vm.show(SUPERVISOR, "MainPID"))
    vm.run("kill", "-STOP", str(hanging))
    wait_for(
        "systemd has noticed",
        lambda: int(vm.show(SUPERVISOR, "MainPID")) not in (0, hanging),
        within_s=NOTICED_WITHIN_S * vm.slowness,
        look_s=1.0,
    )
    vm.wait_until_healthy()
    after = vm.ours()
    doomed = {
        pid for pid, line in before.items() if line.split()[1] in ("supervisor", "forkserver", "worker")
    }
    assert not doomed & set(after), "they have outlived it"
    assert set(before) - doomed <= set(after), "nobody else was to end"
    assert "watchdog timeout" in vm.journal("all", f"--unit={SUPERVISOR}").lower()
    assert served(vm)["content"]


def test_random_kills(vm: VirtualMachine, chance: random.Random) -> None:
    kinds = sorted(line.split()[1] for line in vm.ours().values())
    for _ in range(KILLS):
        victim, line = chance.choice(sorted(vm.ours().items()))
        print(f"kill -9 of {line}")
        vm.run("kill", "-9", str(victim))
        vm.run("sh", "-c", f"while [ -e /proc/{victim} ]; do sleep 0.1; done")
        vm.wait_until_healthy()
        assert served(vm)["content"]
        wait_for(
            "all are there again",
            lambda: sorted(each.split()[1] for each in vm.ours().values()) == kinds,
            within_s=NOTICED_WITHIN_S * vm.slowness,
            look_s=1.0,
        )


def used_ns(machine: VirtualMachine, units: list[str]) -> int:
    """How much time of a processor these units have used."""
    shown = machine.out("systemctl", "show", "--value", "--property=CPUUsageNSec", *units)
    return sum(map(int, shown.split()))


def test_what_it_takes(vm: VirtualMachine, figures: Figures) -> None:
    """The report's part of what runs: memory of each unit, the processor when nobody asks, exposure."""
    units = vm.out("systemctl", "list-units", "--state=running", "--plain", "--no-legend", UNITS).splitlines()
    running = [line.split()[0] for line in units]
    assert set(SERVICES) <= set(running)
    for unit in running:
        figures.add(f"memory of {unit}", int(vm.show(unit, "MemoryCurrent")) / 2**20, "MiB")
    before = used_ns(vm, running)
    vm.run("sleep", str(IDLE_S))
    idle = (used_ns(vm, running) - before) / 1e9 / IDLE_S
    figures.add("of one of its processors while nobody asks", idle * 100, "%")
    shown = vm.out("systemd-analyze", "security", "--no-pager", timeout_s=300)
    scores = dict(re.findall(r"^(coral-reef\S*\.service)\s+(\d+\.\d)", shown, re.MULTILINE))
    assert set(running) <= set(scores), shown
    for unit, score in scores.items():
        figures.add(f"exposure of {unit}", float(score), "of 10")
    assert max(map(float, scores.values())) <= EXPOSURE_LIMIT
