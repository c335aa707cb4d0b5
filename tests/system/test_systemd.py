"""The appliance as a service of a real systemd, as its administrator sees it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import wait_for, wait_until_gone

from .guest import HOME
from .installed import (
    DOCTOR,
    DOCTOR_SOCKET,
    FIREWALL,
    GADGET,
    GATEWAY,
    MARKS,
    SERVED_AGAIN_WITHIN_S,
    SERVICES,
    SOCKET,
    SUPERVISOR,
    TARGET,
    USB_DHCP,
    enable,
    environment_of,
    main_pid,
    served,
    status_of,
    wait_until_ready,
)
from .nspawn import Machine

pytestmark = MARKS

MORE = (GADGET, USB_DHCP, DOCTOR_SOCKET, FIREWALL)

#: What udev wants when an Edge TPU comes.
TPU_TARGET = "coral-reef-tpu.target"

#: What `systemd-analyze security` may say at most.
EXPOSURE_LIMIT = 2.0

STOP_WITHIN_S = 60.0

#: Asks for the health over a fresh connection again and again until standard input ends; prints what was not an answer.
ASK_ON = """
import httpx, select, sys
asked = 0
while not select.select([sys.stdin], [], [], 0.02)[0]:
    try:
        answer = httpx.get("http://127.0.0.1:8080/health", timeout=60)
        assert answer.status_code in (200, 503), answer.status_code
    except (httpx.HTTPError, AssertionError) as error:
        print(f"after {asked}: {error!r}", flush=True)
    asked += 1
    if asked == 3: print("asking", flush=True)
print("asked", asked, flush=True)
"""


@pytest.fixture(scope="module")
def running(machine: Machine) -> Machine:
    """A machine whose owner has enabled the appliance and seen it start."""
    enable(machine)
    return machine


#: The network's doctor, asked over HTTP; prints the status and the findings.
EXAMINE = """
import httpx, pathlib
key = pathlib.Path("/var/lib/coral-reef/admin.key").read_text().strip()
answer = httpx.post(
    "http://127.0.0.1:8080/api/v1/system/network/doctor",
    json={"host": "127.0.0.1"},
    headers={"Authorization": f"Bearer {key}"},
    timeout=180,
)
print(answer.status_code, answer.text)
"""


# --- before it runs -----------------------------------------------------------------------------------------------


def test_verify_prints_nothing(machine: Machine) -> None:
    done = machine.run("systemd-analyze", "verify", *SERVICES, *MORE, SOCKET, TARGET, TPU_TARGET)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("unit", [*SERVICES, GADGET, USB_DHCP, DOCTOR, FIREWALL])
def test_exposure(machine: Machine, unit: str) -> None:
    shown = machine.out(
        "systemd-analyze", "security", "--offline=yes", f"/usr/lib/systemd/system/{unit}", "--no-pager"
    )
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", shown)
    assert found is not None, shown
    assert float(found[1]) <= EXPOSURE_LIMIT, shown


def test_the_installed_tree(machine: Machine) -> None:
    assert machine.out("coral-reef", "--version").startswith("coral-reef ")
    assert machine.run("systemctl", "is-enabled", TARGET, check=False).stdout == "disabled\n"
    machine.run("systemctl", "preset", TARGET)
    assert machine.out("systemctl", "is-enabled", TARGET) == "enabled"
    examples = machine.root / "usr/share/coral-reef/examples"
    assert {"appliance.toml", "local.yaml"} <= {path.name for path in examples.iterdir()}
    machine.run("coral-reef", "config", "check", "/usr/share/coral-reef/examples/appliance.toml")
    machine.run("bash", "-n", "/usr/share/bash-completion/completions/coral-reef")
    # Nothing in it knows the tree in which it was made.
    for script in (machine.root / HOME.relative_to("/") / "bin").iterdir():
        if script.is_file() and not script.is_symlink():
            first = script.read_bytes().partition(b"\n")[0]
            assert not first.startswith(b"#!") or b"reef-root" not in first, script


def test_users_and_folders(machine: Machine) -> None:
    groups = {
        user: [user, *sorted({*machine.out("id", "--name", "--groups", user).split()} - {user})]
        for user in ("coral-reef", "coral-worker", "coral-gateway", "coral-console")
    }
    assert groups == {
        "coral-reef": ["coral-reef", "apex", "plugdev"],
        "coral-worker": ["coral-worker", "apex", "plugdev"],
        "coral-gateway": ["coral-gateway", "coral-reef"],
        "coral-console": ["coral-console", "coral-reef", "systemd-journal"],
    }
    folders = (
        "/etc/coral-reef",
        "/var/lib/coral-reef",
        "/var/lib/coral-reef/models",
        "/var/lib/coral-reef/supervisor",
        "/run/coral-reef/workers",
    )
    assert machine.out("stat", "--format=%a %U %G", *folders).splitlines() == [
        "2750 coral-reef coral-reef",
        "1771 root coral-gateway",
        "755 root root",
        "750 coral-reef coral-reef",
        "2750 coral-worker coral-reef",
    ]


# --- while it runs ------------------------------------------------------------------------------------------------


def test_start_returns_when_it_serves(machine: Machine) -> None:
    machine.run("systemctl", "start", GATEWAY)
    for unit in (*SERVICES, SOCKET):
        assert machine.out("systemctl", "is-active", unit) == "active"
    served(machine)


def test_a_tpu_starts_what_is_enabled(running: Machine) -> None:
    running.run("systemctl", "stop", *SERVICES, SOCKET, TARGET)
    running.run("systemctl", "start", TPU_TARGET)  # as for SYSTEMD_WANTS of a device
    wait_until_ready(running)
    assert running.out("systemctl", "is-active", TARGET) == "active"
    assert (running.root / "usr/lib/udev/rules.d/65-coral-reef-tpu.rules").is_file()


def test_the_devices_within_reach(running: Machine) -> None:
    """No udev and no /sys of its own in there, but the supervisor looks all the same; of /dev it may open TPUs alone."""
    wait_until_ready(running)
    found = json.loads(running.out("coral-reef", "tpu", "list", "--json"))
    assert (found["tpus"], found["hotplug"]) == ([], "polled")
    allowed = running.show(SUPERVISOR, "DeviceAllow")
    assert {line.split()[0] for line in allowed.splitlines()} >= {"char-usb_device", "char-apex"}
    assert running.show(SUPERVISOR, "DevicePolicy") == "closed"


def test_the_status_line(running: Machine) -> None:
    wait_until_ready(running)
    shown = running.out("systemctl", "status", SUPERVISOR)
    assert re.search(r'Status: "\d of 2 workers ready \(coral-reef-chat\b', shown), shown
    shown = running.out("systemctl", "status", GATEWAY)
    assert re.search(r'Status: "(\d+) of \1 processes serve"', shown), shown


def test_who_runs_as_whom(running: Machine) -> None:
    wait_until_ready(running)
    users = {
        name: int(running.out("id", "--user", name))
        for name in ("coral-reef", "coral-worker", "coral-gateway", "root")
    }
    device_groups = sorted(
        (running.out("getent", "group", name).split(":")[2] for name in ("coral-worker", "plugdev", "apex")),
        key=int,
    )
    expected = {
        "supervisor": "coral-reef",
        "forkserver": "coral-worker",
        "worker": "coral-worker",
        "gateway": "coral-gateway",
        "parent": "coral-gateway",
        "gadget": "root",
    }
    seen = set()
    for pid, title in running.ours().items():
        kind = title.removeprefix("coral-reef: ").split()[0]
        seen.add(kind)
        status = status_of(pid)
        assert set(status["Uid"].split()) == {str(users[expected[kind]])}, title
        assert status["NoNewPrivs"] == "1", title
        assert status["Seccomp"] == "2", title
        capabilities = {name: int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")}
        if kind == "supervisor":
            # kill, setgid, setuid, net_admin: capabilities(7)
            assert set(capabilities.values()) == {1 << 5 | 1 << 6 | 1 << 7 | 1 << 12}
        elif kind == "gadget":
            assert capabilities["CapEff"] == capabilities["CapPrm"] == 1 << 12  # net_admin
        else:
            assert not any(capabilities.values()), (title, capabilities)
        if kind in ("forkserver", "worker"):
            names = set(environment_of(pid))
            assert "CORAL_REEF_WORKER_USER" in names, "its environment cannot be seen"
            assert not names & {"NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "CREDENTIALS_DIRECTORY"}
            assert not any(name.startswith("DBUS") for name in names)
            assert status["Groups"].split() == device_groups, title
    assert seen == set(expected)


EMBED = """
import httpx, pathlib
key = pathlib.Path("/var/lib/coral-reef/admin.key").read_text().strip()
answer = httpx.post(
    "http://127.0.0.1:8080/api/v1/embeddings",
    json={"input": ["the tide", "a tower"]},
    headers={"Authorization": f"Bearer {key}"},
    timeout=60,
)
print(answer.status_code, answer.text)
"""


def test_embeddings_from_inside_the_sandbox(running: Machine) -> None:
    wait_until_ready(running)
    status, _, body = running.python(EMBED).partition(" ")
    assert status == "200", body
    found = json.loads(body)
    assert found["ran_on"] == ["cpu"]
    assert len(found["data"]) == 2
    assert all(any(each["embedding"]) for each in found["data"])


def test_what_each_cannot_reach(running: Machine) -> None:
    """Seen from inside the sandbox of each process."""
    worker, gateway = running.pid("worker text"), running.pid("parent")
    database = "var/lib/coral-reef/coral-reef.db"
    assert (Path(f"/proc/{gateway}/root") / database).exists()
    assert not (Path(f"/proc/{worker}/root") / database).exists()
    assert (Path(f"/proc/{worker}/root") / "var/lib/coral-reef/models").is_dir()
    for user, path in (
        ("coral-worker", "/run/coral-reef/supervisor/control.sock"),
        ("coral-worker", "/etc/coral-reef"),
        ("coral-worker", f"/{database}"),
        ("coral-reef", f"/{database}"),
        ("coral-gateway", "/run/coral-reef/supervisor/new"),
    ):
        assert running.run("test", "-r", path, user=user, check=False).returncode == 1, (user, path)
    assert (
        running.run("touch", "/run/coral-reef/workers/x", user="coral-gateway", check=False).returncode == 1
    )


def test_the_journal_has_fields(running: Machine) -> None:
    wait_until_ready(running)
    found: dict[tuple[str, str], dict[str, str]] = {}
    for line in running.journal("all", "--output=json").splitlines():
        entry = json.loads(line)
        if "CORAL_REEF_PART" in entry:
            found[entry["CORAL_REEF_PART"], entry["MESSAGE"]] = entry
    ready = next(
        entry for (part, said), entry in found.items() if part == "supervisor" and "ready in" in said
    )
    assert ready["SYSLOG_IDENTIFIER"] == "coral-reef-supervisor"
    assert ready["_SYSTEMD_UNIT"] == SUPERVISOR
    assert ready["PRIORITY"] == "6"
    assert ready["LOGGER"] == "appliance.supervisor.service"
    assert "coral-reef-supervisor" in running.journal(50, "--identifier=coral-reef-supervisor")


def test_the_supervisor_hangs(running: Machine) -> None:
    """The watchdog ends it, with everything below it, and it comes back."""
    wait_until_ready(running)
    before, supervisor = running.ours(), main_pid(running, SUPERVISOR)
    os.kill(supervisor, signal.SIGSTOP)
    wait_for("systemd has noticed", lambda: supervisor not in running.processes(), within_s=60)
    wait_until_ready(running)
    after = running.ours()
    others = re.compile("gateway|gadget")
    left = {pid: line for pid, line in before.items() if pid in after and not others.search(line)}
    assert not left, left
    assert [pid for pid, line in before.items() if others.search(line)] == [
        pid for pid, line in after.items() if others.search(line)
    ], "the others were not to be touched"
    assert (
        "watchdog"
        in running.show(SUPERVISOR, "Result") + running.journal(100, f"--unit={SUPERVISOR}").lower()
    )
    served(running)


@pytest.mark.parametrize("how", ["restart", "reload"])
def test_the_gateway_loses_no_connection(running: Machine, how: str) -> None:
    """While all its processes are replaced, whoever connects is answered."""
    wait_until_ready(running)
    before = {pid for pid, line in running.ours().items() if "gateway" in line.split()[1:2]}
    command = running.command(HOME / "bin/python", "-P", "-c", ASK_ON)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout is not None
        assert asking.stdout.readline() == "asking\n"
        running.run("systemctl", how, GATEWAY)
        wait_for(
            "all are replaced",
            lambda: not before & set(running.processes()),
            within_s=SERVED_AGAIN_WITHIN_S,
        )
        said, _ = asking.communicate("\n", timeout=90)
    assert re.fullmatch(r"asked \d+\n", said), said
    served(running)


def test_a_credential(running: Machine) -> None:
    """A name in a file of the owner's is filled from what systemd passes, in the supervisor alone."""
    wait_until_ready(running)
    (running.root / "etc/coral-reef/appliance.toml").write_text('[chat]\ndefault_persona = "${PERSONA}"\n')
    folder = running.root / f"run/systemd/system/{SUPERVISOR}.d"
    (folder / "credential.conf").write_text("[Service]\nSetCredential=PERSONA:pike\n")
    try:
        running.run("systemctl", "daemon-reload")
        running.run("systemctl", "restart", SUPERVISOR)
        wait_until_ready(running)
        supervisor = main_pid(running, SUPERVISOR)
        assert "CREDENTIALS_DIRECTORY" in environment_of(supervisor)
        since = f"_SYSTEMD_INVOCATION_ID={running.show(SUPERVISOR, 'InvocationID')}"
        assert "PERSONA" not in running.journal("all", since)
    finally:
        (folder / "credential.conf").unlink()
        (running.root / "etc/coral-reef/appliance.toml").unlink()
        running.run("systemctl", "daemon-reload")
        running.run("systemctl", "restart", SUPERVISOR)


def test_a_bad_configuration(running: Machine) -> None:
    """Says file and line in the journal, `systemctl start` fails, and it is not tried again and again."""
    wait_until_ready(running)
    file = running.root / "etc/coral-reef/appliance.toml"
    file.write_text("[gateway]\nprocesses = 99\n")
    try:
        assert running.run("systemctl", "restart", SUPERVISOR, check=False).returncode != 0
        assert running.out("systemctl", "show", "--value", "--property=ExecMainStatus", SUPERVISOR) == "78"
        assert "appliance.toml:2: gateway.processes: is 99" in running.journal(50, f"--unit={SUPERVISOR}")
        wait_for("it has failed", lambda: running.show(SUPERVISOR, "ActiveState") == "failed")
    finally:
        file.unlink()
        running.run("systemctl", "start", SUPERVISOR)
    wait_until_ready(running)


@contextmanager
def configuration(machine: Machine, text: str) -> Iterator[Path]:
    """The owner's appliance.toml; without it at the end, and that reloaded."""
    file = machine.root / "etc/coral-reef/appliance.toml"
    file.write_text(text)
    try:
        yield file
    finally:
        file.unlink()
        machine.run("systemctl", "reload", SUPERVISOR)
        wait_until_ready(machine)


@contextmanager
def states_of(machine: Machine, units: Sequence[str]) -> Iterator[set[str]]:
    """Every ActiveState that these units have while it lasts."""
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.update(machine.out("systemctl", "show", "--value", "--property=ActiveState", *units).split())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        over.set()
        looking.join()


def gateways(machine: Machine) -> set[int]:
    return {pid for pid, line in machine.ours().items() if line.startswith("coral-reef: gateway")}


def wait_until_replaced(machine: Machine, before: set[int]) -> None:
    """Until other gateway processes than those run, and all that the plan wants."""

    def replaced() -> bool:
        serving, _, wanted = machine.show(GATEWAY, "StatusText").partition(" processes")[0].partition(" of ")
        now = gateways(machine)
        return serving == wanted == str(len(now)) and not now & before

    wait_for("the gateway follows", replaced, within_s=SERVED_AGAIN_WITHIN_S)


def test_a_good_reload(running: Machine) -> None:
    """One command for all of it: another setting of the engine's, of the scheduler's, of the gateway's."""
    wait_until_ready(running)
    before = {unit: main_pid(running, unit) for unit in SERVICES}
    first = gateways(running)
    with (
        configuration(running, "[text]\nslots = 3\n[chat]\nmax_tokens = 2\n[gateway]\nprocesses = 3\n"),
        states_of(running, SERVICES) as seen,
    ):
        running.run("systemctl", "reload", SUPERVISOR)
        workers = json.loads(running.out("coral-reef", "worker", "list", "--json"))
        worker = [each for each in workers if each["kind"] == "text"][-1]
        assert worker["slots"] == 3
        wait_until_replaced(running, first)
        second = gateways(running)
        assert len(second) == 3
        assert served(running)["usage"]["completion_tokens"] <= 2
        assert "reloaded: changed: gateway.processes, chat.max_tokens, text.slots; " in running.journal(
            50, f"--unit={SUPERVISOR}"
        )
        running.run("systemctl", "kill", "--kill-whom=main", "--signal=HUP", SUPERVISOR)
        wait_for(
            "SIGHUP reloads",
            lambda: "reloaded: nothing changed" in running.journal(20, f"--unit={SUPERVISOR}"),
        )
    assert seen <= {"active", "reloading"}
    assert {unit: main_pid(running, unit) for unit in SERVICES} == before
    wait_until_replaced(running, second)


def test_a_bad_reload(running: Machine) -> None:
    """It fails, its owner reads why, and nothing else changes."""
    wait_until_ready(running)
    before = running.ours()
    said = "/etc/coral-reef/appliance.toml:2: gateway.processes: is 99"
    with (
        configuration(running, "[gateway]\nprocesses = 99\n") as file,
        states_of(running, SERVICES) as seen,
    ):
        done = running.run("systemctl", "reload", SUPERVISOR, check=False)
        assert done.returncode != 0
        assert f"journalctl -xeu {SUPERVISOR}" in done.stderr
        assert f"coral-reef: {said}" in running.journal(50, f"--unit={SUPERVISOR}")
        done = running.run("coral-reef", "reload", check=False)
        assert (done.returncode, said in done.stderr) == (78, True), done
        done = running.run("coral-reef", "repair", "list", check=False)
        assert done.returncode == 1
        assert "configuration_refused:files" in done.stdout
        assert said in done.stdout
        assert "1 repair waiting" in running.out("systemctl", "status", SUPERVISOR)
        served(running)
        assert running.ours() == before
        file.write_text("[scheduler]\nqueue_limit = 7\n")
        running.run("systemctl", "reload", SUPERVISOR)
        running.run("coral-reef", "repair", "list")
    assert seen <= {"active", "reloading"}
    assert running.ours() == before


def test_who_may_ask(running: Machine) -> None:
    """Root and the group; others hear what they can do."""
    wait_until_ready(running)
    running.run("useradd", "alice")
    done = running.run("coral-reef", "status", user="alice", check=False)
    assert (done.returncode, done.stdout) == (77, "")
    assert done.stderr == (
        "coral-reef: this user may not use the appliance in /var/lib/coral-reef: try with sudo, or join the group "
        "('sudo usermod --append --groups coral-reef $USER', then log in again)\n"
    )
    for command in (("reload",), ("worker", "restart", "text-1"), ("model", "load", "coral-reef-chat")):
        assert running.run("coral-reef", *command, user="alice", check=False).returncode == 77, command
    running.run("usermod", "--append", "--groups", "coral-reef", "alice")
    assert running.out("coral-reef", "status", user="alice").startswith("Coral-Reef ")


def test_a_supervisor_that_cannot_be_reached(running: Machine) -> None:
    """Its own watchdog finds out, though its loop turns."""
    wait_until_ready(running)
    supervisor = main_pid(running, SUPERVISOR)
    (running.root / "run/coral-reef/supervisor/control.sock").unlink()
    wait_until_gone(supervisor, within_s=60)
    wait_until_ready(running)
    assert "the control socket does not answer" in running.journal("all", f"--unit={SUPERVISOR}")
    served(running)


def test_what_polkit_lets_the_supervisor_do(running: Machine) -> None:
    """Exactly its own units, power, and the network's settings; nobody else anything."""

    def allowed(*words: str, user: str) -> bool:
        return running.run(*words, user=user, check=False).returncode == 0

    restart = ("systemctl", "--no-ask-password", "restart")
    assert allowed(*restart, GATEWAY, user="coral-reef")
    for user in ("coral-gateway", "coral-worker"):
        assert not allowed(*restart, GATEWAY, user=user)
    for unit in ("dbus.service", "coral-reefs.service", "systemd-journald.service"):
        assert not allowed(*restart, unit, user="coral-reef"), unit
    assert not allowed("systemctl", "--no-ask-password", "mask", GATEWAY, user="coral-reef")
    login = (
        "busctl",
        "call",
        "org.freedesktop.login1",
        "/org/freedesktop/login1",
        "org.freedesktop.login1.Manager",
    )
    for verb, answer in (("CanReboot", "yes"), ("CanPowerOff", "yes"), ("CanSuspend", "challenge")):
        got = running.out(*login, verb, user="coral-reef")
        assert got in (f's "{answer}"', 's "na"') if verb == "CanSuspend" else got == f's "{answer}"', (
            verb,
            got,
        )
        assert running.out(*login, verb, user="coral-worker") != 's "yes"'


def test_what_network_manager_lets_the_supervisor_do(running: Machine) -> None:
    manager = "org.freedesktop.NetworkManager"
    call = (
        "busctl",
        "--json=short",
        "call",
        manager,
        "/org/freedesktop/NetworkManager",
        manager,
        "GetPermissions",
    )
    running.run("systemctl", "start", "NetworkManager.service")
    wait_for("it answers", lambda: running.run(*call, check=False).returncode == 0)
    found = json.loads(running.out(*call, user="coral-reef"))["data"][0]
    assert {name.removeprefix(f"{manager}.") for name, answer in found.items() if answer == "yes"} == {
        "checkpoint-rollback",
        "enable-disable-wifi",
        "network-control",
        "settings.modify.system",
        "wifi.scan",
    }
    others = json.loads(running.out(*call, user="coral-worker"))["data"][0]
    assert "yes" not in others.values()


def test_a_model_of_the_owners_outlives_a_restart(running: Machine) -> None:
    wait_until_ready(running)
    shipped = json.loads(running.out("coral-reef", "model", "show", "coral-reef-chat", "--json"))["path"]
    running.run("coral-reef", "model", "add", shipped, "--name", "mine", "--load")
    served(running)
    running.run("systemctl", "restart", SUPERVISOR)
    wait_until_ready(running)
    assert json.loads(running.out("coral-reef", "status", "--json"))["model"] == "mine"
    served(running)
    running.run("coral-reef", "model", "load", "coral-reef-chat")
    running.run("coral-reef", "model", "remove", "mine")


def test_stop_ends_within_its_bound(running: Machine) -> None:
    wait_until_ready(running)
    began = time.monotonic()
    running.run("systemctl", "stop", TARGET)
    assert time.monotonic() - began < STOP_WITHIN_S
    wait_for("every unit has stopped", lambda: running.show(SUPERVISOR, "ActiveState") == "inactive")
    assert running.ours() == {}
    for unit in SERVICES:
        assert running.show(unit, "Result") == "success", unit
        assert running.show(unit, "ExecMainStatus") == "0", unit
    assert running.show(SOCKET, "ActiveState") == "inactive"
    running.run("systemctl", "start", TARGET)
    wait_until_ready(running)
    served(running)


def test_the_doctor_looks_where_the_gateway_cannot(running: Machine) -> None:
    """In a process of its own, for each who asks; and only for who may."""
    answer = running.out(HOME / "bin/python", "-c", EXAMINE, timeout_s=200)
    status, _, body = answer.partition(" ")
    assert status == "200", answer
    findings = json.loads(body)["findings"]
    seen = {(each["check"], each["outcome"]) for each in findings}
    assert ("ports", "ok") in seen, findings
    assert ("latency", "ok") in seen, findings
    assert not [each for each in findings if each["symptom"].startswith("ip ")], "the program could be used"
    stranger = running.run(
        *("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"),
        *(HOME / "bin/python", "-c"),
        "import socket; socket.socket(socket.AF_UNIX).connect('/run/coral-reef/doctor.sock')",
        check=False,
    )
    assert "PermissionError" in stranger.stderr
    wait_for(
        "none of them is left behind",
        lambda: (
            not running.out(
                "systemctl", "list-units", "--all", "--plain", "--no-legend", "coral-reef-doctor@*"
            )
        ),
        within_s=60,
    )
