"""The console on a serial gadget with a real kernel: somebody on /dev/ttyACM0, at the other end of dummy_hcd's cable.

Desktop and tower are one machine. The port of the root hub is switched off for a cable that is pulled, which is reported as a
hangup; a bus that falls asleep is all that some controllers report of it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from .guest import HOME
from .installed import GADGET, VM_MARKS
from .report import Figures
from .test_vm_link import DEVICE, PORT, active, connect, eventually
from .vm import VirtualMachine

pytestmark = VM_MARKS

CONSOLE = "coral-reef-console@ttyGS0.service"
NAME, PASSWORD = "anna", "a coral reef at night"
PERSON = (Path(__file__).parent / "vm_person.py").read_text("utf-8")

PULL, PLUG = f"echo 1 >{PORT}/disable", f"echo 0 >{PORT}/disable"
CTRL_C, CTRL_D, LEAVE = "\x03", "\x04", "\x1d"
SHELL = "coral-reef>"

#: For one step of a person, on a machine that is not slow.
STEP_S = 15.0

#: The desktop lets the bus sleep: nobody has the line open, and its network card is down.
ASLEEP = f"""
for card in {DEVICE}/*/net/*; do ip link set ${{card##*/}} down; done
echo 0 >{DEVICE}/power/autosuspend_delay_ms
echo auto >{DEVICE}/power/control
until [ $(cat {DEVICE}/power/runtime_status) = suspended ]; do sleep 0.1; done
"""
AWAKE = f"echo on >{DEVICE}/power/control"

#: What the console's process has: descriptors, threads, children, memory in KiB.
HELD = """
import os, pathlib, sys
folder = pathlib.Path("/proc", sys.argv[1])
status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
children = (folder / "task" / sys.argv[1] / "children").read_text().split()
print(len(os.listdir(folder / "fd")), status["Threads"], len(children), status["VmRSS"].split()[0])
"""

#: Sends to the line what ModemManager sends, byte by byte, and prints what came back within the seconds given. What the terminal
#: has echoed before it was raw is taken back first.
PROBES = r"""
import os, select, sys, time, tty
line = os.open("/dev/ttyACM0", os.O_RDWR | os.O_NOCTTY)
tty.setraw(line)
os.write(line, b"\x15\r")
while select.select([line], [], [], 2.0)[0]:
    os.read(line, 4096)
back, deadline = b"", time.monotonic() + float(sys.argv[1])
for probe in (b"AT\r", b"AT\r", b"AT\r", b"AT+GCAP\r", b"ATI\r", b"AT+CPIN?\r", b"AT+CGMM\r", b"\x7e\x00\x78\xf0\x7e"):
    for byte in probe:
        os.write(line, bytes([byte]))
while time.monotonic() < deadline:
    if select.select([line], [], [], 0.2)[0]:
        back += os.read(line, 4096)
print(ascii(back.decode("utf-8", "replace")))
"""


#: Fills what the kernel keeps for a line that nobody reads.
FILL = """
import os
line = os.open("/dev/ttyGS0", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
try:
    while os.write(line, b"x" * 512):
        pass
except BlockingIOError:
    os._exit(0)
"""


def see_them_do(
    vm: VirtualMachine, *steps: tuple[str, str], line: str = "", timeout_s: float = 300.0
) -> dict[str, Any]:
    """A person does these steps at `coral-reef console`; what their times were, and the screen."""
    words = ["coral-reef", "console", *(["--line", line] if line else [])]
    done = vm.run(
        HOME / "bin/python",
        *("-P", "-c", PERSON, str(STEP_S * vm.slowness), *words),
        given=json.dumps(steps).encode(),
        timeout_s=timeout_s,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    assert not found["failed"], f"{found['failed']}:\n{found['screen'][-4000:]}"
    assert "Traceback" not in vm.journal("all", f"--unit={CONSOLE}")
    return found


def types(*pairs: str) -> list[tuple[str, str]]:
    """Keys and what they bring about, by turns."""
    return [("type" if number % 2 == 0 else "see", text) for number, text in enumerate(pairs)]


def asks(command: str, answer: str) -> list[tuple[str, str]]:
    """A command in the shell, what it answers, and the next prompt."""
    return [*types(f"{command}\r", answer), ("see", SHELL)]


def log_in(password: str = PASSWORD) -> list[tuple[str, str]]:
    return [
        ("see", "login: "),
        *types(f"{NAME}\r", "Password: ", f"{password}\r", f"Welcome, {NAME}"),
        ("see", SHELL),
    ]


LEAVES = [("type", LEAVE), ("end", "")]


@pytest.fixture
def tower(vm: VirtualMachine) -> VirtualMachine:
    """A desktop's cable is in, and there is a user."""
    vm.run("coral-reef", "user", "add", NAME, "--password-stdin", given=f"{PASSWORD}\n".encode())
    connect(vm)
    eventually(vm, "the console runs", lambda: active(vm, CONSOLE))
    return vm


def test_somebody_comes_looks_chats_and_pulls_the_cable(vm: VirtualMachine, figures: Figures) -> None:
    """From the first plug of a new tower to the login of the next person."""
    connect(vm)
    eventually(vm, "the console runs", lambda: active(vm, CONSOLE))
    assert re.search(r"/dev/ttyACM0 +\S+ +1-1", vm.out("coral-reef", "console", "--list"))
    done = see_them_do(
        vm,
        ("see", r"Ctrl-\] leaves"),
        ("see", "you hold the tower's own cable"),
        ("see", "Name of the administrator: "),
        *types(
            f"{NAME}\r", "New password: ", f"{PASSWORD}\r", "Once more: ", f"{PASSWORD}\r", f"Welcome, {NAME}"
        ),
        ("see", SHELL),
        *asks("status", "is ready"),
        *asks("tpu", "No TPU is attached"),
        *asks("net", "usb0"),
        *asks("user", f"{NAME} +admin"),
        *asks("logs -n 40", "ttyGS0: anna has begun"),
        *types("logs -f\r", "ttyGS0: anna has begun", CTRL_C, r"\^C"),
        ("see", SHELL),
        *types("chat finn\r", "You are talking to Finn"),
        ("see", "you>"),
        *types("Hello\r", r"Finn> \w", CTRL_C, "you>", CTRL_D, SHELL),
        ("run", PULL),
        ("see", "the line has gone"),
        ("see", "waiting for the cable"),
        ("run", PLUG),
        ("see", "connected to /dev/ttyACM"),
        *log_in(),
        ("type", CTRL_D),
        ("see", "Logged out: goodbye"),
        ("see", "login: "),
        *LEAVES,
    )
    assert PASSWORD not in done["screen"]
    steps = done["times"]
    plugged = len(steps) - len(LEAVES) - 3 - len(log_in())
    to_prompt = sum(steps[plugged - 1 : plugged + 1])
    figures.add("plug to prompt, in the machine", to_prompt, "s")


def test_a_session_ends_with_a_cable_that_nobody_reports(tower: VirtualMachine) -> None:
    """No hangup comes, the bus only falls asleep; whoever plugs in next must log in."""
    see_them_do(tower, *log_in(), ("type", "half a line"), *LEAVES)
    controller = "/sys/class/udc/dummy_udc.0"
    tower.run("sh", "-c", ASLEEP)
    assert "1" in tower.out("sh", "-c", f"cat {controller}/device/gadget*/suspended")
    eventually(
        tower,
        "the session has ended",
        lambda: "nobody is attached any more" in tower.journal("all", f"--unit={CONSOLE}"),
    )
    tower.run("sh", "-c", AWAKE)
    see_them_do(tower, *log_in(), *asks("status", "is ready"), *LEAVES)


def test_plugging_in_and_out_leaves_nothing_behind(tower: VirtualMachine, long_run: bool) -> None:
    def held() -> list[int]:
        pid = tower.show(CONSOLE, "MainPID")
        return list(map(int, tower.python(HELD, pid).split()))

    rounds = 100 if long_run else 20
    again = [("run", PULL), ("see", "waiting for"), ("run", PLUG), *log_in()]
    half = again * (rounds // 2)
    pid = tower.show(CONSOLE, "MainPID")
    see_them_do(tower, *log_in(), *again, *again, *LEAVES)
    counts = [held()]
    for _ in range(2):
        see_them_do(tower, ("run", PULL + "; sleep 1; " + PLUG), *log_in(), *half, *LEAVES, timeout_s=1200)
        counts.append(held())
    print("descriptors, threads, children, KiB:", counts)
    assert tower.show(CONSOLE, "MainPID") == pid
    assert tower.show(CONSOLE, "NRestarts") == "0"
    assert counts[0][:3] == counts[1][:3] == counts[2][:3], counts
    assert counts[2][3] - counts[1][3] < 1024, "its memory grows"


def test_probes_of_a_modem_manager(tower: VirtualMachine) -> None:
    back = tower.python(PROBES, str(2 * tower.slowness), timeout_s=60)
    assert "AT" not in back
    assert "Password" not in back
    see_them_do(tower, ("type", "\r"), *log_in(), *LEAVES)


def test_a_megabyte(tower: VirtualMachine) -> None:
    see_them_do(
        tower,
        *log_in(),
        ("paste", "x" * 1_000_000),
        ("see", "bytes were refused"),
        *asks("status", "is ready"),
        *LEAVES,
        timeout_s=600,
    )


def test_the_shutdown_does_not_wait_for_who_does_not_read(tower: VirtualMachine, figures: Figures) -> None:
    """A desktop that has the cable in and nothing open, with the line full; then no desktop at all."""
    stop = f"cut -d' ' -f1 /proc/uptime; systemctl stop {CONSOLE}; cut -d' ' -f1 /proc/uptime"
    took = {}
    for who, prepare in (("nobody reads", "true"), ("nobody is there", f"{PULL}; sleep 1")):
        tower.run("sh", "-c", prepare)
        if who == "nobody reads":
            tower.run("timeout", "20", HOME / "bin/python", "-P", "-c", FILL, check=False)
        began, ended = map(float, tower.out("sh", "-c", stop).split())
        took[who] = ended - began
        assert tower.show(CONSOLE, "Result") == "success"
        tower.run("systemctl", "start", CONSOLE)
        eventually(tower, "the console runs", lambda: active(tower, CONSOLE))
    for who, seconds in took.items():
        figures.add(f"the console's stop while {who}, in the machine", seconds, "s")
        assert seconds < 1.0 * tower.slowness, took


def test_the_gadget_takes_the_line_away(tower: VirtualMachine) -> None:
    """While somebody is logged in: the kernel would wait without end for a console that does not let go."""
    gone = f"timeout 60 systemctl stop {GADGET}"
    see_them_do(tower, *log_in(), ("run", gone), ("see", "the line has gone"), *LEAVES)
    assert tower.run("test", "-e", "/dev/ttyGS0", check=False).returncode != 0
    tower.run("systemctl", "start", GADGET)
    eventually(tower, "the console runs", lambda: active(tower, CONSOLE))
    see_them_do(tower, *log_in(), *LEAVES)
