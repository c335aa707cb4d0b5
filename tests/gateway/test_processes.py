"""The parent of the gateway processes, with processes that do nothing else but live."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import appliance
from tests.waiting import wait_for, wait_until_gone

ROOT = Path(appliance.__file__).parents[1]

#: argv: a plan, and the file where others are found: a plan is a number of processes, with a minus sign of ones that cannot
#: serve; nothing is no plan. Prints what systemd would hear. On SIGUSR1 a process tells of a change.
PARENT = """
import os, pathlib, signal, sys, time
from appliance.gateway import processes
from appliance.gateway.processes import Plan, Processes

processes.BEAT_S, processes.SILENCE_LIMIT_S, processes.RESTART_S = 0.1, 2.0, 0.01
processes.STOP_MARGIN_S = 1.0
def plan(count):
    def serve(parent):
        signal.signal(signal.SIGUSR1, lambda *_: parent.changed())
        if count < 0:
            return 7
        while True:
            parent.beat()
            time.sleep(0.1)

    return Plan(abs(count), serve, 1.0, count)

def replan():
    print("planned", flush=True)
    said = pathlib.Path(sys.argv[2]).read_text()
    return plan(int(said)) if said else None

def tell(message):
    for line in message.splitlines():
        if not line.startswith("WATCHDOG"):
            print(line, flush=True)

first = plan(int(sys.argv[1]))
sys.exit(Processes(first, replan=replan, tell=tell, serving=lambda: print("serving", flush=True)).run())
"""


@dataclass
class Parent:
    process: subprocess.Popen[str]
    next_plan: Path

    def plan(self, plan: int | None) -> None:
        """What it finds when it plans again."""
        self.next_plan.write_text("" if plan is None else str(plan))

    def children(self) -> set[int]:
        """Its living processes."""
        living = set()
        for each in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):  # ended while we look
                if each.status() != psutil.STATUS_ZOMBIE:
                    living.add(each.pid)
        return living

    def read_until(self, end: str) -> list[str]:
        assert self.process.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1] != end:
            line = self.process.stdout.readline()
            assert line, f"it ended after {lines}"
            lines.append(line.removesuffix("\n"))
        return lines


def launch(plan: int, next_plan: Path) -> subprocess.Popen[str]:
    next_plan.touch()
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(plan), str(next_plan)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Parent]:
    """With two processes that serve."""
    with launch(2, tmp_path / "plan") as process:
        found = Parent(process, tmp_path / "plan")
        try:
            found.read_until("STATUS=2 of 2 processes serve")
            yield found
        finally:
            process.kill()


def test_ready_once_and_an_orderly_end(parent: Parent) -> None:
    children = parent.children()
    assert len(children) == 2
    assert all(" ".join(psutil.Process(pid).cmdline()).strip() == "coral-reef: gateway" for pid in children)
    parent.process.terminate()
    said, _ = parent.process.communicate(timeout=60)
    assert parent.process.returncode == 0
    assert said.splitlines()[:3] == [
        "STOPPING=1",
        "STATUS=stopping: replies may end",
        "EXTEND_TIMEOUT_USEC=1000000",
    ]
    assert not any(map(psutil.pid_exists, children))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_what_dies_or_falls_silent_is_replaced(parent: Parent, number: signal.Signals) -> None:
    before = parent.children()
    victim = min(before)
    os.kill(victim, number)
    wait_for(
        "another takes its place", lambda: victim not in parent.children() and len(parent.children()) == 2
    )
    assert len(before & parent.children()) == 1, "its neighbour was not to be touched"


def test_a_killed_parent_leaves_no_orphan(parent: Parent) -> None:
    children = parent.children()
    parent.process.kill()
    parent.process.wait()
    assert children
    wait_until_gone(*children)


def test_a_reload_replaces_all_of_them(parent: Parent) -> None:
    before = parent.children()
    parent.process.send_signal(signal.SIGHUP)  # the first time there is no other plan
    lines = parent.read_until("READY=1")
    assert lines[0] == "RELOADING=1"
    assert lines[1].startswith("MONOTONIC_USEC=")
    assert parent.children() == before
    for count in (3, 3, 1):
        before = parent.children()
        parent.plan(count)
        parent.process.send_signal(signal.SIGHUP)
        wait_until_replaced(parent, before, count)


def wait_until_replaced(parent: Parent, before: set[int], count: int) -> None:
    """Until there are so many, and none of those."""

    def replaced() -> bool:
        now = parent.children()
        return len(now) == count and not before & now

    wait_for("all are replaced", replaced)


def test_a_change_that_each_process_tells_of_replaces_them_once(parent: Parent) -> None:
    first = parent.children()
    parent.plan(3)
    for pid in first:
        os.kill(pid, signal.SIGUSR1)
    lines = parent.read_until("STATUS=3 of 3 processes serve")
    assert "RELOADING=1" not in lines, "nobody ordered it"
    wait_until_replaced(parent, first, 3)
    second = parent.children()
    for pid in second:
        os.kill(pid, signal.SIGUSR1)
    parent.read_until("planned")
    parent.plan(None)
    parent.process.send_signal(signal.SIGHUP)
    parent.read_until("READY=1")
    assert parent.children() == second, "the settings are those that they have"


@pytest.mark.parametrize("count", [-1, -2, -3])
def test_new_processes_that_cannot_serve_leave_the_ones_before(parent: Parent, count: int) -> None:
    before = parent.children()
    parent.plan(count)
    os.kill(min(before), signal.SIGUSR1)
    trouble = "with the new settings they ended with status 7, those before go on"
    parent.read_until(f"STATUS=2 of 2 processes serve; {trouble}")
    assert before & parent.children()
    for pid in parent.children():
        os.kill(pid, signal.SIGUSR1)  # the same settings: it knows them
    parent.read_until("planned")
    parent.plan(2)
    os.kill(min(parent.children()), signal.SIGUSR1)  # the owner has put it right
    parent.read_until("STATUS=2 of 2 processes serve")
    parent.plan(3)
    os.kill(min(parent.children()), signal.SIGUSR1)
    parent.read_until("STATUS=3 of 3 processes serve")
    wait_until_replaced(parent, before, 3)


def test_one_that_does_not_leave_is_killed(parent: Parent) -> None:
    before = parent.children()
    os.kill(min(before), signal.SIGSTOP)
    parent.process.send_signal(signal.SIGTERM)
    parent.process.wait(timeout=60)
    assert parent.process.returncode == 0
    assert not any(map(psutil.pid_exists, before))


def test_processes_that_never_serve_end_it(tmp_path: Path) -> None:
    with launch(-2, tmp_path / "plan") as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 7
    assert "serving" not in said
    assert "READY=1" not in said
