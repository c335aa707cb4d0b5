"""How long a stream is silent while the worker reads a neighbour's long prompt."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import models
from .appliance_run import RunningAppliance
from .engine_alone import BEFORE
from .report import ms, row

#: `tide` is a token and a half of the shipped tokenizer.
WORDS = 1000
WINDOW = 2048
LIMIT_S = 0.25


def measure(rounds: int) -> None:
    """Ours against the engine alone with its own settings, which reads 2,048 tokens in one step."""
    ours, alone = [], []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model = models.add_random(Path(folder), window_tokens=WINDOW)
        for _ in range(rounds):
            ours.append(_appliance())
            command = [sys.executable, "-m", "tests.bench.engine_alone", str(model), "2", str(WINDOW)]
            done = subprocess.run(
                [*command, "--prompt", str(WORDS), "--flash"], check=True, capture_output=True
            )
            alone.append(json.loads(done.stdout)["silence_s"])
    median = statistics.median
    title = "longest silence while a neighbour's 1,500 tokens are read, 28M"
    row(title, ms(median(ours)), ms(LIMIT_S), median(ours) / LIMIT_S)
    row(
        "  the engine alone with its own settings",
        ms(median(ours)),
        ms(median(alone)),
        median(ours) / median(alone),
    )


def _appliance() -> float:
    configuration = models.configuration(slots=2, max_tokens=WINDOW)
    with RunningAppliance(
        configuration, lambda folder: models.add_random(folder, window_tokens=WINDOW)
    ) as appliance:
        return asyncio.run(_silence(appliance))


async def _silence(appliance: RunningAppliance) -> float:
    moments: list[float] = []
    writing = asyncio.Event()

    async def neighbour() -> None:
        async for piece in appliance.stream("Go on.", max_tokens=WINDOW, seed=1):
            if b'"type":"token"' in piece:
                moments.append(time.perf_counter())
            if len(moments) == BEFORE:
                writing.set()

    listening = asyncio.create_task(neighbour())
    await writing.wait()
    await appliance.ask("tide " * WORDS, max_tokens=1, seed=2)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    return max(b - a for a, b in itertools.pairwise(moments[BEFORE - 1 :]))
