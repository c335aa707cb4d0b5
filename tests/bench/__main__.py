"""`make bench`: prints our figure, the limit's or the peer's, and the ratio."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.endless import NAME, add_endless_model

from . import placement
from .appliance_run import RunningAppliance

STREAMS = 16
TOKENS = 400


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=5, help="how often each side runs (default: %(default)s)"
    )
    rounds = parser.parse_args().rounds
    print(f"{os.cpu_count()} cores; medians of {rounds} rounds, the sides in turn\n")
    print(f"{'figure':<44} {'ours':>12} {'limit':>12} {'ratio':>7}")
    decisions(rounds)
    throughput(rounds)
    start(rounds)
    memory()


def row(name: str, ours: str, limit: str = "", ratio: str = "") -> None:
    print(f"{name:<44} {ours:>12} {limit:>12} {ratio:>7}", flush=True)


def decisions(rounds: int) -> None:
    """The scheduler alone: what a request and the end of another cost."""
    for title, ours in placement.figures(rounds):
        limit = placement.LIMIT_US
        row(title, f"{ours:.1f} us", f"{limit:.0f} us", f"{ours / limit:.2f}")


def add_window(models: Path) -> Path:
    """The endless model with the window of the shipped one: attention costs by the window's length."""
    return add_endless_model(models, window_tokens=1024)


def throughput(rounds: int) -> None:
    """16 streams through the appliance and in the engine alone."""
    ours, wall, limit, limit_wall, ratios = [], [], [], [], []
    cold, warm, alone = [], [], []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model = add_window(Path(folder))
        configuration = f'[text]\nmodel = "{NAME}"\nslots = {STREAMS}\n[chat]\nmax_tokens = {TOKENS}\n'
        for _ in range(rounds):
            with RunningAppliance(configuration, add_window) as appliance:
                first, second = asyncio.run(_conversation(appliance))
                cold.append(first)
                warm.append(second)
                before, began = appliance.cpu_s(), time.perf_counter()
                tokens = asyncio.run(_streams(appliance))
                wall.append(tokens / (time.perf_counter() - began))
                ours.append(tokens / (appliance.cpu_s() - before))
            command = [
                sys.executable,
                "-m",
                "tests.bench.engine_alone",
                str(model),
                str(STREAMS),
                str(TOKENS),
            ]
            engine = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            limit.append(engine["tokens"] / engine["cpu_s"])
            limit_wall.append(engine["tokens"] / engine["wall_s"])
            alone.append(engine["first_token_s"])
            ratios.append(ours[-1] / limit[-1])
    median = statistics.median
    row(
        f"tokens per CPU-second, {STREAMS} streams",
        f"{median(ours):,.0f}",
        f"{median(limit):,.0f}",
        f"{median(ratios):.2f}",
    )
    row(f"tokens per second, {STREAMS} streams", f"{median(wall):,.0f}", f"{median(limit_wall):,.0f}")
    row("first token, cold", _ms(median(cold)), _ms(median(alone)))
    row("first token, warm (next turn)", _ms(median(warm)))


async def _conversation(appliance: RunningAppliance) -> tuple[float, float]:
    first = await appliance.ask("What are you?", max_tokens=8, seed=1)
    second = await appliance.ask("And who are you?", max_tokens=8, seed=1, session_id=first.session_id)
    return first.first_token_s, second.first_token_s


async def _streams(appliance: RunningAppliance) -> int:
    asked = (appliance.ask(f"What is {number}?", max_tokens=TOKENS, seed=number) for number in range(STREAMS))
    return sum(answer.tokens for answer in await asyncio.gather(*asked))


def start(rounds: int) -> None:
    """The supervisor to READY=1, and `coral-reef run` to its first healthy answer, on a state folder that exists."""
    ready = [_ready_s() for _ in range(rounds)]
    row("supervisor to READY", _ms(statistics.median(ready)), "1,000 ms")
    healthy = []
    for _ in range(rounds):
        with RunningAppliance() as appliance:
            healthy.append(appliance.start_s)
    row("coral-reef run to the first healthy answer", _ms(statistics.median(healthy)), "3,000 ms")


def _ready_s() -> float:
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as state,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
    ):
        path = f"{state}/notify"
        notify.bind(path)
        environment = {**os.environ, "CORAL_REEF_STATE": state, "NOTIFY_SOCKET": path}
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "appliance.supervisor"], env=environment, stderr=subprocess.DEVNULL
        )
        while b"READY=1" not in notify.recv(4096):
            pass
        taken = time.perf_counter() - began
        process.terminate()
        process.wait(30)
        return taken


def memory() -> None:
    """Resident sets when idle."""
    with RunningAppliance() as appliance:
        for title, used in appliance.memory():
            limit = "40.0 MiB" if title.endswith("supervisor") else ""
            title = title if title.startswith("coral-reef:") else "coral-reef run"
            row(f"memory: {title}", f"{used / 2**20:.1f} MiB", limit)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"


if __name__ == "__main__":
    main()
