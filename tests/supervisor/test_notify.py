"""What systemd hears, at a real notify socket."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from appliance.process import watchdog_period_s
from appliance.supervisor.errors import SubsystemDead
from appliance.supervisor.notify import EXTENSION_S, Notify, extend_timeout, feed_watchdog


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket on which systemd would listen."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(folder / "notify"))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        yield listener
    shutil.rmtree(folder)


@pytest.fixture
def notify(systemd: socket.socket) -> Iterator[Notify]:
    """A notifier that is connected to `systemd`."""
    assert systemd.fileno() >= 0
    found = Notify()
    yield found
    assert found._notifier is not None
    found._notifier.socket.close()


def test_the_life_of_a_service(systemd: socket.socket, notify: Notify) -> None:
    notify.ready("0 of 1 workers ready")
    notify.status("0 of 1 workers ready")  # nothing new
    notify.status("1 of 1 workers ready")
    notify.watchdog()
    notify.stopping("bye")
    assert [systemd.recv(1000) for _ in range(4)] == [
        b"READY=1\nSTATUS=0 of 1 workers ready",
        b"STATUS=1 of 1 workers ready",
        b"WATCHDOG=1",
        b"STOPPING=1\nSTATUS=bye",
    ]
    systemd.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.recv(1000)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # sdnotify drops its socket unclosed
def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify = Notify()
    notify.ready("x")
    notify.stopping("x")
    assert notify._status == "x"
    del notify
    gc.collect()


@pytest.mark.parametrize(
    ("usec", "pid", "period_s"),
    [
        ("3000000", "", 1.5),
        pytest.param("3000000", str(os.getpid()), 1.5, id="its own"),
        ("3000000", "1", None),
        ("0", "", None),
        ("", "", None),
        ("soon", "", None),
        ("-5", "", None),
    ],
)
def test_half_the_period(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, period_s: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert watchdog_period_s() == period_s


async def all_well() -> None:
    """Every subsystem lives."""


async def test_the_watchdog_is_fed(
    systemd: socket.socket, notify: Notify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    systemd.setblocking(False)
    loop = asyncio.get_running_loop()
    feeding = asyncio.create_task(feed_watchdog(notify, all_well))
    times = []
    async with asyncio.timeout(5):
        for _ in range(4):
            assert await loop.sock_recv(systemd, 1000) == b"WATCHDOG=1"
            times.append(time.monotonic())
    feeding.cancel()
    assert all(later - earlier > 0.03 for earlier, later in pairwise(times))


async def dead() -> None:
    raise SubsystemDead("the control socket does not answer")


async def stuck() -> None:
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (dead, "the control socket does not answer"),
        (stuck, "a part of the supervisor has not answered within 0.0 s"),
    ],
)
async def test_a_dead_subsystem_starves_the_watchdog(
    systemd: socket.socket,
    notify: Notify,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: Callable[[], Awaitable[None]],
    said: str,
) -> None:
    """It is not fed meanwhile, the reason is told, and it is fed again if that is over in time."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    systemd.setblocking(False)
    answers = [all_well, trouble, trouble, all_well, stuck]
    fed: list[int] = []
    asked = 0
    done = asyncio.Event()

    async def prove() -> None:
        nonlocal asked
        with suppress(BlockingIOError):
            while systemd.recv(100) == b"WATCHDOG=1":
                fed.append(asked)
        if asked == 4:
            done.set()
        answer = answers[min(asked, 4)]
        asked += 1
        await answer()

    feeding = asyncio.create_task(feed_watchdog(notify, prove))
    async with asyncio.timeout(5):
        await done.wait()
    feeding.cancel()
    assert fed == [1, 4], "after the first and the last of four"
    assert caplog.messages[:2] == [said] * 2


async def test_subsystems_are_looked_at_without_a_watchdog(
    notify: Notify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    asked = asyncio.Event()

    async def prove() -> None:
        asked.set()

    feeding = asyncio.create_task(feed_watchdog(notify, prove))
    async with asyncio.timeout(5):
        await asked.wait()
    feeding.cancel()


async def test_a_stop_that_takes_its_time(systemd: socket.socket, notify: Notify) -> None:
    systemd.setblocking(False)
    extending = asyncio.create_task(extend_timeout(notify))
    async with asyncio.timeout(5):
        assert await asyncio.get_running_loop().sock_recv(systemd, 100) == b"EXTEND_TIMEOUT_USEC=20000000"
    assert EXTENSION_S == 20.0
    extending.cancel()
