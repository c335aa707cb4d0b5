"""`coral-reef run`: what it says, how it ends, and one clear line when it cannot start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from websockets.asyncio.client import connect

from tests.waiting import wait_for

from .booted import (
    COMMAND,
    MARK,
    ROOT,
    START_TIMEOUT_S,
    Booted,
    booted,
    configure,
    environment,
    free_port,
    start,
)
from .talk import chat_message, events_in, question, receive, receive_reply, session_of, text_of, websocket
from .terminal import CTRL_C, terminal

pytestmark = pytest.mark.system

#: Three seconds were promised for an idle machine; this one may be busy.
SECOND_START_WITHIN_S = 10.0

#: The supervisor's share: resident set, time to READY, processor time in three idle seconds.
SUPERVISOR_LIMIT_BYTES = 40 * 1024 * 1024
READY_WITHIN_S = 1.0
IDLE_S = 3.0
IDLE_CPU_S = 0.02

Figures = Callable[[str, object], None]


def run(
    *arguments: str | Path, cwd: Path = ROOT, more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`coral-reef run` that is expected to give up by itself."""
    return subprocess.run(
        [*COMMAND, "run", *map(str, arguments)],
        cwd=cwd,
        env=environment(more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def lines_of(finished: subprocess.CompletedProcess[str], status: int) -> list[str]:
    """What a start that failed says on standard error; nothing else, and the documented status."""
    assert finished.returncode == status, finished
    assert finished.stdout == "", finished
    assert "Traceback" not in finished.stderr, finished.stderr
    return finished.stderr.splitlines()


def check_one_line(finished: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    lines = lines_of(finished, status)
    assert len(lines) == 1, lines
    assert lines[0].startswith("coral-reef: "), lines
    for word in words:
        assert word in lines[0], (word, lines)


# --- what it promises ---------------------------------------------------------------------------------------------


def test_the_greeting(appliance: Booted) -> None:
    greeting = wait_for(
        "it greets", lambda: re.search(r"(?m)^Coral-Reef is up.*\n(  .*\n)+", appliance.log)
    ).group()
    assert appliance.url in greeting
    assert f"chat --state {appliance.state}" in greeting
    assert f"{appliance.url}/docs" in greeting
    assert f"key: {appliance.state}/admin.key" in greeting
    assert "Ctrl-C" in greeting
    assert appliance.key not in appliance.log


def test_the_page_of_the_api_is_there(appliance: Booted) -> None:
    with appliance.client() as client:
        for path in ("/", "/docs"):
            page = client.get(path)
            assert (page.status_code, page.headers["content-type"].partition(";")[0]) == (200, "text/html")
        assert "/api/v1/chat" in client.get("/openapi.json").json()["paths"]


def test_secrets_are_the_owners_alone(appliance: Booted) -> None:
    for name in ("admin.key", "db.key"):
        assert stat.S_IMODE((appliance.state / name).stat().st_mode) == 0o600, name
    for folder in (appliance.state, appliance.state / "run"):
        assert stat.S_IMODE(folder.stat().st_mode) & 0o007 == 0, folder
    database = (appliance.state / "coral-reef.db").read_bytes()
    for plain in (b"SQLite format 3", b"conversations", appliance.key.encode()):
        assert plain not in database, "the database is not encrypted"


def listening(appliance: Booted) -> set[tuple[str, int]]:
    """Where any process of it takes connections from the network."""
    return {
        (each.laddr.ip, each.laddr.port)
        for pid in appliance.processes()
        for each in psutil.Process(pid).net_connections("inet")
        if each.status == psutil.CONN_LISTEN
    }


def test_it_listens_on_loopback_and_nowhere_else(appliance: Booted) -> None:
    assert listening(appliance) == {("127.0.0.1", int(appliance.url.rpartition(":")[2]))}


def test_supervisor_takes_little(appliance: Booted, record_property: Figures) -> None:
    appliance.worker_pid()
    status = appliance.status()
    ready_s = float(
        wait_for("it is ready", lambda: re.search(r"ready in (\d+\.\d+) s", appliance.log)).group(1)
    )
    record_property("supervisor: resident set, MiB", round(status["rss_bytes"] / 2**20, 1))
    record_property("supervisor: ready after, s", ready_s)
    print(f"supervisor: {status['rss_bytes'] / 2**20:.1f} MiB, ready in {ready_s:.2f} s")
    assert 0 < status["rss_bytes"] < SUPERVISOR_LIMIT_BYTES
    assert ready_s < READY_WITHIN_S


def processor_s(pid: int) -> float:
    """User and system time that a process has used: proc(5), stat, fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_supervisor_sleeps_while_nobody_asks(appliance: Booted, record_property: Figures) -> None:
    appliance.worker_pid()
    (supervisor,) = appliance.pids("supervisor")
    deadline = time.monotonic() + IDLE_S
    before = processor_s(supervisor)
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(left)  # this wait is the measurement
    used_s = processor_s(supervisor) - before
    record_property(f"supervisor: processor time in {IDLE_S:g} idle seconds, s", round(used_s, 3))
    print(f"supervisor: {used_s:.2f} s of processor time in {IDLE_S:g} idle seconds")
    assert used_s <= IDLE_CPU_S + 1e-9


def test_second_start_is_quick(state: Path, record_property: Figures) -> None:
    with booted(state):
        pass
    began = time.monotonic()
    with booted(state) as appliance:
        took_s = time.monotonic() - began
        assert appliance.chat()["content"]
    record_property("second start: healthy after, s", round(took_s, 2))
    print(f"second start: healthy after {took_s:.2f} s")
    assert took_s < SECOND_START_WITHIN_S


# --- where and how it starts --------------------------------------------------------------------------------------


def test_port_and_state_come_from_the_environment(state: Path) -> None:
    """`make run` passes PORT on; STATE names the folder where no option does."""
    port = free_port()
    log = state / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*COMMAND, "run"],
            cwd=state,
            env=environment({MARK: str(state), "PORT": str(port), "STATE": str(state)}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    appliance = Booted(state, process, log)
    try:
        appliance.wait_until_healthy()
        assert appliance.url == f"http://127.0.0.1:{port}"
        appliance.stop()
    finally:
        appliance.destroy()


def test_it_starts_in_a_folder_with_spaces_and_accents(state: Path) -> None:
    folder = state / "Größe der Welt"
    folder.mkdir()
    with booted(folder) as appliance:
        assert appliance.chat()["content"]


@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0"])
def test_port_and_address_come_from_the_network_file(state: Path, bind: str) -> None:
    """An address beyond this machine is refused with a warning, as long as nothing guards what is beyond."""
    port = free_port()
    configure(state)
    (state / "etc/network.yaml").write_text(f"mode: local\napi:\n  bind: {bind}\n  port: {port}\n", "ascii")
    appliance = start(state, log_file=state / "log", port=None)
    try:
        appliance.wait_until_healthy()
        assert appliance.url == f"http://127.0.0.1:{port}"
        assert listening(appliance) == {("127.0.0.1", port)}
        assert (f"not on {bind}" in appliance.log) == (bind != "127.0.0.1"), appliance.log
        appliance.stop()
    finally:
        appliance.destroy()


# --- how it ends --------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_it_cleanly(state: Path) -> None:
    command = [*COMMAND, "run", "--state", str(state), "--port", "0"]
    with terminal(command, cwd=ROOT, env=environment({MARK: str(state)})) as screen:
        screen.expect(r"Coral-Reef is up", within_s=START_TIMEOUT_S)
        log = state / "log"
        log.touch()
        appliance = Booted(state, screen.process, log)
        try:
            appliance.wait_until_healthy()
            started = set(appliance.processes())
            assert len(started) >= 5
            screen.type(CTRL_C)
            assert screen.wait(within_s=60) == 0
            assert "Traceback" not in screen.screen
            assert screen.screen.rstrip().endswith("stopped")
            appliance.wait_until_gone(started)
            assert not (state / "run/url").exists()
        finally:
            appliance.destroy()


def test_sigterm_ends_it_cleanly(state: Path) -> None:
    with booted(state) as appliance:
        assert appliance.chat()["content"]
        appliance.stop()
    assert not (state / "run/url").exists()
    assert not (state / "run/supervisor/control.sock").exists()


def test_sighup_of_a_closed_terminal_ends_it_cleanly(state: Path) -> None:
    with booted(state) as appliance:
        appliance.process.send_signal(signal.SIGHUP)
        assert appliance.process.wait(60) == 0


@pytest.mark.parametrize("processes", range(2, 6))
def test_sigterm_while_it_starts(state: Path, processes: int) -> None:
    """With the supervisor just begun, or the gateway, or the forkserver, or the worker: it ends in good order."""
    appliance = start(state, log_file=state / "log")
    try:
        wait_for("it has begun", lambda: len(appliance.processes()) >= processes, within_s=START_TIMEOUT_S)
        appliance.stop()
    finally:
        appliance.destroy()


def test_a_reply_may_end_while_it_stops(state: Path) -> None:
    """SIGTERM lets what is being written end, for `gateway.drain_s`."""
    configure(state, endless_model=True)
    with booted(state) as appliance, appliance.client() as client:
        with client.stream("POST", "/api/v1/chat/stream", json=question(max_tokens=600)) as reply:
            events = events_in(reply.iter_lines())
            next(events)
            appliance.process.send_signal(signal.SIGTERM)
            last = list(events)[-1]
        assert (last["type"], last["payload"].get("finish_reason")) == ("done", "length"), last


async def test_a_reply_over_the_websocket_may_end_while_it_stops(state: Path) -> None:
    configure(state, endless_model=True)
    with booted(state) as appliance:
        async with websocket(appliance) as socket_:
            await socket_.send(chat_message(max_tokens=600))
            while (await receive(socket_))["type"] != "token":
                pass
            appliance.process.send_signal(signal.SIGTERM)
            last = (await receive_reply(socket_))[-1]
        assert (last["type"], last["payload"].get("finish_reason")) == ("done", "length"), last


SHORT_DRAIN = "[gateway]\ndrain_s = 1.0\n\n[supervisor]\ndrain_s = 1.0\n"


def test_a_reply_that_does_not_end_is_ended(state: Path) -> None:
    """Nor does it hold up the stop for longer than the owner allows."""
    configure(state, SHORT_DRAIN, endless_model=True)
    with booted(state) as appliance, appliance.client() as client:
        with client.stream("POST", "/api/v1/chat/stream", json=question()) as reply:
            events = events_in(reply.iter_lines())
            next(events)
            began = time.monotonic()
            appliance.process.send_signal(signal.SIGTERM)
            last = list(events)[-1]
        assert last["type"] == "error" or last["payload"].get("finish_reason") == "cancelled", last
        assert appliance.process.wait(60) == 0
        assert time.monotonic() - began < 20


async def test_a_reply_over_the_websocket_that_does_not_end_is_ended(state: Path) -> None:
    configure(state, SHORT_DRAIN, endless_model=True)
    with booted(state) as appliance:
        async with websocket(appliance) as socket_:
            await socket_.send(chat_message())
            while (await receive(socket_))["type"] != "token":
                pass
            began = time.monotonic()
            appliance.process.send_signal(signal.SIGTERM)
            last = (await receive_reply(socket_))[-1]
        assert last["type"] == "error" or last["payload"].get("finish_reason") == "cancelled", last
        assert appliance.process.wait(60) == 0
        assert time.monotonic() - began < 20


def test_what_was_said_until_the_end_is_kept(state: Path) -> None:
    """A reply that a stop interrupts is in the history after the next start."""
    configure(state, SHORT_DRAIN, endless_model=True)
    events = []
    with booted(state) as appliance, appliance.client() as client:
        with (
            contextlib.suppress(httpx.RemoteProtocolError),
            client.stream("POST", "/api/v1/chat/stream", json=question()) as reply,
        ):
            for event in events_in(reply.iter_lines()):
                events.append(event)
                if len(events) == 3:
                    appliance.process.send_signal(signal.SIGTERM)
        assert appliance.process.wait(60) == 0
    with booted(state) as appliance, appliance.client() as client:
        said = client.get(f"/api/v1/chat/history/{session_of(events)}").json()["messages"]
        assert [message["role"] for message in said] == ["user", "assistant"]
        assert said[1]["content"].startswith(text_of(events)[:200])


def test_a_second_ctrl_c_does_not_wait(state: Path) -> None:
    """The first one waits for replies to end, here for up to ten seconds; the second one does not."""
    configure(state, endless_model=True)
    with booted(state) as appliance, appliance.client() as client:
        others = set(appliance.processes())
        with client.stream("POST", "/api/v1/chat/stream", json=question()) as reply:
            lines = reply.iter_lines()
            next(lines)
            appliance.process.send_signal(signal.SIGINT)
            wait_for("it is stopping", lambda: "Ctrl-C again" in appliance.log)
            began = time.monotonic()
            appliance.process.send_signal(signal.SIGINT)
            with pytest.raises(httpx.TransportError):
                list(lines)
        assert appliance.process.wait(60) in (130, -signal.SIGINT)
        appliance.wait_until_gone(others)
        assert time.monotonic() - began < 5
        assert "Traceback" not in appliance.log
        appliance.process.returncode = 0


# --- one clear line -----------------------------------------------------------------------------------------------


def test_a_port_that_is_taken(state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        check_one_line(run("--state", state, "--port", port), 75, port, "PORT=")
        check_one_line(run("--state", state, more={"PORT": port}), 75, port, "PORT=")


@pytest.mark.parametrize("port", ["many", "-1", "65536", "8080x"])
def test_a_port_that_is_none(state: Path, port: str) -> None:
    check_one_line(run("--state", state, more={"PORT": port}), 2, port)


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A folder that not even root can write to."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_state_folder_that_cannot_be_written(state: Path) -> None:
    file = state / "file"
    file.write_text("not a folder", "ascii")
    check_one_line(run("--state", file, "--port", "0"), 73, str(file), "STATE=")
    check_one_line(run("--state", file / "below", "--port", "0"), 73, str(file), "STATE=")
    check_one_line(run("--state", "/proc/state", "--port", "0"), 73, "/proc/state", "STATE=")
    assert file.read_text("ascii") == "not a folder"


def test_a_state_folder_that_is_read_only(state: Path) -> None:
    if os.geteuid() == 0:
        with read_only(state):
            check_one_line(run("--state", state, "--port", "0"), 73, str(state), "STATE=")
    else:
        state.chmod(0o500)
        check_one_line(run("--state", state, "--port", "0"), 73, str(state), "STATE=")
        state.chmod(0o700)


def test_a_file_where_a_folder_should_be(state: Path) -> None:
    (state / "run").write_text("", "ascii")
    check_one_line(run("--state", state, "--port", "0"), 73, str(state))


def test_a_state_folder_with_too_long_a_name(state: Path) -> None:
    check_one_line(run("--state", state / ("x" * 100), "--port", "0"), 73, "too long", "STATE=")
    check_one_line(run("--state", state / ("x" * 300), "--port", "0"), 73, "too long", "STATE=")


def test_a_second_one_with_the_same_state(state: Path) -> None:
    with booted(state) as appliance:
        launcher = str(appliance.process.pid)  # the process to stop
        check_one_line(run("--state", state, "--port", "0"), 75, str(state), launcher, "STATE=")
        # It has not disturbed the first one.
        assert appliance.chat()["content"]
        assert appliance.url


def test_two_at_the_same_moment(state: Path) -> None:
    """One of them wins, the other says so."""
    both = [start(state, log_file=state / f"log{number}") for number in range(2)]
    try:
        wait_for("one gave up", lambda: any(each.process.poll() is not None for each in both), within_s=90)
        (loser,) = [each for each in both if each.process.poll() is not None]
        (winner,) = [each for each in both if each is not loser]
        assert loser.process.returncode == 75, loser.log
        assert "Traceback" not in loser.log
        assert str(state) in loser.log.splitlines()[-1] or "in use" in loser.log, loser.log
        winner.wait_until_healthy()
        assert winner.chat()["content"]
        winner.process.send_signal(signal.SIGTERM)
        assert winner.process.wait(60) == 0, winner.log
    finally:
        for each in both:
            each.destroy()


def test_a_bad_configuration(state: Path) -> None:
    """A line a problem: file, line, key, what is wrong."""
    configure(state, '[gateway]\nprocesses = 65\nprocess = 2\n\n[chat]\ntemperature = "warm"\n')
    lines = lines_of(run("--state", state, "--port", "0"), 78)
    assert len(lines) == 3, lines
    file = state / "etc/appliance.toml"
    assert [line.split(": ")[0] for line in lines] == [f"{file}:2", f"{file}:3", f"{file}:6"]
    for line, word in zip(lines, ("processes", "process", "temperature"), strict=True):
        assert word in line, line


@pytest.mark.parametrize(
    "content",
    [b"[gateway\n", b"\xff\xfe", b"[gateway]\nport = 1\nport = 2\n", b"a" * 3_000_000, b"[x]\n" * 2, b"\0"],
    ids=["bracket", "bytes", "twice", "huge", "table twice", "nul"],
)
def test_a_configuration_that_is_none(state: Path, content: bytes) -> None:
    configure(state)
    (state / "etc/appliance.toml").write_bytes(content)
    lines = lines_of(run("--state", state, "--port", "0"), 78)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{state}/etc/appliance.toml:"), lines


def test_a_configuration_that_is_a_folder(state: Path) -> None:
    (state / "etc/appliance.toml").mkdir(parents=True)
    lines = lines_of(run("--state", state, "--port", "0"), 78)
    assert len(lines) == 1, lines


def test_a_database_that_is_none(state: Path) -> None:
    """It is never written over; the last line says what is wrong."""
    with booted(state):
        pass
    (state / "log").unlink()
    database = state / "coral-reef.db"
    for leftover in state.glob("coral-reef.db-*"):
        leftover.unlink()
    damaged = b"nothing of ours" * 1000
    database.write_bytes(damaged)
    finished = run("--state", state, "--port", "0")
    assert finished.returncode == 74, finished.stderr
    assert "Traceback" not in finished.stderr
    assert str(database) in finished.stderr
    assert database.read_bytes() == damaged


def test_an_unknown_model_is_told_and_the_rest_works(state: Path) -> None:
    configure(state, '[text]\nmodel = "nobody"\n')
    appliance = start(state, log_file=state / "log")
    try:
        wait_for("it is up", lambda: "Coral-Reef is up" in appliance.log, within_s=START_TIMEOUT_S)
        assert not appliance.healthy()
        (repair,) = appliance.status()["repairs"]
        assert repair["kind"] == "model_unusable"
        assert "nobody" in repair["what"]
        assert "coral-reef-chat" in appliance.log, "it says which models there are"
        appliance.stop()
    finally:
        appliance.destroy()


def test_a_damaged_model_is_told(state: Path) -> None:
    configure(state, endless_model=True)
    model = state / "models/endless.gguf"
    data = bytearray(model.read_bytes())
    data[-1] ^= 0xFF
    model.write_bytes(data)
    appliance = start(state, log_file=state / "log")
    try:
        wait_for("it is told", lambda: "SHA-256" in appliance.log, within_s=START_TIMEOUT_S)
        wait_for("it is up", lambda: "Coral-Reef is up" in appliance.log, within_s=START_TIMEOUT_S)
        assert not appliance.healthy()

        def told() -> bool:  # between two attempts; while it starts once more it has nothing to say
            (worker,) = appliance.text_workers()
            assert worker["state"] != "ready"
            return "SHA-256" in str(worker["detail"])

        wait_for("the status tells it too", told, within_s=START_TIMEOUT_S)
        appliance.stop()
    finally:
        appliance.destroy()


async def test_an_idle_websocket_hears_of_the_stop(state: Path) -> None:
    """It is closed with "service restart" at once: nothing of it has to end first."""
    with booted(state) as appliance:
        async with connect(appliance.websocket_url, additional_headers=appliance.headers) as client:
            appliance.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(8):  # drain_s is 10: not only when the patience for replies is over
                await client.wait_closed()
            assert client.close_code == 1012
