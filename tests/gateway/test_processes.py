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

#: argv: what a process does. Prints what systemd would hear.
PARENT = """
import os, signal, sys, time
from appliance.gateway import processes
from appliance.gateway.processes import Plan, Processes

processes.BEAT_S, processes.SILENCE_LIMIT_S, processes.RESTART_S = 0.1, 2.0, 0.01
how, count = sys.argv[1], int(sys.argv[2])

def serve(beat):
    if how == "fails":
        return 7
    while True:
        beat()
        time.sleep(0.1)

def tell(message):
    for line in message.splitlines():
        if not line.startswith("WATCHDOG"):
            print(line, flush=True)

plans = iter([None, Plan(count + 1, serve, 1.0), Plan(1, serve, 1.0)])
status = Processes(
    Plan(count, serve, 1.0), replan=lambda: next(plans), tell=tell, serving=lambda: print("serving", flush=True)
).run()
sys.exit(status)
"""


@dataclass
class Parent:
    process: subprocess.Popen[str]

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


def launch(how: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, how, str(count)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.fixture
def parent() -> Iterator[Parent]:
    """With two processes that serve."""
    with launch("lives", 2) as process:
        found = Parent(process)
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
        "EXTEND_TIMEOUT_USEC=10000000",
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
    for count in (3, 1):
        before = parent.children()
        parent.process.send_signal(signal.SIGHUP)

        def replaced(count: int = count, before: set[int] = before) -> bool:
            return len(parent.children()) == count and not before & parent.children()

        wait_for("all are replaced", replaced)


def test_processes_that_never_serve_end_it() -> None:
    with launch("fails", 2) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 7
    assert "serving" not in said
    assert "READY=1" not in said
