"""The power fails while everything writes: QEMU is killed. It boots, and nothing that was acknowledged is lost."""

from __future__ import annotations

import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.waiting import wait_for

from .guest import HOME
from .installed import VM_MARKS
from .report import Figures
from .talk import events_in, question, session_of, text_of
from .vm import VirtualMachine

pytestmark = [*VM_MARKS, pytest.mark.timeout(5400)]

CUTS, LONG_CUTS = 3, 20

#: What the writer in the machine reports.
KINDS = ("key", "user", "configuration", "model")

#: Conversations at the same time.
CHATTING = 3

#: From the first acknowledgement of each kind until the cut, at most.
WRITING_S = 8.0

#: Until each has been acknowledged once, for a machine that is not slow.
ACKNOWLEDGED_WITHIN_S = 30.0

#: Makes an API key for each line of standard input; as the gateway.
KEYS = """
import sys
from appliance.identity.keys import ApiKeys
from appliance.identity.roles import Role
from appliance.paths import Paths
from appliance.storage.database import Database

with Database.open(Paths.system()) as database:
    keys = ApiKeys(database)
    for line in sys.stdin:
        print(keys.create("power", Role.USER)[1], flush=True)
"""

#: Writes what an owner writes, again and again from number $1 on, and reports each when it has been acknowledged; $2 is KEYS.
WRITER = """
import io, itertools, os, pathlib, subprocess, sys
from appliance.cli.main import main
from appliance.files import write_atomically
from appliance.inference.models import SHIPPED

become = ["setpriv", "--reuid=coral-gateway", "--regid=coral-gateway", "--init-groups"]
keys = subprocess.Popen(
    [*become, sys.executable, "-P", "-c", sys.argv[2]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
)
report = os.open("/dev/virtio-ports/acknowledged", os.O_WRONLY)
(source,) = SHIPPED.glob("*chat*.gguf")
configuration = pathlib.Path("/etc/coral-reef/appliance.toml")
for number in itertools.count(int(sys.argv[1])):
    keys.stdin.write(b"\\n")
    keys.stdin.flush()
    os.write(report, b"key " + keys.stdout.readline())
    sys.stdin = io.TextIOWrapper(io.BytesIO(b"correct horse battery\\n"))
    assert main(["user", "add", f"user{number}", "--password-stdin"]) == 0
    os.write(report, b"user user%d\\n" % number)
    write_atomically(configuration, b"[chat]\\nmax_tokens = %d\\n" % (1000 + number))
    os.write(report, b"configuration %d\\n" % (1000 + number))
    assert main(["model", "add", str(source), "--name", f"model{number}"]) == 0
    os.write(report, b"model model%d\\n" % number)
"""

#: As the gateway: what the database says of itself, and how many keys of those on standard input it takes.
CHECK = """
import sys
from appliance.identity.keys import ApiKeys
from appliance.paths import Paths
from appliance.storage.database import Database

with Database.open(Paths.system()) as database:
    with database.reading() as connection:
        for pragma in ("integrity_check", "cipher_integrity_check", "foreign_key_check"):
            print(pragma, [tuple(row) for row in connection.exec_driver_sql(f"PRAGMA {pragma}")])
    keys = ApiKeys(database)
    texts = sys.stdin.read().split()
    print("keys", sum(keys.verify(text) is not None for text in texts), "of", len(texts))
"""


@dataclass
class Acknowledged:
    """All that somebody was told is done."""

    turns: list[tuple[str, str, str]] = field(default_factory=list)
    reports: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def counts(self) -> list[int]:
        return [len(self.turns), *map(len, self.reports.values())]

    def hear(self, machine: VirtualMachine) -> None:
        """What the writer in the machine has reported so far; a last line that was cut off is none."""
        self.reports = {kind: [] for kind in KINDS}
        for line in machine.acknowledged.splitlines(keepends=True):
            kind, _, what = line.partition(" ")
            if what.endswith("\n"):
                self.reports[kind].append(what.strip())


def chat_on(url: str, key: str, done: Acknowledged, over: threading.Event) -> None:
    """One turn after the other in one conversation, until the power fails."""
    session: dict[str, str] = {}
    with httpx.Client(base_url=url, headers=bearer(key), timeout=120, trust_env=False) as client:
        while not over.is_set():
            message = f"Hello, this is turn {time.monotonic_ns()}"
            body = question(message, max_tokens=8, **session)
            events = []
            try:
                with client.stream("POST", "/api/v1/chat/stream", json=body) as response:
                    assert response.status_code == 200, response.read()
                    for event in events_in(response.iter_lines()):
                        events.append(event)
                        if event["type"] == "done":
                            session = {"session_id": session_of(events)}
                            done.turns.append((session["session_id"], message, text_of(events)))
            except httpx.TransportError:
                assert over.wait(10), "a chat broke off, and the power was on"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def write_until_cut(
    machine: VirtualMachine, key: str, done: Acknowledged, number: int, writing_s: float
) -> None:
    """Everybody writes; when each has been acknowledged anew, and `writing_s` later, the power fails."""
    before = done.counts()
    over = threading.Event()

    def acknowledged() -> bool:
        done.hear(machine)
        return all(now > then for now, then in zip(done.counts(), before, strict=True))

    with ThreadPoolExecutor(CHATTING) as threads:
        chats = [threads.submit(chat_on, machine.url, key, done, over) for _ in range(CHATTING)]
        try:
            writer: list[str | Path] = [HOME / "bin/python", "-P", "-c", WRITER, str(1000 * number), KEYS]
            machine.run("systemd-run", "--quiet", "--unit=writer", *writer)
            wait_for(
                "everybody is acknowledged", acknowledged, within_s=ACKNOWLEDGED_WITHIN_S * machine.slowness
            )
            time.sleep(writing_s)  # a moment that was drawn is what is tested
            assert machine.out("systemctl", "is-active", "writer") == "active"
        finally:
            over.set()
            machine.cut_power()
        for chat in chats:
            chat.result()
    done.hear(machine)


def check(machine: VirtualMachine, key: str, done: Acknowledged) -> None:
    """Nothing of it is lost, and the database is whole."""
    with httpx.Client(base_url=machine.url, headers=bearer(key), timeout=120, trust_env=False) as client:
        for session in {session for session, _, _ in done.turns}:
            answer = client.get(f"/api/v1/chat/history/{session}", params={"limit": 1000})
            assert answer.status_code == 200, answer.text
            said = [(each["role"], each["content"]) for each in answer.json()["messages"]]
            kept = set(zip(said[::2], said[1::2], strict=True))  # a turn is there as a whole or not at all
            for _, message, reply in (turn for turn in done.turns if turn[0] == session):
                assert (("user", message), ("assistant", reply)) in kept, f"lost from {session}: {message}"
    users = json.loads(machine.out("coral-reef", "user", "list", "--json"))
    assert set(done.reports["user"]) <= {user["name"] for user in users}
    latest = int(done.reports["configuration"][-1])
    written = machine.out("cat", "/etc/coral-reef/appliance.toml")
    assert written in (f"[chat]\nmax_tokens = {number}" for number in (latest, latest + 1))
    models = json.loads(machine.out("coral-reef", "model", "list", "--json"))
    assert set(done.reports["model"]) <= {model["name"] for model in models}, models
    machine.run("coral-reef", "model", "verify", timeout_s=300)
    keys = done.reports["key"]
    program: list[str | Path] = [HOME / "bin/python", "-P", "-c", CHECK]
    found = machine.run(*program, user="coral-gateway", given="\n".join(keys).encode()).stdout
    assert found.splitlines() == [
        "integrity_check [('ok',)]",
        "cipher_integrity_check []",
        "foreign_key_check []",
        f"keys {len(keys)} of {len(keys)}",
    ]
    assert machine.out("systemctl", "--failed", "--plain", "--no-legend") == ""


def test_the_power_fails(vm: VirtualMachine, chance: random.Random, long_run: bool, figures: Figures) -> None:
    cuts = LONG_CUTS if long_run else CUTS
    key = vm.out("cat", "/var/lib/coral-reef/admin.key")
    done = Acknowledged()
    booted_s = []
    for number in range(cuts):
        write_until_cut(vm, key, done, number, chance.uniform(0, WRITING_S))
        began = time.monotonic()
        vm.switch_on()
        vm.wait_until_booted()
        vm.wait_until_healthy()
        booted_s.append(time.monotonic() - began)
        check(vm, key, done)
    counts = dict(zip(("turn", *KINDS), done.counts(), strict=True))
    figures.add("power cuts during writes", cuts, "")
    figures.add("acknowledged, and found again after every cut", sum(counts.values()), "")
    figures.add("from the return of the power to a healthy appliance, longest", max(booted_s), "s")
    print(counts)
