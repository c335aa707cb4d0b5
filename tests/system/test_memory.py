"""Memory: what one worker takes too much of is its own trouble, told and over when it is over."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.waiting import wait_for, wait_until

from .booted import Booted, booted, command, configure
from .talk import chat_message, question, receive, receive_reply, websocket
from .test_care import repairs

pytestmark = pytest.mark.system

#: What the owner was promised about a worker that dies.
ERROR_WITHIN_S = 1.0

HEALED_WITHIN_S = 60.0

#: A worker that works needs more than that anew at any moment.
SCARCE_BYTES = 256 * 1024


@pytest.fixture
def endless(state: Path) -> Iterator[Booted]:
    configure(state, "[gateway]\nprocesses = 1\n", endless_model=True)
    with booted(state) as found:
        yield found


def memory_group() -> Path | None:
    """Our control group of version 1 that counts memory; None where it is counted otherwise, or not by us."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text("utf-8").splitlines()]
    for _, place, kind, options, *_ in mounts:
        if kind == "cgroup" and "memory" in options.split(","):
            lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text("ascii").splitlines()]
            own = next(path for _, controllers, path in lines if "memory" in controllers.split(","))
            group = Path(place) / own.lstrip("/")
            return group if os.access(group, os.W_OK) else None
    return None


@contextmanager
def scarce_memory(pid: int) -> Iterator[Path]:
    """A control group that holds this process, what it used so far not counted; the kernel ends it when it needs much more."""
    above = memory_group()
    assert above is not None
    group = above / f"reef-{secrets.token_hex(3)}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(SCARCE_BYTES), "ascii")
        (group / "cgroup.procs").write_text(str(pid), "ascii")
        yield group
    finally:
        wait_for("nothing is left in it", lambda: _removed(group))


def _removed(group: Path) -> bool:
    for pid in map(int, (group / "cgroup.procs").read_text("ascii").split()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    try:
        group.rmdir()
    except OSError:  # it is not reaped yet
        return False
    return True


def ask_for_much(appliance: Booted) -> None:
    """A long prompt, whatever becomes of it."""
    with appliance.client() as client:
        client.post("/api/v1/chat", json=question("word " * 1500, max_tokens=1))


def oom_kills(group: Path) -> int:
    lines = (group / "memory.oom_control").read_text("ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("oom_kill ")))


@pytest.mark.skipif(memory_group() is None, reason="needs a memory group of version 1 that may be divided")
async def test_the_kernel_ends_a_worker_for_its_memory(endless: Booted) -> None:
    """It alone: the rest lives, its streams hear of it at once, it is back, and the reason is told."""
    worker = await asyncio.to_thread(endless.worker_pid)
    others = set(await asyncio.to_thread(endless.processes)) - {worker}
    async with websocket(endless) as socket:
        await socket.send(chat_message())
        while (await receive(socket))["type"] != "token":
            pass
        with scarce_memory(worker) as group:
            listening = asyncio.create_task(receive_reply(socket))
            more = asyncio.create_task(asyncio.to_thread(ask_for_much, endless))
            await wait_until("the kernel has acted", lambda: oom_kills(group), within_s=HEALED_WITHIN_S)
            killed = time.monotonic()
            events = await listening
            heard_s = time.monotonic() - killed
        await more
    assert events[-1]["payload"]["code"] == "worker_lost"
    assert heard_s < ERROR_WITHIN_S
    reply = await asyncio.to_thread(endless.chat, max_tokens=10)
    assert reply["usage"]["completion_tokens"] == 10
    assert others <= set(await asyncio.to_thread(endless.processes)), "nobody else was to end"
    said = "worker text-1: ended by the kernel: there was no memory left for it"
    assert said in endless.log
    (repair,) = await asyncio.to_thread(repairs, endless)
    assert (repair["id"], repair["what"]) == ("worker_memory:text-1", said.replace("1:", "1", 1))


async def test_a_limit_below_what_it_needs(endless: Booted) -> None:
    """Set and raised through a reload: without control groups the supervisor itself sees to it."""
    file = endless.state / "etc/appliance.toml"
    before = file.read_text("utf-8")
    status = await asyncio.to_thread(endless.status)
    used_mib = status["workers"][0]["rss_bytes"] >> 20
    worker = await asyncio.to_thread(endless.worker_pid)
    async with websocket(endless) as socket:
        await socket.send(chat_message())
        while (await receive(socket))["type"] != "token":
            pass
        file.write_text(before.replace("[text]\n", f"[text]\nmemory_limit_mib = {used_mib // 2}\n"), "utf-8")
        done = await asyncio.to_thread(command, endless, "reload")
        assert done.stdout == "changed: text.memory_limit_mib; endless serves on text-1\n", done
        events = await receive_reply(socket)
    assert events[-1]["payload"]["code"] == "worker_lost"
    assert worker not in await asyncio.to_thread(endless.processes)

    def told() -> list[str]:
        return [each["what"] for each in repairs(endless) if each["kind"] == "worker_memory"]

    assert await wait_until("it is told", told) == [
        f"worker text-1 needed more than its {used_mib // 2} MiB of memory"
    ]
    assert f"MiB: its memory limit is {used_mib // 2} MiB" in endless.log

    file.write_text(before, "utf-8")
    done = await asyncio.to_thread(command, endless, "reload")
    assert done.returncode == 0, done
    reply = await asyncio.to_thread(endless.chat, max_tokens=10)
    assert reply["usage"]["completion_tokens"] == 10
    await wait_until("all is well", lambda: not repairs(endless), within_s=HEALED_WITHIN_S)
