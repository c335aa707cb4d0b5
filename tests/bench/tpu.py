"""What the TPU workers cost and how soon they are back.

Embeddings through gateway and worker stand beside LiteRT alone in one process, hashing included on both sides, in turns; without
TPUs here both run the twin. The TPUs of the other figures are the stand-in's (tests/edgetpu).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from appliance.inference import models
from appliance.inference.making.chat import corpus
from appliance.inference.tensor_engine import TensorEngine
from appliance.inference.tensor_models import load, on_cpu
from appliance.paths import Paths
from appliance.scheduling.invocations import Invocations, Work
from appliance.scheduling.invoke_leases import InvokeLeases
from appliance.wire.frames import connect
from appliance.wire.messages import (
    FromSupervisor,
    Invoke,
    Priority,
    Subscribe,
    Topic,
    TpuChanged,
)
from tests.devices.hotplug import Testbed
from tests.edgetpu.stand_in import Fake, StandIn, add_text_models, write_model
from tests.edgetpu.tower import TEXTS, Tower, running_tower
from tests.scheduling import simulation
from tests.waiting import look_until, running, wait_for

from .appliance_run import RunningAppliance
from .report import row

BATCH = 32
REQUESTS = 200
AT_ONCE = 4
SCHEDULE_LIMIT_US = 50.0
TPUS = 16

#: Longer than any event takes: then something is wrong.
EVENT_TIMEOUT_S = 60.0


class Figure(NamedTuple):
    """A line of `make bench`: our figure, the limit's or the peer's, and the ratio."""

    title: str
    ours: str
    limit: str = ""
    ratio: str = ""


def figures(rounds: int) -> Iterator[Figure]:
    """All of them."""
    yield from embeddings(rounds)
    yield from scheduling(rounds)
    yield from hotplug(rounds)
    yield from recovery(rounds)


def batches() -> list[list[str]]:
    """Sentences as people write them, of some twenty words."""
    folder = Path(corpus.__file__).parent / "text"
    lines = [
        line.strip()
        for file in sorted(folder.rglob("*.txt"))
        for line in file.read_text("utf-8").splitlines()
    ]
    texts = [line for line in lines if len(line) > 40]
    return [texts[start : start + BATCH] for start in range(0, len(texts) - BATCH, BATCH)][:REQUESTS]


# --- embeddings ---------------------------------------------------------------------------------------------------


def embeddings(rounds: int) -> Iterator[Figure]:
    """Embeddings a second and a CPU-second, batch by batch; written as base64, which OpenAI's clients ask for, and as numbers."""
    shipped = any(each.entry.kind == "embedding" for each in models.shipped().values())
    add = None if shipped else partial(add_text_models, compiled=False, width=2048, hidden=512, outputs=256)
    found: dict[str, list[tuple[float, float]]] = {}
    with RunningAppliance(model=add) as appliance:
        file = _embedding_model(appliance.state)
        for _ in range(rounds):
            command = [sys.executable, "-m", "tests.bench.tpu", file]
            alone = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            for form in ("base64", "float"):
                asyncio.run(_ask(appliance, 20, form))
                before, began = appliance.cpu_s(), time.perf_counter()
                asyncio.run(_ask(appliance, REQUESTS, form))
                wall_s, cpu_s = time.perf_counter() - began, appliance.cpu_s() - before
                found.setdefault(f"second, {form}", []).append((wall_s, alone["wall_s"]))
                found.setdefault(f"CPU-second, {form}", []).append((cpu_s, alone["cpu_s"]))
    for title, taken in found.items():
        ours, limit = (REQUESTS * BATCH / statistics.median(each) for each in zip(*taken, strict=True))
        ratio = statistics.median(theirs / mine for mine, theirs in taken)
        yield Figure(
            f"embeddings per {title}, {BATCH} at a time", f"{ours:,.0f}", f"{limit:,.0f}", f"{ratio:.2f}"
        )


def _embedding_model(state: Path) -> str:
    known = models.catalogue(Paths.under(state)).values()
    return str(
        min((each for each in known if each.entry.kind == "embedding"), key=lambda each: each.name).path
    )


async def _ask(appliance: RunningAppliance, requests: int, form: str) -> None:
    """So many requests over a few connections that stay open."""
    bodies = [{"input": texts, "encoding_format": form} for texts in (batches() * 4)[:requests]]
    todo = iter([json.dumps(body).encode() for body in bodies])
    await asyncio.gather(*(_connection(appliance, todo) for _ in range(AT_ONCE)))


async def _connection(appliance: RunningAppliance, todo: Iterator[bytes]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", appliance.port, limit=1 << 22)
    for body in todo:
        head = (
            f"POST /api/v1/embeddings HTTP/1.1\r\nHost: bench\r\n{appliance.headers}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        content = await reader.readexactly(length)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(content.decode())
    writer.close()


def alone(file: str) -> None:
    """LiteRT alone: as many batches, one after the other, in this process."""
    from ai_edge_litert.interpreter import Interpreter

    from appliance.inference.text_models import open_text_model

    model = open_text_model(Path(file))
    interpreter = Interpreter(model_path=file, num_threads=1)
    source = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(source, [BATCH, model.width])
    interpreter.allocate_tensors()
    target = interpreter.get_output_details()[0]
    scale, zero_point = target["quantization"]

    def run(texts: list[str]) -> None:
        interpreter.set_tensor(source, model.prepare(texts))
        interpreter.invoke()
        model.finish(interpreter.get_tensor(target["index"]), scale, zero_point)

    todo = (batches() * 4)[:REQUESTS]
    for texts in todo[:20]:
        run(texts)
    began, cpu = time.perf_counter(), time.process_time()
    for texts in todo:
        run(texts)
    print(json.dumps({"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}))


# --- scheduling ---------------------------------------------------------------------------------------------------


def scheduling(rounds: int) -> Iterator[Figure]:
    """CPU time for one invocation: its lease with 8 workers of 16 TPUs each, and its way to a TPU and off it."""
    yield _cost("lease of an invocation, 128 TPUs", statistics.median(_lease_us() for _ in range(4 * rounds)))
    for waiting in (0, 1000):
        queue = f", {waiting:,} waiting" if waiting else ""
        taken = statistics.median(_dispatch_us(waiting) for _ in range(4 * rounds))
        yield _cost(f"scheduling an invoke: {TPUS} TPUs{queue}", taken)
    yield _cost("an invoke through a device's thread, less itself", _thread_us(4 * rounds))


def _cost(title: str, us: float) -> Figure:
    return Figure(title, f"{us:.1f} us", f"{SCHEDULE_LIMIT_US:.0f} us", f"{us / SCHEDULE_LIMIT_US:.2f}")


def _lease_us(count: int = 2000) -> float:
    table = InvokeLeases(limit=10_000)
    table.expect({"m": "embedding"})
    for number in range(8):
        table.worker(f"tpu-{number}", models=["m"], capacity=TPUS, tpu=True)
    for number in range(100):
        table.request("g", f"before-{number}", kind="embedding", invocations=8)
    began = time.process_time_ns()
    for number in range(count):
        table.request("g", f"r{number}", kind="embedding", invocations=8)
        table.settle("g", f"r{number}")
    return (time.process_time_ns() - began) / count / 1000


def _dispatch_us(waiting: int, count: int = 2000) -> float:
    table = Invocations({"m": 2 << 20, "n": 1 << 20})
    for number in range(TPUS):
        table.add(f"tpu-{number}", 0.0)
        while table.done(f"tpu-{number}", 0.0) is not None:
            pass
    busy: list[str] = []
    for number in range(waiting + TPUS // 2):
        work = Work("mn"[number % 2], f"account-{number % 50}", Priority(number % 3), number)
        if (name := table.submit(work, 0.0)) is not None:
            busy.append(name)
    began = time.process_time_ns()
    for number in range(count):
        name = table.submit(Work("mn"[number % 2], f"account-{number % 50}", Priority.NORMAL, number), 0.0)
        if name is not None:
            busy.append(name)
        if table.done(busy[0], 0.0) is None:
            busy.pop(0)
        else:
            busy.append(busy.pop(0))
    return (time.process_time_ns() - began) / count / 1000


def _thread_us(rounds: int, count: int = 1000) -> float:
    """CPU time of a request of one invocation, from `submit` to its answer, less what the model itself takes."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        loaded, _ = load([write_model(Path(folder))])
        engine = TensorEngine(loaded, lambda *_: None, on_tpus=False)
        engine.use_cpu(1)
        wait_for("it is open", lambda: engine.open_devices)
        answered = threading.Semaphore(0)
        message = Invoke(request_id="r", model="m", tensors=[bytes(64)])
        runner = on_cpu(loaded["m"])
        rows = loaded["m"].rows_of_tensors(message.tensors)
        taken = []
        for _ in range(rounds):
            began = time.process_time_ns()
            for _ in range(count):
                engine.submit(message, lambda _: answered.release())
            for _ in range(count):
                answered.acquire()
            between = time.process_time_ns()
            for _ in range(count):
                runner.run(rows, lambda: None)
            taken.append((2 * between - began - time.process_time_ns()) / count / 1000)
        return statistics.median(taken)


def tower(report: simulation.Report) -> Iterator[Figure]:
    """The simulated tower whose parts fail at random."""
    answered = sum(request.answers == 1 for request in report.requests)
    fairness = report.fairness_of_tpus()
    yield Figure(
        "simulated tower: answered exactly once",
        f"{answered:,}",
        f"{len(report.requests):,}",
        f"{answered / len(report.requests):.2f}",
    )
    yield Figure(
        "simulated tower: utilisation at 70 % load", f"{statistics.mean(report.utilisation().values()):.2f}"
    )
    yield Figure(
        "simulated tower: fairness of 128 TPUs (Jain)", f"{fairness:.3f}", "1.000", f"{fairness:.2f}"
    )


# --- hot-plug -----------------------------------------------------------------------------------------------------


def hotplug(rounds: int) -> Iterator[Figure]:
    """From udev's event to the worker that begins to open the TPU, in a whole appliance: its first one, and one more."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        stand_in = StandIn(Path(folder))
        stand_in.tell(*(Fake(f"usb-{port}") for port in PORTS.values()))
        before = dict(os.environ)
        try:
            for _ in range(rounds):
                with Testbed() as testbed:
                    os.environ.update(stand_in.environment)
                    os.environ.update(
                        {name: testbed.environment[name] for name in ("LD_PRELOAD", "UMOCKDEV_DIR")}
                    )
                    with RunningAppliance(model=add_text_models) as appliance:
                        for title, taken in asyncio.run(_hotplug(appliance, testbed)).items():
                            found.setdefault(title, []).append(taken)
                    os.environ.clear()
                    os.environ.update(before)
        finally:
            os.environ.clear()
            os.environ.update(before)
    for title, each in found.items():
        taken = statistics.median(each)
        yield Figure(title, f"{1000 * taken:,.0f} ms", "100 ms", f"{taken / 0.1:.2f}")


#: What is plugged in, one after the other, and what that shows.
PORTS = {
    "udev event to a worker that is started for it": "1-1.1",
    "udev event to a worker that runs": "1-1.2",
}


async def _hotplug(appliance: RunningAppliance, testbed: Testbed) -> dict[str, float]:
    path = Paths.under(appliance.state).control_socket
    events = await connect(str(path), FromSupervisor, name="bench")
    events.post(Subscribe(topics=[Topic.TPU]))
    found = {}
    for title, port in PORTS.items():
        order = testbed.usb(port, running=True)
        began = time.perf_counter()
        testbed.orders(order)
        async with asyncio.timeout(EVENT_TIMEOUT_S):
            event = await events.receive()
            while not (isinstance(event, TpuChanged) and event.tpu.id == f"usb-{port}" and event.tpu.worker):
                event = await events.receive()
        found[title] = time.perf_counter() - began
    await events.close()
    return found


# --- recovery -----------------------------------------------------------------------------------------------------


def recovery(rounds: int) -> Iterator[Figure]:
    """With the stand-in's TPUs: from a TPU in the table to its worker, and from trouble to the answer all the same."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        stand_in = StandIn(Path(folder))
        os.environ.update(stand_in.environment)
        logging.disable(logging.CRITICAL)
        try:
            found = asyncio.run(_recovery(stand_in, rounds))
        finally:
            logging.disable(logging.NOTSET)
    for title, limit_s in (
        ("TPU in the table to its worker", 0.1),
        ("unplugged in the middle: the answer came after", 1.0),
        ("worker killed: to the answer from elsewhere", 1.0),
        ("invoke stuck: from the kill to the answer", 1.0),
        ("invoke stuck: from the request to the answer", 0.0),
    ):
        taken = statistics.median(found[title])
        limit = f"{1000 * limit_s:,.0f} ms" if limit_s else ""
        yield Figure(title, f"{1000 * taken:,.0f} ms", limit, f"{taken / limit_s:.2f}" if limit_s else "")


async def _recovery(stand_in: StandIn, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}

    def note(title: str, since: float) -> None:
        found.setdefault(title, []).append(time.perf_counter() - since)

    good = [Fake(f"pci-{number}", ms=2) for number in range(4)]
    stand_in.tell(*good)
    async with running_tower() as tower:
        for _ in range(rounds):
            tower.table.plug(*good)
            await tower.until_open(4)
            await tower.embed()
            # one more TPU for a worker that runs
            new = Fake("pci-9")
            stand_in.tell(*good, new)
            tower.table.said.clear()
            began = time.perf_counter()
            tower.table.plug(new)
            await look_until("its worker has begun", lambda: ("opening", "pci-9") in tower.table.said)
            note("TPU in the table to its worker", began)
            await tower.until_open(5)
            # a TPU that goes while it works
            stand_in.tell(*good[1:], Fake("pci-0", "error"))
            began = time.perf_counter()
            await tower.embed()
            note("unplugged in the middle: the answer came after", began)
            stand_in.tell(*good)
            await _killed(tower, note)
            await _stuck(tower, stand_in, good, note)
            tower.table.unplug(*good, new)
            await look_until("none is left", lambda: not _tpu_workers(tower))
            stand_in.tell(*good)
    return found


async def _killed(tower: Tower, note: object) -> None:
    asked = [asyncio.create_task(tower.embed(TEXTS * 3)) for _ in range(3)]
    await asyncio.sleep(0.01)
    began = time.perf_counter()
    os.kill(tower.pid("tpu-1"), signal.SIGKILL)
    await asyncio.gather(*asked)
    note("worker killed: to the answer from elsewhere", began)  # type: ignore[operator]
    await look_until("it is back", lambda: len(tower.supervisor._tensors._open.get("tpu-1", ())) > 1)


async def _stuck(tower: Tower, stand_in: StandIn, good: list[Fake], note: object) -> None:
    stand_in.tell(*good[:-1], Fake(good[-1].id, "wedge"))
    pid = tower.pid("tpu-1")
    began = time.perf_counter()
    asked = [asyncio.create_task(tower.embed()) for _ in range(4)]
    await look_until("it was killed", lambda: not running(pid))
    killed = time.perf_counter()
    await asyncio.gather(*asked)
    note("invoke stuck: from the kill to the answer", killed)  # type: ignore[operator]
    note("invoke stuck: from the request to the answer", began)  # type: ignore[operator]


def _tpu_workers(tower: Tower) -> list[str]:
    return [name for name in tower.supervisor._keepers if name.startswith("tpu")]


def measure(rounds: int) -> None:
    """Prints each figure beside the limit's or the peer's, and draws the simulated tower."""
    report = simulation.Tower(seconds=10, load=0.7, seed=1).run()
    for title, ours, limit, ratio in chain(figures(rounds), tower(report)):
        row(title, ours, limit, float(ratio) if ratio else None)
    print(simulation.describe(report), flush=True)


if __name__ == "__main__":
    alone(sys.argv[1])
