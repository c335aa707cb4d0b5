"""A worker process that runs small models, on TPUs (kind `tpu`) or on the CPU (kind `cpu`), for any number of gateways.

The event loop moves frames; texts become tensors and models run in the devices' threads. Through its pipe the supervisor says
which TPUs it shall have open, and hears what became of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import signal
import socket
import time
from collections.abc import Callable

from setproctitle import setproctitle

from appliance.process import resident_bytes
from appliance.telemetry.log import set_up_logging
from appliance.wire.errors import FrameError
from appliance.wire.frames import Connection, Decoder, encode
from appliance.wire.messages import (
    EngineBuild,
    Failure,
    Hello,
    Invoke,
    Invoked,
    Message,
    ToWorkerPipe,
    TpuReport,
    TpuSet,
    TpuStep,
    WorkerFailed,
    WorkerPulse,
    WorkerReady,
    WorkerSpec,
    failure,
)

from .listener import hear, listen, own_folder
from .tensor_engine import Request, TensorEngine
from .tensor_models import Loaded, load, start_quietly

log = logging.getLogger(__name__)

#: How often the supervisor hears whether the devices make progress: it ends a worker whose invoke does not return.
PULSE_S = 0.5

#: How long a stopping worker lets its requests run on.
DRAIN_S = 5.0

#: A gateway that lets this much pile up does not read any more.
BACKLOG_LIMIT_BYTES = 8 * 1024 * 1024


class TensorWorker:
    """Serves an engine to the gateways, and its devices to the supervisor."""

    def __init__(self, spec: WorkerSpec, models: dict[str, Loaded], pipe: int) -> None:
        self._spec, self._pipe = spec, pipe
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._requests: set[tuple[Connection[Message], str]] = set()
        self._engine = TensorEngine(models, self._report, on_tpus=spec.kind == "tpu")

    async def run(self, listener: socket.socket) -> None:
        """Serves until `stop`, then lets what runs end, for at most DRAIN_S."""
        decoder: Decoder[TpuSet] = Decoder(ToWorkerPipe)
        os.set_blocking(self._pipe, False)
        self._loop.add_reader(self._pipe, self._told, decoder)
        if self._spec.kind == "cpu":
            self._engine.use_cpu(self._spec.threads)
        pulse = asyncio.create_task(self._pulse(), name="pulse")
        server = await asyncio.start_unix_server(self._connected, sock=listener)
        async with server:
            await self._stop.wait()
            server.close()
            try:
                async with asyncio.timeout(DRAIN_S):
                    await self._idle.wait()
            except TimeoutError:
                log.warning("%d requests did not end in %.0f s", len(self._requests), DRAIN_S)
        pulse.cancel()

    def stop(self) -> None:
        """Takes no more connections; `run` returns when all is done."""
        self._stop.set()

    # --- the supervisor -------------------------------------------------------------------------------------------

    def _told(self, decoder: Decoder[TpuSet]) -> None:
        """The supervisor says which TPUs are ours."""
        try:
            data = os.read(self._pipe, 65_536)
        except BlockingIOError:
            return
        except ConnectionError:  # it closed its end without having heard everything
            data = b""
        if not data:  # it is gone, and the kernel is about to end us
            self._loop.remove_reader(self._pipe)
            return
        for message in decoder.feed(data):
            self._engine.use_tpus(message.tpus)

    def _report(self, tpu: str, step: TpuStep, detail: str = "") -> None:
        """From any thread: what became of a TPU."""
        self._soon(self._tell, TpuReport(id=tpu, step=step, detail=detail))

    def _soon(self, call: Callable[..., object], *arguments: object) -> None:
        """From any thread, in the loop; a device may end its work after that has ended, just before the process does."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *arguments)

    def _tell(self, message: Message) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):  # a supervisor that is stopped or gone
            os.write(self._pipe, encode(message))

    async def _pulse(self) -> None:
        while True:
            stuck, stuck_s = self._engine.stuck()
            self._tell(
                WorkerPulse(
                    steps=self._engine.steps,
                    step_s=0.0,
                    streams=len(self._requests),
                    rss_bytes=resident_bytes(os.getpid()),
                    stuck=stuck,
                    stuck_s=stuck_s,
                )
            )
            await asyncio.sleep(PULSE_S)

    # --- the gateways ---------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine: dict[str, Request] = {}

        def handle(connection: Connection[Message], message: Message) -> None:
            self._handle(connection, message, mine)

        def left(connection: Connection[Message]) -> None:
            self._engine.withdraw(mine.values())
            for request_id in list(mine):
                self._ended(connection, request_id, mine)

        await hear(self._spec.name, reader, writer, handle, left)

    def _handle(self, connection: Connection[Message], message: Message, mine: dict[str, Request]) -> None:
        match message:
            case Invoke(request_id=request_id):
                if (connection, request_id) in self._requests:
                    connection.post(failure("duplicate_request", "this id is in use", request_id))
                    return
                self._requests.add((connection, request_id))
                self._idle.clear()

                def answer(end: Invoked | Failure) -> None:
                    self._soon(self._answer, connection, end, mine)

                request = self._engine.submit(message, answer)
                if request is not None:
                    mine[request_id] = request
            case Hello():
                raise FrameError("a second Hello")
            case _:
                raise FrameError(f"{type(message).__name__} is nothing that this worker takes")

    def _answer(
        self, connection: Connection[Message], end: Invoked | Failure, mine: dict[str, Request]
    ) -> None:
        try:
            connection.post(end)
        except FrameError as error:  # outputs that are longer than a frame
            connection.post(failure("too_large", f"{error}: send fewer inputs", end.request_id))
        self._ended(connection, end.request_id, mine)
        if connection.backlog_bytes > BACKLOG_LIMIT_BYTES:
            log.warning("a gateway does not read any more: ending its connection")
            connection.abort()

    def _ended(self, connection: Connection[Message], request_id: str, mine: dict[str, Request]) -> None:
        mine.pop(request_id, None)
        self._requests.discard((connection, request_id))
        if not self._requests:
            self._idle.set()


def main(spec: WorkerSpec, pipe: int) -> int:
    """A forked child's whole life; returns its exit status."""
    os.setpgid(0, 0)
    setproctitle(f"coral-reef: worker {spec.name}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_up_logging(f"worker {spec.name}")
    began = time.monotonic()
    models, refused = load(spec.models)
    if not models:
        why = "; ".join(refused.values()) or "there is no model for it"
        os.write(pipe, encode(WorkerFailed(code="model_refused", message=why[:4096])))
        return 1
    start_quietly(next(iter(models.values())))
    own_folder(spec)
    listener = listen(spec)
    build = "libedgetpu" if spec.kind == "tpu" else "xnnpack"
    engine = EngineBuild(version=importlib.metadata.version("ai-edge-litert"), build=build)
    ready = WorkerReady(context_tokens=0, load_s=time.monotonic() - began, engine=engine, refused=refused)

    async def serve() -> None:
        worker = TensorWorker(spec, models, pipe)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
        os.write(pipe, encode(ready))
        await worker.run(listener)

    import uvloop

    uvloop.run(serve())
    return 0
