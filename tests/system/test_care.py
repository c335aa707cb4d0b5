"""Care of the workers and of the configuration: stalls, crash loops, restarts, reloads, and the repairs that tell of them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_for, wait_until

from .booted import COMMAND, ROOT, Booted, booted, command, configure, environment
from .talk import chat_message, receive, receive_reply, receive_system_event, text_of, websocket
from .test_gateways import Load

pytestmark = pytest.mark.system

#: A stall is no step for ten seconds; it is looked at every two.
STALL_HEARD_WITHIN_S = 40.0

HEALED_WITHIN_S = 60.0


@pytest.fixture
def endless(state: Path) -> Iterator[Booted]:
    configure(state, "[supervisor]\ndrain_s = 60\n", endless_model=True)
    with booted(state) as found:
        yield found


def repairs(appliance: Booted) -> list[dict[str, Any]]:
    """As the API shows them."""
    with appliance.client() as client:
        response = client.get("/api/v1/system/repairs")
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["repairs"]
    return found


def kinds(appliance: Booted) -> set[str]:
    return {repair["kind"] for repair in repairs(appliance)}


async def test_a_worker_that_stalls_is_replaced(endless: Booted) -> None:
    worker = await asyncio.to_thread(endless.worker_pid)
    async with websocket(endless) as socket:
        await socket.send(chat_message())
        while (await receive(socket))["type"] != "token":
            pass
        os.kill(worker, signal.SIGSTOP)
        began = time.monotonic()
        async with asyncio.timeout(STALL_HEARD_WITHIN_S):
            events = await receive_reply(socket)
        assert events[-1]["payload"]["code"] == "worker_lost"
        assert time.monotonic() - began > 5, "a pause of a moment is no stall"
    reply = await asyncio.to_thread(endless.chat, max_tokens=10)
    assert reply["usage"]["completion_tokens"] == 10
    assert "stalled: no step of the engine" in endless.log


async def test_a_worker_that_only_waits_does_not_stall(endless: Booted) -> None:
    """Its pulse alone tells that it lives: for longer than a stall takes, nobody asks it anything."""
    worker = await asyncio.to_thread(endless.worker_pid)
    status = await asyncio.to_thread(endless.status)
    idle_since = status["workers"][0]["since_s"]

    def long_idle() -> bool:
        return bool(endless.status()["workers"][0]["since_s"] > idle_since + 13)

    await asyncio.to_thread(wait_for, "it has been idle for long", long_idle, within_s=60)
    assert await asyncio.to_thread(endless.worker_pid) == worker


async def test_a_forkserver_that_hangs_is_replaced(endless: Booted) -> None:
    """It would not tell of its workers' ends, nor fork others; they end with it."""
    (forkserver,) = await asyncio.to_thread(endless.pids, "forkserver")
    worker = await asyncio.to_thread(endless.worker_pid)
    os.kill(forkserver, signal.SIGSTOP)
    os.kill(worker, signal.SIGKILL)

    def replaced() -> bool:
        return len(now := endless.pids("forkserver")) == 1 and now != [forkserver]

    await wait_until("there is another", replaced, within_s=HEALED_WITHIN_S)
    reply = await asyncio.to_thread(endless.chat, max_tokens=10)
    assert reply["usage"]["completion_tokens"] == 10
    assert "the forkserver has not answered for" in endless.log


async def test_a_restart_lets_replies_end(endless: Booted) -> None:
    worker = await asyncio.to_thread(endless.worker_pid)
    async with websocket(endless) as socket:
        await socket.send(chat_message(max_tokens=1_000))
        while (await receive(socket))["type"] != "token":
            pass
        restarting = asyncio.create_task(asyncio.to_thread(command, endless, "worker", "restart", "text-1"))
        events = await receive_reply(socket)
        assert events[-1]["type"] == "done", events[-1]
        assert events[-1]["payload"]["finish_reason"] == "length"
        assert text_of(events)
        done = await restarting
    assert (done.returncode, done.stdout) == (0, "worker text-1 is ready again\n"), done.stderr
    assert await asyncio.to_thread(endless.worker_pid) != worker
    assert (await asyncio.to_thread(endless.status))["leases"] == 0


def test_a_worker_of_another_name(appliance: Booted) -> None:
    done = command(appliance, "worker", "restart", "nobody")
    assert (done.returncode, done.stderr) == (
        1,
        "coral-reef: no worker is called 'nobody'; there are: text-1, cpu-1\n",
    )


def test_a_crash_loop_is_told_and_over_when_it_is_over(endless: Booted) -> None:
    assert kinds(endless) == set()
    killed = [0]
    for _ in range(3):
        wait_for("a new one runs", lambda: endless.worker_pid() != killed[-1], within_s=HEALED_WITHIN_S)
        killed.append(endless.worker_pid())
        os.kill(killed[-1], signal.SIGKILL)
    wait_for("it is told", lambda: "worker_crash_loop" in kinds(endless), within_s=HEALED_WITHIN_S)
    listed = command(endless, "repair", "list")
    assert listed.returncode == 1
    assert "critical: worker text-1 dies again and again: ended by SIGKILL" in listed.stdout
    assert "1 repair waiting" in command(endless, "status").stdout
    fixed = command(endless, "repair", "fix", "worker_crash_loop:text-1")
    assert (fixed.returncode, fixed.stdout) == (0, "worker text-1 is ready again\n"), fixed.stderr
    wait_for("all is well", lambda: kinds(endless) == set(), within_s=HEALED_WITHIN_S)
    assert command(endless, "repair", "list").returncode == 0
    assert endless.chat(max_tokens=5)["finish_reason"] == "length"


def test_a_good_reload_and_a_bad_one(endless: Booted) -> None:
    file = endless.state / "etc/appliance.toml"
    before = file.read_text("utf-8")
    assert command(endless, "reload").stdout == "nothing changed\n"

    file.write_text(before + "\n[scheduler]\nqueue_limit = 0\n", "utf-8")
    refused = command(endless, "reload")
    assert refused.returncode == 78
    line = before.count("\n") + 3
    assert f"{file}:{line}: scheduler.queue_limit" in refused.stderr
    assert kinds(endless) == {"configuration_refused"}
    assert endless.chat(max_tokens=5)["finish_reason"] == "length", "what runs goes on"

    file.write_text(before + "\n[scheduler]\nqueue_limit = 7\n[chat]\nmax_tokens = 9\n", "utf-8")
    done = command(endless, "repair", "fix", "configuration_refused:files")
    assert done.returncode == 78, "two tables of one name"
    file.write_text(before + "\n[scheduler]\nqueue_limit = 7\n", "utf-8")
    done = command(endless, "repair", "fix", "configuration_refused:files")
    assert (done.returncode, done.stdout) == (0, "changed: scheduler.queue_limit\n"), done.stderr
    assert kinds(endless) == set()

    file.write_text(before, "utf-8")
    (supervisor,) = endless.pids("supervisor")
    os.kill(supervisor, signal.SIGHUP)
    again = "configuration reloaded: changed: scheduler.queue_limit"
    wait_for("SIGHUP reloads", lambda: endless.log.count(again) == 2, within_s=HEALED_WITHIN_S)


@pytest.mark.timeout(300)
def test_a_reload_reaches_the_gateway(state: Path) -> None:
    """Its processes are replaced, once and only when it concerns them, and nobody who talks to it notices."""
    configure(state, "[gateway]\nprocesses = 2\n")
    with booted(state) as appliance:
        first = set(appliance.pids("gateway"))
        with Load(appliance) as load:
            load.wait_for_more()
            configure(state, "[gateway]\nprocesses = 3\n[chat]\nmax_tokens = 7\n")
            assert command(appliance, "reload").stdout == (
                "changed: gateway.processes, chat.max_tokens; gateway processes that know gateway.processes, chat.max_tokens "
                "take the place of those that serve\n"
            )

            def replaced() -> bool:
                now = set(appliance.pids("gateway"))
                return len(now) == 3 and not now & first

            wait_for("all are replaced", replaced, within_s=HEALED_WITHIN_S)
            load.wait_for_more()
        load.check()
        second = set(appliance.pids("gateway"))
        assert appliance.chat("Tell me a long story")["usage"]["completion_tokens"] <= 7
        configure(state, "[gateway]\nprocesses = 3\n[chat]\nmax_tokens = 7\n[scheduler]\nqueue_limit = 9\n")
        assert command(appliance, "reload").stdout == "changed: scheduler.queue_limit\n"
        configure(state, "[gateway]\nprocesses = 1\n[scheduler]\nqueue_limit = 9\n")
        assert command(appliance, "reload").returncode == 0

        def one_is_left() -> bool:
            now = set(appliance.pids("gateway"))
            return len(now) == 1 and not now & second

        wait_for("one is left, and new", one_is_left, within_s=HEALED_WITHIN_S)
        configure(state, "[gateway]\nprocesses = 2\n")
        (supervisor,) = appliance.pids("supervisor")
        os.kill(supervisor, signal.SIGKILL)  # the next one reads them at its start
        wait_for("they follow it too", lambda: len(appliance.pids("gateway")) == 2, within_s=HEALED_WITHIN_S)
        assert re.findall(r"(\d+) new gateway processes take the place", appliance.log) == ["3", "1", "2"]


def test_a_change_of_where_it_listens(appliance: Booted) -> None:
    file = appliance.state / "etc/network.yaml"
    file.write_text("mode: local\napi:\n  port: 8099\n", "utf-8")
    try:
        done = command(appliance, "reload")
        assert done.stdout == "changed: api.port; not before the next start: api.port\n", done
    finally:
        file.unlink()
    assert command(appliance, "reload").returncode == 0


async def test_a_reload_with_another_engine_setting_drops_no_reply(endless: Booted) -> None:
    file = endless.state / "etc/appliance.toml"
    before = file.read_text("utf-8")
    worker = await asyncio.to_thread(endless.worker_pid)
    async with websocket(endless) as socket:
        await socket.send(chat_message(max_tokens=1_000))
        while (await receive(socket))["type"] != "token":
            pass
        file.write_text(before.replace("[text]\n", "[text]\nslots = 3\n"), "utf-8")
        done = await asyncio.to_thread(command, endless, "reload")
        assert (done.returncode, done.stdout) == (0, "changed: text.slots; endless serves on text-2\n"), done
        events = await receive_reply(socket)
        assert events[-1]["type"] == "done", events[-1]

    def replaced() -> bool:
        return len(endless.text_workers()) == 1

    await asyncio.to_thread(wait_for, "the one before has ended", replaced, within_s=HEALED_WITHIN_S)
    assert worker not in await asyncio.to_thread(endless.processes)
    (now,) = await asyncio.to_thread(endless.text_workers)
    assert (now["name"], now["slots"]) == ("text-2", 3)

    file.write_text(before.replace('"endless"', '"nobody"'), "utf-8")
    refused = await asyncio.to_thread(command, endless, "reload")
    assert refused.returncode == 78
    assert "no model is called 'nobody'; there are: coral-reef-chat, " in refused.stderr
    assert await asyncio.to_thread(kinds, endless) == {"configuration_refused"}
    reply = await asyncio.to_thread(endless.chat, max_tokens=5)
    assert reply["finish_reason"] == "length", "what runs goes on"


def test_workers_as_json(appliance: Booted) -> None:
    done = command(appliance, "worker", "list", "--json")
    assert done.returncode == 0, done.stderr
    worker, *_ = json.loads(done.stdout)
    assert (worker["name"], worker["state"]) == ("text-1", "ready")


def test_the_log_is_read_from_another_terminal(appliance: Booted) -> None:
    done = command(appliance, "logs", "-n", "1000")
    assert done.returncode == 0, done.stderr
    assert "worker text-1 is ready" in done.stdout
    assert all(line in appliance.log for line in done.stdout.splitlines())
    assert command(appliance, "logs", "-n", "1").stdout.count("\n") == 1
    with subprocess.Popen(
        [*COMMAND, "logs", "-f", "-n", "0", "--state", str(appliance.state)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        try:
            # Its reader takes its place at the end some time after its start: whoever comes later is heard of.
            wait_for("it follows", lambda: _opened(following.pid, appliance), within_s=30)
            assert command(appliance, "reload").stdout == "nothing changed\n"
            assert "configuration reloaded: nothing changed" in following.stdout.readline()
        finally:
            following.kill()


def _opened(pid: int, appliance: Booted) -> bool:
    file = appliance.state / "logs/coral-reef.log"
    return file in {each.resolve() for each in Path(f"/proc/{pid}/fd").iterdir()}


async def test_an_administrator_hears_of_it_at_once(endless: Booted) -> None:
    """Over the WebSocket, of a worker that is started anew and of a configuration that is refused."""
    worker = await asyncio.to_thread(endless.worker_pid)
    file = endless.state / "etc/appliance.toml"
    before = file.read_text("utf-8")
    async with websocket(endless) as socket, asyncio.timeout(HEALED_WITHIN_S):
        await socket.send('{"type": "subscribe", "payload": {"channels": ["system"]}}')
        assert await receive_system_event(socket, "subscribed") == {"channels": ["system"]}
        os.kill(worker, signal.SIGKILL)
        states = []
        while "ready" not in states:
            changed = await receive_system_event(socket, "worker")
            assert changed["name"] == "text-1"
            states.append(changed["state"])
        assert states == ["waiting", "starting", "ready"]
        file.write_text(before + "\n[scheduler]\nqueue_limit = 0\n", "utf-8")
        assert (await asyncio.to_thread(command, endless, "reload")).returncode == 78
        repair = await receive_system_event(socket, "repair")
        assert (repair["id"], repair["gone"]) == ("configuration_refused:files", False)
        file.write_text(before, "utf-8")
        assert (await asyncio.to_thread(command, endless, "reload")).returncode == 0
        assert await receive_system_event(socket, "repair") == {**repair, "gone": True}
