"""The console of `coral-reef run`: a person at `coral-reef console` on its pseudo-terminal, with all the processes."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.waiting import wait_for

from .booted import COMMAND, ROOT, Booted, booted, environment
from .terminal import CTRL_C, CTRL_D, Terminal, terminal

pytestmark = pytest.mark.system

PROMPT = r"coral-reef> ?"
YOU = r"you> ?"
LEAVE = "\x1d"  # Ctrl-]
UP, TAB = "\x1b[A", "\t"

#: What a terminal of 80 times 24 answers that is asked where its cursor is.
ASKED, HERE = r"\x1b\[6n", "\x1b[24;80R"


@contextmanager
def console(appliance: Booted, *, smart: bool = False) -> Iterator[Terminal]:
    """A person before `coral-reef console`, at its prompt."""
    command = [*COMMAND, "console", "--line", str(line_of(appliance))]
    with terminal(command, cwd=ROOT, env=environment()) as person:
        person.expect(r"Ctrl-\] leaves")
        if smart:
            person.expect(ASKED)
            person.type(HERE)
        person.expect(r"Welcome, ")
        person.expect(PROMPT)
        yield person
        person.type(LEAVE)
        assert person.wait() == 0
        assert "Traceback" not in person.screen
        assert "Traceback" not in appliance.log


def line_of(appliance: Booted) -> Path:
    """Where `coral-reef run` says that one attaches."""
    said = re.compile(r"console   \S*coral-reef console --line (/dev/pts/\d+)\n")
    found = wait_for("it greets", lambda: said.search(appliance.log))
    path = Path(found[1])
    assert (appliance.state / "console").readlink() == path
    return path


def console_of(appliance: Booted) -> int:
    """Its process, once it has given itself its title."""
    return wait_for("the console runs", lambda: appliance.pids("console"))[0]


@pytest.fixture(params=[False, True], ids=["dumb", "smart"])
def person(request: pytest.FixtureRequest, appliance: Booted) -> Iterator[Terminal]:
    with console(appliance, smart=request.param) as found:
        yield found


def test_looking_around(person: Terminal) -> None:
    for command, answer in (
        ("help", r"Tab completes"),
        ("status", r"Coral-Reef \S+ is ready"),
        ("worker", r"text-1"),
        ("model", r"coral-reef-chat"),
        ("tpu", r"No TPU is attached"),
        ("repairs", r"Nothing needs a repair"),
        ("net", "it leaves alone"),
        ("user", r"No user yet"),
        ("logs -n 5", r"is ready"),
        ("tpu show nobody", r"no TPU is called"),
        ("reboot\ry", r"machine that is not its own"),
        ("nonsense", r"There is no command 'nonsense'"),
    ):
        person.type(f"{command}\r")
        person.expect(answer)
        person.expect(PROMPT)


def test_completion_history_and_help(person: Terminal) -> None:
    person.type(f"worker re{TAB}")
    person.expect("start")
    person.type(f"te{TAB}")
    person.expect("text-1")
    person.type(CTRL_C)
    person.expect(PROMPT)
    person.type("tpu ?")
    person.expect("uses one no more, until it is reset")
    person.type(CTRL_C)
    person.expect(PROMPT)
    person.type("help exit\r")
    person.expect("logs out; so does")
    person.expect(PROMPT)
    person.type(f"{UP}\r")
    person.expect("logs out; so does")
    person.expect(PROMPT)


def test_a_chat(person: Terminal) -> None:
    person.type("chat finn\r")
    person.expect("You are talking to Finn")
    person.expect(YOU)
    person.type("Hello\r")
    person.expect(r"Finn> \w[^\n]+\n")
    person.expect(YOU)
    person.type("/persona pike\r")
    person.expect("You are talking to Pike")
    person.type("Who are you?\r")
    person.expect(r"Pike> \w[^\n]+\n")
    person.expect(YOU)
    person.type(CTRL_D)
    person.expect(PROMPT)


def test_ctrl_c_cancels_a_reply_and_the_chat_goes_on(endless_appliance: Booted) -> None:
    with console(endless_appliance) as person:
        person.type("chat finn\r")
        for _ in range(2):
            person.expect(YOU)
            person.type("Hello\r")
            person.expect(r"Finn> [^\n]{20,}")
            person.type(CTRL_C)
            person.expect(r"\[cancelled\]")
            endless_appliance.wait_until_idle()
        person.expect(YOU)
        person.type("/quit\r")
        person.expect(PROMPT)


def test_who_leaves_in_the_middle_of_a_reply_cancels_it(endless_appliance: Booted) -> None:
    with console(endless_appliance) as person:
        person.type("chat finn\r")
        person.expect(YOU)
        person.type("Hello\r")
        person.expect(r"Finn> [^\n]{20,}")
    endless_appliance.wait_until_idle()


def test_watching(appliance: Booted, person: Terminal) -> None:
    """What changes is seen, whichever terminal it is."""
    person.type("watch\r")
    person.expect("Ctrl-C ends")
    before = appliance.worker_pid()
    os.kill(before, signal.SIGKILL)
    person.expect(r"text-1.*(waiting|starting|restarted)")
    person.expect(r"text-1.*ready")
    person.type(CTRL_C)
    person.expect(PROMPT)
    appliance.wait_until_healthy()


def test_the_network_live(appliance: Booted, person: Terminal) -> None:
    person.type("net stats\r")
    person.expect("p50 / p95 / p99")
    person.expect("Ctrl-C ends")
    appliance.chat("Hello")
    person.expect(r"API +[0-9.e+]+ ms / [0-9.e+]+ ms")
    person.type(CTRL_C)
    person.expect(PROMPT)


def test_the_doctor_of_the_network(person: Terminal) -> None:
    person.type("net doctor 127.0.0.1\r")
    person.expect(r"127\.0\.0\.1: [^\n]* lost")
    person.expect("last hour")
    person.expect(r"\d+ (well|to look at|failed|skipped)")
    person.expect(PROMPT)


def test_following_the_log(appliance: Booted, person: Terminal) -> None:
    person.type("logs -f\r")
    person.expect("is ready")
    os.kill(appliance.worker_pid(), signal.SIGKILL)
    person.expect(r"worker text-1.*is ready")
    person.type(CTRL_C)
    person.expect(PROMPT)
    appliance.wait_until_healthy()


def test_a_megabyte_is_refused_and_nothing_is_lost_afterwards(person: Terminal) -> None:
    person.paste(b"x" * 1_000_000)
    person.expect(r"bytes were refused")
    person.type("status\r")
    person.expect(r"is ready")
    person.expect(PROMPT)


def test_who_does_not_read_holds_nobody_up(appliance: Booted) -> None:
    """Nobody reads what `logs -n 10000` says: the appliance goes on, and so does the console for the next one."""
    line = os.open(line_of(appliance), os.O_RDWR | os.O_NOCTTY)
    try:
        for _ in range(50):
            os.write(line, b"help\r")
        began = time.monotonic()
        assert appliance.chat()["content"]
        assert time.monotonic() - began < 30
    finally:
        os.close(line)
    with console(appliance) as person:
        person.type("status\r")
        person.expect("is ready")


def test_coming_and_going_leaves_nothing_behind(appliance: Booted) -> None:
    pid = console_of(appliance)
    process = psutil.Process(pid)
    counts = []
    for _ in range(6):
        with console(appliance) as person:
            person.type("chat finn\r")
            person.expect(YOU)
        wait_for("it has noticed", lambda: "free again" in appliance.log)
        wait_for("its connections are closed", lambda: not process.net_connections("tcp"))
        counts.append((process.num_fds(), process.num_threads()))
    assert counts[2] == counts[-1], counts


def test_a_console_that_dies_is_there_again(appliance: Booted) -> None:
    """On the same pseudo-terminal; nothing else notices."""
    line = line_of(appliance)
    before = console_of(appliance)
    os.kill(before, signal.SIGKILL)
    wait_for("another one runs", lambda: [pid for pid in appliance.pids("console") if pid != before])
    assert appliance.healthy()
    assert line_of(appliance) == line
    with console(appliance) as person:
        person.type("status\r")
        person.expect("is ready")


def test_it_ends_with_the_appliance(state: Path) -> None:
    """Whoever is attached reads an end; nothing is left."""
    with booted(state) as appliance:
        command = [*COMMAND, "console", "--state", str(state)]
        with terminal(command, cwd=ROOT, env=environment()) as person:
            person.expect(PROMPT)
            appliance.stop()
            person.expect("the line has gone")
            person.expect("waiting for")
            assert not (state / "console").is_symlink()
            person.type(LEAVE)
            assert person.wait() == 0
