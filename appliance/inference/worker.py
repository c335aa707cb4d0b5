"""A worker process: one engine, one UNIX socket, any number of gateways.

The event loop moves frames; each reply runs in a thread of its own inside the engine and hands its text over through `Outbox`,
which wakes the loop once however many threads have something to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setproctitle import setproctitle

from appliance.process import resident_bytes
from appliance.telemetry.log import set_up_logging
from appliance.wire.errors import FrameError
from appliance.wire.frames import Connection, encode
from appliance.wire.messages import (
    Cancel,
    Failure,
    Finished,
    Generate,
    Hello,
    Message,
    Progress,
    Tokens,
    WorkerFailed,
    WorkerPulse,
    WorkerReady,
    WorkerSpec,
    failure,
)

from . import models
from .errors import InferenceError
from .gguf import read_shapes
from .listener import hear, listen, own_folder
from .lora import ADAPTER, check_fits
from .text import TextEngine, engine_build

log = logging.getLogger(__name__)

#: A gateway that lets this much pile up does not read any more: its streams are ended.
BACKLOG_LIMIT_BYTES = 8 * 1024 * 1024

#: How often the supervisor hears that the engine makes progress.
PULSE_S = 2.0
#: A client hears of a long prompt's progress after so long, and then every so often.
PROGRESS_AFTER_S = 0.5
PROGRESS_EVERY_S = 0.25

#: How long a stopping worker lets its streams run on.
DRAIN_S = 5.0


class _Stream:
    """One reply under way."""

    def __init__(self, connection: Connection[Message], request: Generate) -> None:
        self.connection = connection
        self.request = request
        self.cancelled = False
        self._gathered: list[str] = []
        self._say_at = 0.0
        self.progress_at = time.monotonic() + PROGRESS_AFTER_S

    def gather(self, text: str) -> str:
        """What is to be sent now that there is more text: with what was held back, or nothing yet."""
        pause_s = self.request.pause_s
        if not pause_s:
            return text
        self._gathered.append(text)
        now = time.monotonic()
        if now < self._say_at:
            return ""
        self._say_at = now + pause_s
        return self.rest()

    def rest(self) -> str:
        """What was held back, if anything."""
        text = "".join(self._gathered)
        self._gathered.clear()
        return text


class Outbox:
    """Text from the engine's threads, handed to the loop in one piece a wake-up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: deque[tuple[_Stream, str | Message]] = deque()
        self._awake = False

    def put(self, stream: _Stream, item: str | Message) -> None:
        """From any thread: text, progress before there is any, or the message that ends the stream."""
        self._queue.append((stream, item))
        if not self._awake:
            # Two threads may both get here; the second wake-up finds nothing and costs a microsecond.
            self._awake = True
            self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        self._awake = False
        texts: dict[Connection[Message], dict[str, list[str]]] = {}
        ends: list[tuple[Connection[Message], Message]] = []
        while self._queue:
            stream, item = self._queue.popleft()
            if isinstance(item, str):
                texts.setdefault(stream.connection, {}).setdefault(stream.request.request_id, []).append(item)
            elif isinstance(item, Progress):
                stream.connection.post(item)
            else:
                ends.append((stream.connection, item))
        for connection, items in texts.items():
            connection.post(Tokens(items=[(key, "".join(parts)) for key, parts in items.items()]))
            if connection.backlog_bytes > BACKLOG_LIMIT_BYTES:
                log.warning("a gateway does not read any more: ending its streams")
                connection.abort()
        # A stream's end was queued after its text, and all text of this round has been posted.
        for connection, message in ends:
            connection.post(message)


class Worker:
    """Serves one engine to the gateways."""

    def __init__(self, spec: WorkerSpec, engine: TextEngine) -> None:
        self._spec, self._engine = spec, engine
        # Cancelled replies hold their thread for up to one engine step: one spare a slot.
        self._threads = ThreadPoolExecutor(2 * spec.slots, thread_name_prefix="reply")
        self._streams: set[_Stream] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stop = asyncio.Event()
        self._outbox = Outbox(asyncio.get_running_loop())

    async def pulse(self, pipe: int) -> None:
        """Tells the supervisor what the engine does, for as long as it wants to hear it."""
        os.set_blocking(pipe, False)
        while True:
            report = WorkerPulse(
                steps=self._engine.steps,
                step_s=max(self._engine.step_s, self._engine.pace_s),
                streams=len(self._streams),
                rss_bytes=resident_bytes(os.getpid()),
            )
            # A supervisor that is stopped hears the next one; one that is gone, or listens no more, is about to end us.
            with contextlib.suppress(BlockingIOError, ConnectionError):
                os.write(pipe, encode(report))
            await asyncio.sleep(PULSE_S)

    async def run(self, listener: socket.socket) -> None:
        """Serves until `stop`, then lets what runs end, for at most DRAIN_S."""
        server = await asyncio.start_unix_server(self._connected, sock=listener)
        async with server:
            await self._stop.wait()
            server.close()
            try:
                async with asyncio.timeout(DRAIN_S):
                    await self._idle.wait()
            except TimeoutError:
                log.warning("%d replies did not end in %.0f s", len(self._streams), DRAIN_S)

    def stop(self) -> None:
        """Takes no more connections; `run` returns when all is done."""
        self._stop.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine: dict[str, _Stream] = {}

        def handle(connection: Connection[Message], message: Message) -> None:
            self._handle(connection, message, mine)

        def left(_: Connection[Message]) -> None:
            for stream in mine.values():
                stream.cancelled = True

        await hear(self._spec.name, reader, writer, handle, left)

    def _handle(self, connection: Connection[Message], message: Message, mine: dict[str, _Stream]) -> None:
        match message:
            case Generate(request_id=request_id):
                if request_id in mine:
                    connection.post(failure("duplicate_request", "this id is in use", request_id))
                    return
                if len(self._streams) >= 2 * self._spec.slots:
                    # Leases keep gateways below the slots; what comes beyond would wait in the engine, past cancelling.
                    connection.post(failure("too_many", "this worker has no place left", request_id))
                    return
                stream = mine[request_id] = _Stream(connection, message)
                self._streams.add(stream)
                self._idle.clear()
                future = asyncio.get_running_loop().run_in_executor(self._threads, self._generate, stream)
                future.add_done_callback(lambda future: self._ended(future, stream, mine))
            case Cancel(request_id=request_id):
                if request_id in mine:
                    mine[request_id].cancelled = True
            case Hello():
                raise FrameError("a second Hello")
            case _:
                raise FrameError(f"{type(message).__name__} is nothing that a worker takes")

    def _generate(self, stream: _Stream) -> None:
        """In a thread: one reply from its first token to its end."""
        request_id = stream.request.request_id
        end: Finished | Failure

        def progress(done: int, total: int) -> None:
            now = time.monotonic()
            if now >= stream.progress_at:
                stream.progress_at = now + PROGRESS_EVERY_S
                self._outbox.put(stream, Progress(request_id=request_id, done=done, total=total))

        def say(text: str) -> None:
            if text := stream.gather(text):
                self._outbox.put(stream, text)

        try:
            end = self._engine.generate(
                stream.request,
                say,
                lambda: stream.cancelled,
                progress,
            )
        except InferenceError as error:
            end = failure(error.code, error, request_id)
        if text := stream.rest():
            self._outbox.put(stream, text)
        self._outbox.put(stream, end)

    def _ended(self, future: asyncio.Future[None], stream: _Stream, mine: dict[str, _Stream]) -> None:
        mine.pop(stream.request.request_id, None)
        self._streams.discard(stream)
        if (error := future.exception()) is not None:
            log.error("a reply failed", exc_info=error)
            text = f"internal error: {type(error).__name__}"
            stream.connection.post(failure(InferenceError.code, text, stream.request.request_id))
        if not self._streams:
            self._idle.set()


def main(spec: WorkerSpec, pipe: int) -> int:
    """A forked child's whole life; returns its exit status."""
    os.setpgid(0, 0)
    setproctitle(f"coral-reef: worker {spec.name}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_up_logging(f"worker {spec.name}")
    began = time.monotonic()
    try:
        engine, listener, refused = _load(spec)
    except InferenceError as error:
        os.write(pipe, encode(WorkerFailed(code=error.code, message=str(error)[:4096])))
        return 1
    ready = WorkerReady(
        context_tokens=engine.context_tokens,
        load_s=time.monotonic() - began,
        engine=engine_build(),
        adapters=list(engine.adapters),
        refused=refused,
        batch_tokens=engine.batch_tokens,
        step_s=engine.step_s,
    )
    log.info("reads %d tokens a step, in at most %.0f ms", engine.batch_tokens, 1000 * engine.step_s)

    async def serve() -> None:
        worker = Worker(spec, engine)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
        os.write(pipe, encode(ready))
        pulse = asyncio.create_task(worker.pulse(pipe), name="pulse")
        await worker.run(listener)
        pulse.cancel()

    import uvloop

    uvloop.run(serve())
    return 0


def _load(spec: WorkerSpec) -> tuple[TextEngine, socket.socket, dict[str, str]]:
    """The engine with its verified model, a listening socket, and the adapters that were left out, each with the reason."""
    path = Path(spec.model_path)
    entry = models.Entry(
        name=spec.model,
        kind=spec.kind,
        file=path.name,
        sha256=spec.model_sha256,
        size_bytes=spec.model_size_bytes,
    )
    models.verify(models.Model(entry=entry, path=path, shipped=False))
    adapters, refused = _adapters(spec)
    engine = TextEngine(
        path,
        own_folder(spec),
        slots=spec.slots,
        threads=spec.threads,
        context_tokens=spec.context_tokens,
        batch_tokens=spec.batch_tokens,
        cache_mib=spec.cache_mib,
        adapters=adapters,
    )
    return engine, listen(spec), refused


def _adapters(spec: WorkerSpec) -> tuple[dict[str, Path], dict[str, str]]:
    """Those that are what the manifest says and fit the model, and why the others are not: they must not keep it from loading."""
    usable: dict[str, Path] = {}
    refused: dict[str, str] = {}
    for adapter in spec.adapters:
        path = Path(adapter.path)
        entry = models.Entry(
            name=adapter.name,
            kind=ADAPTER,
            file=path.name,
            sha256=adapter.sha256,
            size_bytes=adapter.size_bytes,
        )
        try:
            models.verify(models.Model(entry=entry, path=path, shipped=False))
            check_fits(read_shapes(path), read_shapes(Path(spec.model_path)))
        except (InferenceError, OSError) as error:
            refused[adapter.name] = str(error)[:1024]
            log.error("without the adapter %s: %s", adapter.name, error)
        else:
            usable[adapter.name] = path
    return usable, refused
