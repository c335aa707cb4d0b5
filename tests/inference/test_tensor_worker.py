"""The process of a TPU worker, without the fork: its socket for gateways and its pipe to the supervisor."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.inference.tensor_models import load
from appliance.inference.tensor_worker import TensorWorker
from appliance.wire.errors import Disconnected
from appliance.wire.frames import Connection, Decoder, connect, encode
from appliance.wire.messages import (
    INVOCATIONS_LIMIT,
    Cancel,
    Failure,
    FromWorker,
    FromWorkerPipe,
    Generate,
    Hello,
    Invoke,
    Invoked,
    Message,
    Sampling,
    TpuReport,
    TpuSet,
    TpuStep,
    Turn,
    WorkerPulse,
    WorkerSpec,
)
from tests.edgetpu import models
from tests.edgetpu.stand_in import Fake, StandIn, write_model
from tests.waiting import look_until

INPUT = bytes(range(64))


@dataclass
class Served:
    """A worker that serves: `pipe` is the supervisor's end."""

    worker: TensorWorker
    spec: WorkerSpec
    pipe: socket.socket
    serving: asyncio.Task[None]
    connection: Connection[Any]

    async def ask(self, message: Message) -> Any:
        self.connection.post(message)
        async with asyncio.timeout(30):
            return await self.connection.receive()

    def heard(self) -> list[Message]:
        """What the supervisor was told since the last look."""
        decoder: Decoder[Message] = Decoder(FromWorkerPipe)
        try:
            return decoder.feed(self.pipe.recv(1 << 20))
        except BlockingIOError:
            return []


@asynccontextmanager
async def serving(kind: str, *, outputs: int = 16) -> AsyncIterator[Served]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    model = write_model(folder, content=models.fully_connected((64, 32, outputs)))
    spec = WorkerSpec(
        name=f"{kind}-1",
        kind=kind,
        model="m",
        model_path="",
        model_sha256="",
        model_size_bytes=0,
        socket=str(folder / "sock"),
        folder=str(folder / "own"),
        slots=1,
        threads=1,
        models=[model],
    )
    loaded, _ = load(spec.models)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(spec.socket)
    listener.listen(8)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    worker = TensorWorker(spec, loaded, theirs.fileno())
    task = asyncio.create_task(worker.run(listener))
    connection = await connect(spec.socket, FromWorker, name="gateway")
    found = Served(worker, spec, ours, task, connection)
    if kind == "cpu":
        await look_until("it is open", lambda: worker._engine.open_devices)
    yield found
    await connection.close()
    worker.stop()
    await task
    asyncio.get_running_loop().remove_reader(theirs.fileno())
    ours.close()
    theirs.close()
    shutil.rmtree(folder)


def invoke(request_id: str = "r", count: int = 1) -> Invoke:
    return Invoke(request_id=request_id, model="m", tensors=[INPUT] * count)


async def test_an_answer() -> None:
    async with serving("cpu") as served:
        answer = await served.ask(invoke(count=3))
        assert isinstance(answer, Invoked)
        assert len(answer.outputs) == 3
        assert len({*answer.outputs}) == 1
        assert (answer.tokens, answer.ran_on) == (0, ["cpu"])


async def test_an_id_that_is_in_use(stand_in: StandIn) -> None:
    fake = Fake("pci-0", ms=20)
    stand_in.tell(fake)
    async with serving("tpu") as served:
        served.pipe.send(encode(TpuSet(tpus=[fake.share()])))
        await look_until("it is open", lambda: served.worker._engine.open_devices)
        served.connection.post(invoke("same", 20))
        refused = await served.ask(invoke("same"))
        assert isinstance(refused, Failure)
        assert refused.code == "duplicate_request"
        assert isinstance(await served.connection.receive(), Invoked)


async def test_outputs_longer_than_a_frame() -> None:
    async with serving("cpu", outputs=16_384) as served:
        refused = await served.ask(invoke(count=INVOCATIONS_LIMIT))
        assert isinstance(refused, Failure)
        assert refused.code == "too_large"
        assert refused.message.endswith("send fewer inputs")
        assert isinstance(await served.ask(invoke()), Invoked)


@pytest.mark.parametrize(
    "message",
    [
        Hello(name="again"),
        Cancel(request_id="r"),
        Generate(request_id="r", turns=[Turn("user", "hello")], sampling=Sampling()),
    ],
    ids=lambda message: type(message).__name__,
)
async def test_what_is_no_message_for_it(message: Message) -> None:
    async with serving("cpu") as served:
        assert isinstance(await served.ask(message), Failure)
        with pytest.raises(Disconnected):
            await served.connection.receive()


async def test_what_the_supervisor_hears(stand_in: StandIn) -> None:
    fake = Fake("pci-0")
    stand_in.tell(fake)
    async with serving("tpu") as served:
        told: list[Message] = []

        def told_that(step: TpuStep) -> bool:
            told.extend(served.heard())
            return any(isinstance(each, TpuReport) and each.step is step for each in told)

        served.pipe.send(encode(TpuSet(tpus=[fake.share()])))
        await look_until("it is open", lambda: told_that(TpuStep.OPEN))
        served.pipe.send(encode(TpuSet(tpus=[])))
        await look_until("it is closed", lambda: told_that(TpuStep.CLOSED))
        told.clear()
        served.pipe.send(encode(TpuSet(tpus=[fake.share()])))
        await look_until("it is open again", lambda: told_that(TpuStep.OPEN))
        stand_in.tell(Fake("pci-0", "wedge"))
        served.connection.post(invoke())

        def stuck() -> bool:
            return any(isinstance(each, WorkerPulse) and each.stuck_s > 0.5 for each in served.heard())

        await look_until("it is stuck", stuck)
        served.pipe.send(encode(TpuSet(tpus=[])))
        answer = await served.connection.receive()
        assert isinstance(answer, Failure)
        assert answer.code == "no_device"


async def test_a_stop_waits_for_what_runs(stand_in: StandIn) -> None:
    fake = Fake("pci-0", ms=20)
    stand_in.tell(fake)
    async with serving("tpu") as served:
        served.pipe.send(encode(TpuSet(tpus=[fake.share()])))
        await look_until("it is open", lambda: served.worker._engine.open_devices)
        served.connection.post(invoke("last", 20))
        await look_until("it runs", lambda: served.worker._requests)
        served.worker.stop()
        answer = await served.connection.receive()
        assert isinstance(answer, Invoked)


async def test_who_leaves_is_forgotten(stand_in: StandIn) -> None:
    fake = Fake("pci-0", ms=20)
    stand_in.tell(fake)
    async with serving("tpu") as served:
        served.pipe.send(encode(TpuSet(tpus=[fake.share()])))
        await look_until("it is open", lambda: served.worker._engine.open_devices)
        other = await connect(served.spec.socket, FromWorker, name="gateway")
        other.post(invoke("left", 100))
        await look_until("it runs", lambda: served.worker._requests)
        other.abort()
        await look_until("it is forgotten", lambda: not served.worker._requests)
        assert isinstance(await served.ask(invoke()), Invoked)


@pytest.mark.parametrize("heard", [True, False], ids=["heard all", "heard nothing"])
async def test_the_supervisors_end_of_the_pipe_is_gone(heard: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with serving("cpu") as served:
        await look_until("it speaks", lambda: select.select([served.pipe], [], [], 0)[0])
        if heard:
            served.heard()
        served.pipe.close()  # with words in it that nobody read, the other end's next read fails
        assert isinstance(await served.ask(invoke()), Invoked)
        served.worker._report("pci-0", TpuStep.OPEN)
        assert isinstance(await served.ask(invoke()), Invoked)
    assert "Exception" not in caplog.text


def test_a_tpu_that_is_closed_after_the_loop_has_ended(stand_in: StandIn) -> None:
    async def serve() -> TensorWorker:
        stand_in.tell(Fake("pci-0"))
        async with serving("tpu") as served:
            served.pipe.send(encode(TpuSet(tpus=[Fake("pci-0").share()])))
            await look_until("it is open", lambda: served.worker._engine.open_devices)
            return served.worker

    worker = asyncio.run(serve())
    device = worker._engine._devices["pci-0"]
    worker._engine.use_tpus([])
    device.join(30)  # what its thread raises is an error of this test


def test_a_pipe_that_nobody_reads_holds_up_nobody() -> None:
    """A supervisor that is stopped: reports are lost, the worker goes on."""

    async def tell() -> None:
        async with serving("cpu") as served:
            for _ in range(20_000):
                served.worker._tell(WorkerPulse(steps=1, step_s=0, streams=0))
            assert isinstance(await served.ask(invoke()), Invoked)
            assert os.get_blocking(served.worker._pipe) is False

    asyncio.run(tell())
