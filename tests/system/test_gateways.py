"""Gateway processes that end, one after the other, under load; and clients that do not read when all of it stops."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.waiting import wait_for

from .booted import Booted, booted, configure
from .talk import chat_message, events_in, question, session_of, websocket

pytestmark = pytest.mark.system

CLIENTS = 6


class Load:
    """Clients that open a connection for each question. `acknowledged` is what they were told is done."""

    def __init__(self, appliance: Booted) -> None:
        self._appliance = appliance
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.outcomes: Counter[str] = Counter()
        self.acknowledged: list[tuple[str, str]] = []
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self) -> None:
        """Until some more turns were acknowledged."""
        before = len(self.acknowledged)
        wait_for("the clients are served", lambda: len(self.acknowledged) > before + 4, within_s=60)

    def check(self) -> None:
        """No connection was refused, and every turn that a client was told of is in its history."""
        assert not [outcome for outcome in self.outcomes if outcome.startswith("refused")], self.outcomes
        with self._appliance.client() as client:
            for session, message in self.acknowledged:
                messages = client.get(f"/api/v1/chat/history/{session}").json()["messages"]
                assert [each["content"] for each in messages[:1]] == [message]
                assert len(messages) == 2

    def _run(self, number: int) -> None:
        asked = 0
        while not self._stop.is_set():
            asked += 1
            message = f"Question {asked} of client {number}"
            try:
                session = self._stream(message) if asked % 2 else self._whole(message)
            except httpx.ConnectError as error:
                session, outcome = None, f"refused: {error}"
            except httpx.TransportError as error:
                session, outcome = None, type(error).__name__
            else:
                outcome = "acknowledged" if session else "ended with an error"
            with self._lock:
                self.outcomes[outcome] += 1
                if session:
                    self.acknowledged.append((session, message))

    def _whole(self, message: str) -> str | None:
        with self._appliance.client() as client:
            response = client.post("/api/v1/chat", json=question(message))
        return response.json()["session_id"] if response.status_code == 200 else None

    def _stream(self, message: str) -> str | None:
        with (
            self._appliance.client() as client,
            client.stream("POST", "/api/v1/chat/stream", json=question(message)) as response,
        ):
            events = list(events_in(response.iter_lines()))
        return session_of(events) if events and events[-1]["type"] == "done" else None


def wait_until_replaced(appliance: Booted, pid: int) -> None:
    """Until there are two gateways, and this process is none of them."""

    def replaced() -> bool:
        now = appliance.pids("gateway")
        return pid not in now and len(now) == 2

    wait_for("another gateway runs", replaced, within_s=60)


@pytest.fixture
def two(state: Path) -> Iterator[Booted]:
    configure(state, "[gateway]\nprocesses = 2\n")
    with booted(state) as appliance:
        wait_for("two gateways run", lambda: len(appliance.pids("gateway")) == 2)
        yield appliance


@pytest.mark.timeout(300)
def test_gateways_end_one_after_the_other_under_load(two: Booted) -> None:
    """No connection is refused, and every turn that a client was told of is in its history."""
    with Load(two) as load:
        for number in (signal.SIGKILL, signal.SIGTERM):
            for pid in two.pids("gateway"):
                load.wait_for_more()
                os.kill(pid, number)
                wait_until_replaced(two, pid)
        load.wait_for_more()
    load.check()
    two.wait_until_idle(within_s=30)


def test_all_gateways_at_once(two: Booted) -> None:
    """Who connects meanwhile waits in the socket's queue, which the launcher holds."""
    before = two.pids("gateway")
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    two.wait_until_gone(before)
    assert two.chat("Are you there?")["content"]
    wait_for("two gateways run", lambda: len(two.pids("gateway")) == 2)


def test_statistics_are_of_all_gateways_and_outlive_them(two: Booted) -> None:
    """Each counts for itself; whichever is asked tells of all."""

    def stats() -> dict[str, Any]:
        with two.client() as client:
            found: dict[str, Any] = client.get("/api/v1/system/network/stats").json()
        return found

    clients = [
        two.client() for _ in range(32)
    ]  # which of the two takes a connection is the kernel's to decide
    for client in clients:
        assert client.get("/api/v1/personas").status_code == 200
    seen = wait_for(
        "all are counted",
        lambda: (now := stats())["connections"]["http"] >= len(clients) and now,
    )
    assert seen["latency"]["api"]["count"] >= len(clients)
    assert seen["host"]["bytes_in"] >= 0
    for pid in two.pids("gateway"):
        os.kill(pid, signal.SIGKILL)
        wait_until_replaced(two, pid)
    for client in clients:
        client.close()
    after = wait_for("theirs are gone", lambda: (now := stats())["connections"]["http"] < 16 and now)
    assert after["latency"]["api"]["count"] > seen["latency"]["api"]["count"]
    assert after["connections"]["total_today"] > seen["connections"]["total_today"]
    assert after["since"] == seen["since"]


def test_one_gateway_a_core(state: Path) -> None:
    """Of those that it may use: here one."""
    configure(state)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with booted(state) as appliance:
            assert len(appliance.pids("gateway")) == 1
    finally:
        os.sched_setaffinity(0, cores)


async def test_a_stop_with_clients_that_do_not_read(state: Path) -> None:
    """It ends in its time and in good order, whatever they leave unread."""
    configure(state, "[gateway]\nprocesses = 1\ndrain_s = 1.0\n", endless_model=True)
    with booted(state) as appliance:
        host, _, port = appliance.url.removeprefix("http://").partition(":")
        body = json.dumps(question()).encode()
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect((host, int(port)))
            stuck.sendall(
                f"POST /api/v1/chat/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {appliance.key}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            async with websocket(appliance) as unread:
                unread.transport.pause_reading()
                for _ in range(14):
                    await unread.send(chat_message())
                await asyncio.to_thread(appliance.wait_for_leases, 15)
                await asyncio.to_thread(appliance.stop)
                unread.transport.abort()
        assert "killing it" not in appliance.log, appliance.log
