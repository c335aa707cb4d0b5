"""What systemd hears, at a real notify socket."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from appliance.process import watchdog_period_s
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
        ("3000000", str(os.getpid()), 1.5),
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


async def test_the_watchdog_is_fed(
    systemd: socket.socket, notify: Notify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    systemd.setblocking(False)
    loop = asyncio.get_running_loop()
    feeding = asyncio.create_task(feed_watchdog(notify, lambda: True))
    times = []
    async with asyncio.timeout(5):
        for _ in range(4):
            assert await loop.sock_recv(systemd, 1000) == b"WATCHDOG=1"
            times.append(time.monotonic())
    feeding.cancel()
    assert all(later - earlier > 0.03 for earlier, later in pairwise(times))


async def test_a_dead_subsystem_starves_the_watchdog(
    systemd: socket.socket, notify: Notify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    alive = iter([True, True, False])
    async with asyncio.timeout(5):
        await feed_watchdog(notify, lambda: next(alive))
    assert [systemd.recv(100), systemd.recv(100)] == [b"WATCHDOG=1"] * 2


async def test_no_watchdog(notify: Notify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    asked: list[bool] = []

    def alive() -> bool:
        asked.append(True)
        return True

    await feed_watchdog(notify, alive)
    assert asked == []


async def test_a_stop_that_takes_its_time(systemd: socket.socket, notify: Notify) -> None:
    systemd.setblocking(False)
    extending = asyncio.create_task(extend_timeout(notify))
    async with asyncio.timeout(5):
        assert await asyncio.get_running_loop().sock_recv(systemd, 100) == b"EXTEND_TIMEOUT_USEC=20000000"
    assert EXTENSION_S == 20.0
    extending.cancel()
