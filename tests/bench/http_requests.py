"""Requests through a gateway process against an application on bare uvicorn (`bare.py`)."""

from __future__ import annotations

import asyncio
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.waiting import wait_for

from . import models
from .appliance_run import RunningAppliance, chat_body, cpu_s
from .report import row

CONNECTIONS = 16
CHATS = 200
TOKENS = 64
GETS = 20_000

#: Sends requests, as many as that, each made from its number; returns how many a CPU-second answers.
Measure = Callable[[Callable[[int], bytes], int], float]


def measure(rounds: int) -> None:
    """Chats (a whole reply, its engine included on both sides), and a GET that only needs the gateway."""
    chats: list[tuple[float, float]] = []
    flash: list[tuple[float, float]] = []
    gets: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model = models.add_small(Path(folder))
        configuration = models.configuration(slots=CONNECTIONS, more="[gateway]\nprocesses = 1\n")
        for _ in range(rounds):
            with (
                RunningAppliance(configuration, models.add_small) as appliance,
                _bare(model) as theirs,
                _bare(model, "--flash") as theirs_with_flash,
            ):
                ours = partial(_per_cpu_s, appliance.port, appliance.cpu_s)
                one = ours(partial(_chat, appliance, "/api/v1/chat"), CHATS)
                for found, bare in ((chats, theirs), (flash, theirs_with_flash)):
                    found.append((one, bare(partial(_chat, appliance, "/chat"), CHATS)))
                personas = appliance.request("/api/v1/personas", method="GET", connection="keep-alive")
                size = asyncio.run(_size(appliance.port, personas))
                as_much = appliance.request(f"/{size}", method="GET", connection="keep-alive")
                gets.append((ours(_always(personas), GETS), theirs(_always(as_much), GETS)))
    for title, taken in (
        (f"chats of {TOKENS} tokens per CPU-second, bare uvicorn + engine", chats),
        ("  with flash attention, whose replies are not exact", flash),
        ("GET /api/v1/personas per CPU-second, bare uvicorn", gets),
    ):
        one, other = (statistics.median(side) for side in zip(*taken, strict=True))
        row(title, f"{one:,.0f}", f"{other:,.0f}", statistics.median(mine / its for mine, its in taken))


def _chat(appliance: RunningAppliance, path: str, number: int) -> bytes:
    body = chat_body(f"What is {number}?", max_tokens=TOKENS, seed=number)
    return appliance.request(path, body, connection="keep-alive")


def _always(request: bytes) -> Callable[[int], bytes]:
    return lambda _: request


def _per_cpu_s(port: int, used: Callable[[], float], request: Callable[[int], bytes], count: int) -> float:
    before = used()
    asyncio.run(_ask(port, request, count))
    return count / (used() - before)


async def _ask(port: int, request: Callable[[int], bytes], count: int) -> None:
    """So many requests over a few connections that stay open."""
    numbers = iter(range(count))

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            writer.write(request(number))
            await _answer(reader)
        writer.close()

    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))


async def _size(port: int, request: bytes) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    size = await _answer(reader)
    writer.close()
    return size


async def _answer(reader: asyncio.StreamReader) -> int:
    """Reads one response; returns its body's length."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    size = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    body = await reader.readexactly(size)
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(f"{head!r} {body!r}")
    return size


@contextmanager
def _bare(model: Path, *options: str) -> Iterator[Measure]:
    """What measures the bare application."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "tests.bench.bare", str(port), str(model), str(CONNECTIONS), *options]
    process = subprocess.Popen(command)
    try:
        wait_for("the bare application listens", lambda: listens(port))
        yield partial(_per_cpu_s, port, partial(cpu_s, process.pid))
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    """Whether something does on this machine's port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
