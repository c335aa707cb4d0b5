"""Whatever process of the installed appliance ends or hangs, at any moment: it serves again, and nothing is left over."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from tests.waiting import wait_for, wait_until_gone

from .guest import HOME
from .installed import MARKS, enable
from .nspawn import Machine

pytestmark = MARKS

KILLS = 50
OTHER_ENDS = 10

#: What the owner was promised, whatever was killed.
SERVED_AGAIN_WITHIN_S = 10.0

#: A process that hangs is found out by its silence: a forkserver after 20 s, a gateway and a worker (without leases) after 30.
HANG_ENDS_WITHIN_S = 120.0

#: Until the process table is as it was; nobody was promised a time.
HEALED_WITHIN_S = 60.0

#: Who ends with whom.
BELOW = {
    "supervisor": ("supervisor", "forkserver", "worker"),
    "forkserver": ("forkserver", "worker"),
    "parent": ("parent", "gateway"),
}

#: Whose child each is; the others are systemd's.
PARENTS = {"forkserver": "supervisor", "worker": "forkserver", "gateway": "parent"}

#: For each line of standard input a reply, tried again and again until there is one; prints what came instead of it.
ASK = """
import httpx, pathlib, sys, time
key = pathlib.Path("/var/lib/coral-reef/admin.key").read_text().strip()
print("ready", flush=True)
for line in sys.stdin:
    instead, deadline = [], time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            reply = httpx.post(
                "http://127.0.0.1:8080/api/v1/chat",
                json={"persona_id": "finn", "message": "Hello"},
                headers={"Authorization": f"Bearer {key}"},
                timeout=30,
            )
            if reply.status_code == 200 and reply.json()["content"]:
                break
            instead.append(str(reply.status_code))
        except httpx.HTTPError as error:
            instead.append(repr(error))
        time.sleep(0.05)
    else:
        print("none:", end=" ")
    print("served after", *(instead or ["nothing"]), flush=True)
"""


def kind_of(line: str) -> str:
    """What a command line is; empty for what is not of the appliance."""
    if line.startswith("coral-reef: "):
        return line.removeprefix("coral-reef: ").split()[0]
    return "without a title" if str(HOME) in line and " -c " not in line else ""


class Table:
    """The appliance's processes at a moment, by this machine's process ids."""

    def __init__(self, machine: Machine) -> None:
        self.kinds = {pid: kind for pid, line in machine.processes().items() if (kind := kind_of(line))}
        self.parents = {pid: _parent_of(pid) for pid in self.kinds}
        self.count = Counter(self.kinds.values())

    def whole(self) -> bool:
        """Whether each is the child of whom it should be: an orphan would be systemd's."""
        return all(self.kinds.get(self.parents[pid]) == PARENTS.get(kind) for pid, kind in self.kinds.items())

    def doomed(self, pid: int) -> set[int]:
        """Who ends with it, itself included."""
        kinds = BELOW.get(self.kinds[pid], ())
        return {pid} | {each for each, kind in self.kinds.items() if kind in kinds}


def _parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0


class Client:
    """Asks for replies from inside the machine."""

    def __init__(self, asking: subprocess.Popen[str]) -> None:
        self._asking = asking

    def ask(self) -> str:
        """Returns when there was a reply, with what there was before it."""
        assert self._asking.stdin is not None
        self._asking.stdin.write("\n")
        self._asking.stdin.flush()
        return self.line()

    def line(self) -> str:
        assert self._asking.stdout is not None
        return self._asking.stdout.readline().strip()


@pytest.fixture(scope="module")
def running(machine: Machine) -> Machine:
    enable(machine)
    return machine


@pytest.fixture
def client(running: Machine) -> Iterator[Client]:
    command = running.command(HOME / "bin/python", "-P", "-c", ASK)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asking:
        found = Client(asking)
        try:
            assert found.line() == "ready"
            assert found.ask().startswith("served after")
            yield found
        finally:
            asking.kill()


def wait_until_whole(machine: Machine, expected: Counter[str]) -> Table:
    """Until its processes are of the same kinds and number as before, each the child of whom it should be."""
    latest: list[Table] = []

    def healed() -> bool:
        latest[:] = [Table(machine)]
        return latest[0].count == expected and latest[0].whole()

    try:
        wait_for("the process table is as it was", healed, within_s=HEALED_WITHIN_S)
    except AssertionError as error:
        raise AssertionError(f"{error}: {latest[0].kinds}, parents {latest[0].parents}") from None
    return latest[0]


def ends_and_heals(
    machine: Machine, client: Client, table: Table, victim: int, number: signal.Signals
) -> tuple[float, Table]:
    """Sends a signal; returns after how many seconds there was a reply again, and the processes then."""
    doomed = table.doomed(victim)
    began = time.monotonic()
    os.kill(victim, number)
    wait_until_gone(*doomed)
    said = client.ask()
    served_s = time.monotonic() - began
    what = f"{number.name} of {table.kinds[victim]}: {said} ({served_s:.1f} s)"
    assert said.startswith("served after"), what
    assert served_s < SERVED_AGAIN_WITHIN_S, what
    return served_s, wait_until_whole(machine, table.count)


@pytest.mark.parametrize(
    ("numbers", "times"),
    [((signal.SIGKILL,), KILLS), ((signal.SIGSEGV, signal.SIGABRT), OTHER_ENDS)],
    ids=["SIGKILL", "crashes"],
)
def test_random_ends(
    running: Machine,
    client: Client,
    chance: random.Random,
    numbers: tuple[signal.Signals, ...],
    times: int,
) -> None:
    table = wait_until_whole(running, Table(running).count)
    assert set(table.count) == {"supervisor", "forkserver", "worker", "parent", "gateway", "gadget"}
    took: dict[str, list[float]] = defaultdict(list)
    try:
        for _ in range(times):
            victim = chance.choice(sorted(table.kinds))
            kind = table.kinds[victim]
            served_s, table = ends_and_heals(running, client, table, victim, chance.choice(numbers))
            took[kind].append(served_s)
    finally:
        for kind, seconds in sorted(took.items()):
            print(
                f"{kind}: {len(seconds)} times, served again after {median(seconds):.1f} s, at most {max(seconds):.1f} s"
            )


def test_random_hangs(running: Machine, client: Client) -> None:
    """One of each kind that others watch; a supervisor's, which systemd watches, is in `test_systemd`."""
    table = wait_until_whole(running, Table(running).count)
    hanging = {next(pid for pid in table.kinds if table.kinds[pid] == kind) for kind in ("worker", "gateway")}
    for pid in hanging:
        os.kill(pid, signal.SIGSTOP)
    wait_until_gone(*hanging, within_s=HANG_ENDS_WITHIN_S)
    assert client.ask().startswith("served after")
    table = wait_until_whole(running, table.count)
    for kind in ("forkserver", "parent"):
        victim = next(pid for pid in table.kinds if table.kinds[pid] == kind)
        os.kill(victim, signal.SIGSTOP)
        wait_until_gone(*table.doomed(victim), within_s=HANG_ENDS_WITHIN_S)
        assert client.ask().startswith("served after")
        table = wait_until_whole(running, table.count)
