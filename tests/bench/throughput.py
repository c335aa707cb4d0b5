"""Tokens through the whole appliance against the engine alone, and against llama-cpp-python's server where that is installed.

The interpreter that has it is named by LLAMA_CPP_PYTHON; without that, the one that runs this.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.waiting import wait_for

from . import models
from .appliance_run import RunningAppliance, cpu_s
from .engines import Engine, engines
from .http_requests import listens
from .report import ms, row

STREAMS = (16, 64)

#: Each model with how it is made and how many tokens a run writes in all: some seconds' worth.
MODELS: tuple[tuple[str, Callable[[Path], Path], int], ...] = (
    ("shipped", models.add_small, 6400),
    ("28M", models.add_random, 3200),
)

START_TIMEOUT_S = 60.0


@dataclass
class Side:
    """What one side did in each round."""

    per_cpu_s: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)

    def add(self, tokens: float, cpu: float, wall: float) -> None:
        self.per_cpu_s.append(tokens / cpu)
        self.per_s.append(tokens / wall)


def measure(rounds: int) -> None:
    """Prints the figures of each build, model and number of streams."""
    peer = _llama_cpp_python()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        builds = engines(Path(folder))
        for title, add, tokens in MODELS:
            model = add(Path(folder) / title)
            for engine in builds:
                for streams in STREAMS:
                    _compare(
                        f"{title} model, {engine.name}, {streams} streams",
                        engine,
                        add,
                        model,
                        streams,
                        tokens // streams,
                        peer,
                        rounds,
                    )
        if len(builds) == 1:
            print("  (the native build is measured too after `make native`)")
    if not peer:
        print(
            "  (llama-cpp-python's server is measured too when LLAMA_CPP_PYTHON names an interpreter that has it)"
        )


def _compare(
    title: str,
    engine: Engine,
    add: Callable[[Path], Path],
    model: Path,
    streams: int,
    tokens: int,
    peer: str,
    rounds: int,
) -> None:
    ours, alone, flash, theirs = Side(), Side(), Side(), Side()
    warm = []
    for _ in range(rounds):
        warm.append(_appliance(ours, engine, add, streams, tokens))
        _engine_alone(alone, engine, model, streams, tokens)
        _engine_alone(flash, engine, model, streams, tokens, "--flash")
        if peer:
            _peer(theirs, peer, model, streams, tokens)
    median = statistics.median
    ratios = [one / other for one, other in zip(ours.per_cpu_s, alone.per_cpu_s, strict=True)]
    limit = f"{median(alone.per_cpu_s):,.0f}"
    row(f"tokens per CPU-second: {title}", f"{median(ours.per_cpu_s):,.0f}", limit, median(ratios))
    ratios = [one / other for one, other in zip(ours.per_cpu_s, flash.per_cpu_s, strict=True)]
    limit = f"{median(flash.per_cpu_s):,.0f}"
    row(
        "  with flash attention, whose replies are not exact",
        f"{median(ours.per_cpu_s):,.0f}",
        limit,
        median(ratios),
    )
    row("  tokens per second", f"{median(ours.per_s):,.0f}", f"{median(alone.per_s):,.0f}")
    row("  first token, cold", ms(median(ours.first_token_s)), ms(median(alone.first_token_s)))
    row("  first token, next turn", ms(median(warm)))
    if peer:
        ratios = [one / other for one, other in zip(ours.per_cpu_s, theirs.per_cpu_s, strict=True)]
        figure = f"{median(theirs.per_cpu_s):,.0f}"
        row(
            "  llama-cpp-python: tokens per CPU-second",
            f"{median(ours.per_cpu_s):,.0f}",
            figure,
            median(ratios),
        )
        ratios = [one / other for one, other in zip(ours.per_s, theirs.per_s, strict=True)]
        row(
            "  llama-cpp-python: tokens per second",
            f"{median(ours.per_s):,.0f}",
            f"{median(theirs.per_s):,.0f}",
            median(ratios),
        )


def _appliance(side: Side, engine: Engine, add: Callable[[Path], Path], streams: int, tokens: int) -> float:
    """One run of ours; returns how long the first token of a next turn took."""
    loop = asyncio.new_event_loop()
    with RunningAppliance(
        models.configuration(slots=streams), add, environment=engine.environment
    ) as appliance:

        async def conversation() -> tuple[float, float]:
            first = await appliance.ask("What are you?", max_tokens=8, seed=1)
            second = await appliance.ask("And who?", max_tokens=8, seed=1, session_id=first.session_id)
            return first.first_token_s, second.first_token_s

        async def all_streams() -> int:
            asked = (
                appliance.ask(f"What is {number}?", max_tokens=tokens, seed=number)
                for number in range(streams)
            )
            return sum(answer.tokens for answer in await asyncio.gather(*asked))

        cold, warm = loop.run_until_complete(conversation())
        before, began = appliance.cpu_s(), loop.time()
        written = loop.run_until_complete(all_streams())
        side.add(written, appliance.cpu_s() - before, loop.time() - began)
        side.first_token_s.append(cold)
    loop.close()
    return warm


def _engine_alone(side: Side, engine: Engine, model: Path, streams: int, tokens: int, *options: str) -> None:
    command = [sys.executable, "-m", "tests.bench.engine_alone", str(model), str(streams), str(tokens)]
    done = subprocess.run([*command, *options], check=True, capture_output=True, env=engine.environment)
    found = json.loads(done.stdout)
    side.add(found["tokens"], found["cpu_s"], found["wall_s"])
    side.first_token_s.append(found["first_token_s"])


# --- llama-cpp-python ----------------------------------------------------------------------------------------------


def _llama_cpp_python() -> str:
    """The interpreter that has its server; empty when there is none."""
    interpreter = os.environ.get("LLAMA_CPP_PYTHON") or sys.executable
    probe = (
        "import importlib.util as u, sys; sys.exit(not (u.find_spec('llama_cpp') and u.find_spec('uvicorn')))"
    )
    return interpreter if subprocess.run([interpreter, "-c", probe]).returncode == 0 else ""


def _peer(side: Side, interpreter: str, model: Path, streams: int, tokens: int) -> None:
    """The same questions to its server, which answers them one after another."""
    loop = asyncio.new_event_loop()
    with _peer_server(interpreter, model) as (pid, port):
        before, began = cpu_s(pid), loop.time()
        written = loop.run_until_complete(_ask_peer(port, streams, tokens))
        side.add(written, cpu_s(pid) - before, loop.time() - began)
    loop.close()


@contextmanager
def _peer_server(interpreter: str, model: Path) -> Iterator[tuple[int, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [
        interpreter,
        "-m",
        "llama_cpp.server",
        "--model",
        str(model),
        "--n_ctx",
        "1024",
        "--n_threads",
        "1",
    ]
    command += [
        "--n_threads_batch",
        "1",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--interrupt_requests",
        "False",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for("llama-cpp-python listens", lambda: listens(port), within_s=START_TIMEOUT_S)
        yield process.pid, port
    finally:
        process.kill()
        process.wait()


async def _ask_peer(port: int, streams: int, tokens: int) -> int:
    async def ask(number: int) -> None:
        body = json.dumps(
            {
                "messages": [{"role": "user", "content": f"What is {number}?"}],
                "stream": True,
                "max_tokens": tokens,
                "temperature": 1.0,
                "seed": number,
            }
        ).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        said = await reader.read(-1)
        writer.close()
        if b'"finish_reason":"length"' not in said.replace(b" ", b""):
            raise RuntimeError(f"llama-cpp-python did not write {tokens} tokens: {said[-500:]!r}")

    await asyncio.gather(*map(ask, range(streams)))
    return streams * tokens
