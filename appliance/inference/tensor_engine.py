"""Runs models on the devices of one worker: TPUs, or threads for the CPU. One thread and one interpreter a model for each device;
LiteRT lets go of the interpreter's lock while a model runs, so that devices run at the same time.

Which device runs what is `scheduling.invocations`, under one lock. A device that fails is closed and its work given to
another; when none is left, the request fails with NoDevice and whoever sent it asks another worker.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from appliance.scheduling.invocations import TPU_MEMORY_BYTES, TRIES_LIMIT, Invocations, Work, pieces
from appliance.wire.messages import Invoke, Invoked, TpuRole, TpuShare, TpuStep, failure

from . import edgetpu
from .edgetpu import Found, Runtime
from .errors import BadInput, EdgeTpuFailed, EngineFailed, InferenceError, LibraryUnusable, NoDevice
from .pipeline import Pipeline, StageFailed
from .tensor_models import Loaded, Rows, Runner, on_cpu, on_tpu

log = logging.getLogger(__name__)

#: The kinds of models that a role is for. The language model itself runs on the host: it does not fit a TPU.
ROLES: Mapping[TpuRole, frozenset[str]] = {
    TpuRole.LANGUAGE: frozenset({"emotion"}),
    TpuRole.PERCEPTION: frozenset({"emotion"}),
    TpuRole.MEMORY: frozenset({"embedding"}),
    TpuRole.RESERVE: frozenset(),
}

#: A worker that has this many invocations waiting is not keeping up: what comes beyond is refused.
WAITING_LIMIT = 16_384

#: Between two looks at a thread that should end.
BEFORE_S = 0.05

#: The memory for models of a thread that uses the CPU's: no bound, the worker's is.
CPU_MEMORY_BYTES = 1 << 40

Answer = Callable[[Invoked | Any], None]


class Report(Protocol):
    """Hears what becomes of a TPU, from any thread."""

    def __call__(self, tpu: str, step: TpuStep, detail: str = "") -> None: ...


class Request:
    """One Invoke under way. Its outputs are filled piece by piece, each once."""

    def __init__(self, message: Invoke, loaded: Loaded, answer: Answer) -> None:
        self.message, self.loaded, self._answer = message, loaded, answer
        self.count = len(message.texts) or len(message.tensors)
        self.outputs: list[bytes] = [b""] * self.count
        self.left = self.count
        self.tokens = 0
        self.ran_on: set[str] = set()
        self.over = False

    def rows(self, part: range) -> Rows:
        """The tensors of a piece."""
        if self.message.texts:
            return self.loaded.rows_of_texts(self.message.texts[part.start : part.stop])
        return self.loaded.rows_of_tensors(self.message.tensors[part.start : part.stop])

    def filled(self, part: range, outputs: Sequence[bytes], tokens: int, devices: Sequence[str]) -> None:
        """A piece is done; with the last one the request is. Under the engine's lock."""
        if self.over:
            return
        self.outputs[part.start : part.stop] = outputs
        self.left -= len(part)
        self.tokens += tokens
        self.ran_on.update(devices)
        if not self.left:
            self.over = True
            self._answer(
                Invoked(
                    request_id=self.message.request_id,
                    outputs=self.outputs,
                    tokens=self.tokens,
                    ran_on=sorted(self.ran_on),
                )
            )

    def fail(self, error: InferenceError) -> None:
        """It ends without an answer. Under the engine's lock."""
        if not self.over:
            self.over = True
            self._answer(failure(error.code, error, self.message.request_id))


class Piece:
    """Some invocations of a request: the payload of a `Work`."""

    def __init__(self, request: Request, part: range) -> None:
        self.request, self.part = request, part
        self._rows: Rows | None = None

    def run(self, runner: Runner | Pipeline, before_each: Callable[[], None]) -> tuple[list[bytes], int]:
        """The outputs and the words of its texts. What was made of the texts is kept for another device."""
        request, part = self.request, self.part
        if self._rows is None:
            self._rows = request.rows(part)
        output = runner.run(self._rows, before_each)
        if not request.message.texts:
            return [row.tobytes() for row in output], 0
        tokens = sum(len(text.split()) for text in request.message.texts[part.start : part.stop])
        return request.loaded.finished(output, runner.scale, runner.zero_point), tokens


class Device(threading.Thread, ABC):
    """A thread that runs models on one device."""

    #: What a failed invoke says of it.
    failure: type[InferenceError] = EdgeTpuFailed
    share = 1.0
    prefers: frozenset[str] = frozenset()
    reserve = False
    memory_bytes = CPU_MEMORY_BYTES

    def __init__(self, engine: TensorEngine, name: str, pool: Invocations) -> None:
        super().__init__(name=name, daemon=True)  # one that is wedged must not keep the process
        self.engine, self.pool = engine, pool
        #: What answers say they ran on.
        self.labels = [name]
        self.closed = False
        self.wake = threading.Condition(engine.lock)
        self.work: Work | None = None
        #: When the invoke began that has not returned; 0 when none runs.
        self.invoking_since = 0.0
        self._runners: dict[str, Runner | Pipeline] = {}

    def open(self) -> None:
        """Makes the device ready. InferenceError when it cannot be."""

    @abstractmethod
    def make(self, loaded: Loaded) -> Runner | Pipeline:
        """An interpreter of the model on it."""

    def release(self) -> None:
        """Lets go of what it has of the device, as its thread ends."""
        self._runners.clear()

    def failed(self, error: Exception) -> None:
        """It is of no more use."""

    def left(self) -> None:
        """Nobody wants it any more, and it is let go of."""

    def stuck(self) -> tuple[float, str]:
        """Since when an invoke has not returned, and on which TPU; 0 when none runs."""
        return self.invoking_since, self.name

    def run(self) -> None:
        trouble = self._opened()
        if trouble is None and self.engine.joined(self):
            trouble = self._worked()
        if trouble is not None:
            self.engine.lost(self, trouble)
        self.release()
        if trouble is not None:
            self.failed(trouble)
        else:
            self.left()

    def _worked(self) -> EdgeTpuFailed | None:
        """Works until it is closed, or of no more use."""
        while (work := self._next()) is not None:
            done = self._performed(work)
            if isinstance(done, EdgeTpuFailed):
                return done
            self.engine.finished(self, work, done)
        return None

    def _opened(self) -> InferenceError | None:
        """Opens it; returns why it could not be."""
        try:
            self.open()
        except InferenceError as error:
            return error
        except Exception as error:
            log.exception("%s could not be opened", self.name)
            return EdgeTpuFailed(f"{type(error).__name__}: {error}")
        return None

    def _performed(self, work: Work) -> tuple[list[bytes], int] | InferenceError | None:
        """What came of it; EdgeTpuFailed when the device is of no more use, any other error when the request is."""
        try:
            return self._perform(work)
        except InferenceError as error:
            return error
        except Exception as error:
            log.exception("%s: %s failed", self.name, work.model)
            return EngineFailed(f"internal error: {type(error).__name__}")

    def _next(self) -> Work | None:
        """Waits for work; None when the device is closed."""
        with self.wake:
            while not self.closed:
                if self.work is not None:
                    work, self.work = self.work, None
                    return work
                self.wake.wait(self.engine.rest_s(self))
                if self.work is None and not self.closed:
                    self.work = self.pool.look(self.name, time.monotonic())
        return None

    def _perform(self, work: Work) -> tuple[list[bytes], int] | None:
        """EdgeTpuFailed when a TPU does not do it, EngineFailed when the CPU does not, BadInput when nobody can."""
        loaded = self.engine.models[work.model]
        try:
            runner = self._runner(loaded)
            if work.payload is None:
                runner.run(np.zeros((1, loaded.input_bytes), np.int8), self._invoking)
                return None
            piece: Piece = work.payload
            return piece.run(runner, self._invoking)
        except RuntimeError as error:
            raise self.failure(str(error)[:500]) from error
        finally:
            self.invoking_since = 0.0

    def _runner(self, loaded: Loaded) -> Runner | Pipeline:
        name = loaded.model.name
        runner = self._runners.get(name)
        if runner is None:
            self._make_room(name)
            runner = self._runners[name] = self.make(loaded)
        return runner

    def _invoking(self) -> None:
        self.invoking_since = time.monotonic()
        self.engine.steps += 1

    def _make_room(self, model: str) -> None:
        """Lets go of interpreters whose models are not in the device's memory any more."""
        with self.engine.lock:
            device = self.pool.devices.get(self.name)
            held = set(device.holds) if device else set()
        for name in [each for each in self._runners if each not in held and each != model]:
            del self._runners[name]


class CpuDevice(Device):
    """A thread that runs the twins. It goes on whatever happens: there is no other."""

    failure = EngineFailed

    def __init__(self, engine: TensorEngine, name: str) -> None:
        super().__init__(engine, name, engine.invocations)
        self.labels = ["cpu"]

    def make(self, loaded: Loaded) -> Runner:
        return on_cpu(loaded)


class TpuDevice(Device):
    """An Edge TPU."""

    def __init__(
        self, engine: TensorEngine, tpu: TpuShare, report: Report, before: Device | None = None
    ) -> None:
        """`before` is the thread that had the TPU last."""
        super().__init__(engine, tpu.id, engine.invocations)
        self._report, self._before = report, before
        self.give(tpu)
        self.memory_bytes = TPU_MEMORY_BYTES
        self.runtime: Runtime | None = None
        self.found: Found | None = None
        #: As long as one interpreter is there, the library keeps the TPU open: to open it again would reset its port.
        self._first: Runner | None = None

    def give(self, tpu: TpuShare) -> None:
        """What of its time it may use, and what for. Under the engine's lock."""
        self._tpu, self.share = tpu, tpu.share
        kinds = ROLES[tpu.role]
        models = (each.model for each in self.engine.models.values())
        self.prefers = frozenset(model.name for model in models if model.kind in kinds)
        self.reserve = tpu.role is TpuRole.RESERVE
        if self.name in self.pool.devices:
            self.pool.set_share(self.name, self.share)
            self.pool.set_role(self.name, prefers=self.prefers, reserve=self.reserve)
            self.wake.notify()

    def open(self) -> None:
        """Finds it in the library's listing: opening one that is not there blocks for 25 s. EdgeTpuGone, LibraryUnusable."""
        self._wait_for_the_one_before()
        self._report(self.name, TpuStep.OPENING)
        tpu, probed = self._tpu, self.engine.probed
        self.runtime = self.engine.runtime(tpu)
        if not probed:
            # The probe has opened one of them, and the others have waited for that: their time begins only now.
            self._report(self.name, TpuStep.OPENING)
        self.found = edgetpu.look(self.runtime, tpu.bus, tpu.node, tpu.id)
        # The one that it will load first, if there is one that was not cut.
        known = {name: each.model for name, each in self.engine.models.items()}
        model = min(known, key=lambda name: (not known[name].compiled, name not in self.prefers, name))
        made = known[model]
        self._first = self.interpreter(made.compiled or made.segments[0])
        if made.compiled:
            self._runners[model] = self._first
        self._report(self.name, TpuStep.OPEN)

    def make(self, loaded: Loaded) -> Runner:
        return self.interpreter(loaded.model.compiled)

    def interpreter(self, compiled: str) -> Runner:
        """One of a compiled file. It is open."""
        assert self.runtime is not None
        assert self.found is not None
        return on_tpu(compiled, self.runtime, self.found)

    def _wait_for_the_one_before(self) -> None:
        """The same TPU was pulled out while it worked, and is back: its last invoke may never return. As long as it has not,
        we are as stuck as it is, which ends the worker when it lasts."""
        while self._before is not None and self._before.is_alive():
            self.invoking_since = self._before.invoking_since
            self._before.join(BEFORE_S)
        self._before, self.invoking_since = None, 0.0

    def release(self) -> None:
        super().release()
        self._first = None

    def failed(self, error: Exception) -> None:
        step = TpuStep.UNUSABLE if isinstance(error, LibraryUnusable) else TpuStep.FAILED
        log.warning("TPU %s: %s", self.name, error)
        self._report(self.name, step, str(error)[:1024])

    def left(self) -> None:
        self._report(self.name, TpuStep.CLOSED)


class PipelineDevice(Device):
    """Several TPUs that run one model, which was cut into as many segments. Each goes on with models of its own in between."""

    def __init__(self, engine: TensorEngine, loaded: Loaded, tpus: Sequence[TpuDevice]) -> None:
        name = f"pipeline of {loaded.model.name}"
        super().__init__(engine, name, engine.pool_of(loaded.model.name))
        self.tpus = tpus
        self.labels = [tpu.name for tpu in tpus]
        self._pipeline: Pipeline | None = None

    def make(self, loaded: Loaded) -> Pipeline:
        stages = []
        for number, (segment, tpu) in enumerate(zip(loaded.model.segments, self.tpus, strict=True)):
            try:
                stages.append(tpu.interpreter(segment))
            except EdgeTpuFailed as error:
                raise StageFailed(number, error) from error
        self._pipeline = Pipeline(stages)
        return self._pipeline

    def release(self) -> None:
        super().release()
        self._pipeline = None

    def failed(self, error: Exception) -> None:
        if isinstance(error.__cause__, StageFailed):
            tpu = self.tpus[error.__cause__.stage]
            self.engine.lost(tpu)
            tpu.failed(error)

    def stuck(self) -> tuple[float, str]:
        since = self._pipeline.since if self._pipeline else []
        running = [(each, tpu.name) for each, tpu in zip(since, self.tpus, strict=False) if each]
        return min(running, default=(0.0, self.name))


class TensorEngine:
    """The models and devices of one worker."""

    def __init__(self, models: Mapping[str, Loaded], report: Report, *, on_tpus: bool = True) -> None:
        """`on_tpus`: of models that were cut, the segments run, each on a TPU; else the twin."""
        self.models = models
        self._report = report
        self.lock = threading.RLock()
        cut = {name for name, each in models.items() if on_tpus and each.model.segments}
        self._pools = {name: Invocations({name: models[name].model.size_bytes}) for name in sorted(cut)}
        #: For all models that run on one device.
        self.invocations = Invocations(
            {name: each.model.size_bytes for name, each in models.items() if name not in cut}
        )
        self.steps = 0
        self._devices: dict[str, Device] = {}
        #: The threads of TPUs that were taken away; one may be in an invoke that does not return.
        self._closed: dict[str, Device] = {}
        self._waiting = 0
        self._probing = threading.Lock()
        self._runtime: Runtime | LibraryUnusable | None = None

    # --- devices -------------------------------------------------------------------------------------------------

    def use_cpu(self, threads: int) -> None:
        """Serves the twins, on so many threads."""
        for number in range(threads):
            self._start(CpuDevice(self, f"cpu-{number}"))

    def use_tpus(self, tpus: Iterable[TpuShare]) -> None:
        """Has exactly these open. One that failed is opened again when it was left out in between."""
        wanted = {tpu.id: tpu for tpu in tpus}
        with self.lock:
            for name in list(self._devices):
                if name not in wanted and isinstance(self._devices.get(name), TpuDevice):
                    self._close(name)
            new = []
            for name, tpu in wanted.items():
                device = self._devices.get(name)
                if device is None:
                    new.append(TpuDevice(self, tpu, self._report, self._closed.pop(name, None)))
                elif isinstance(device, TpuDevice):
                    device.give(tpu)
        for device in new:
            self._start(device)

    @property
    def probed(self) -> bool:
        """Whether the library has been tried."""
        return self._runtime is not None

    def runtime(self, tpu: TpuShare) -> Runtime:
        """The library, after another process has tried it once on the first TPU that is opened: it may crash."""
        with self._probing:
            if isinstance(self._runtime, LibraryUnusable):
                raise self._runtime
            if self._runtime is None:
                first = next(iter(self.models.values())).model
                try:
                    edgetpu.probe(tpu.bus, tpu.node, tpu.id, Path(first.compiled or first.segments[0]))
                    self._runtime = edgetpu.runtime()
                except LibraryUnusable as error:
                    self._runtime = error
                    raise
            return self._runtime

    def joined(self, device: Device) -> bool:
        """A device is open and takes work; False when it is not wanted any more."""
        with self.lock:
            if device.closed:
                return False
            device.work = device.pool.add(
                device.name,
                time.monotonic(),
                share=device.share,
                prefers=device.prefers,
                reserve=device.reserve,
                memory_bytes=device.memory_bytes,
            )
            self._form_pipelines()
            return True

    def pool_of(self, model: str) -> Invocations:
        """What a model waits in."""
        return self._pools.get(model, self.invocations)

    def lost(self, device: Device, error: InferenceError | None = None) -> None:
        """A device failed: what it ran is begun elsewhere. It stays known, closed, until it is not wanted any more."""
        with self.lock:
            if not device.closed:
                device.closed = True
                device.wake.notify()
                self._leave(device, error)

    def rest_s(self, device: Device) -> float | None:
        """How long a device that has no work rests; None: until it is woken. Under the lock."""
        known = device.pool.devices.get(device.name)
        rest = known.rest_until - time.monotonic() if known else 0.0
        return rest if rest > 0 else None

    @property
    def open_devices(self) -> list[str]:
        """Those that take work."""
        return [name for pool in (self.invocations, *self._pools.values()) for name in pool.devices]

    def stuck(self) -> tuple[str, float]:
        """The device whose invoke has not returned for longest, and for how many seconds."""
        running = [found for each in list(self._devices.values()) if (found := each.stuck())[0]]
        if not running:
            return "", 0.0
        since, name = min(running)
        return name, max(0.0, time.monotonic() - since)

    # --- requests ------------------------------------------------------------------------------------------------

    def submit(self, message: Invoke, answer: Answer) -> Request | None:
        """Runs it; `answer` hears the Invoked or the Failure once, from any thread. None when that was at once."""
        loaded = self.models.get(message.model)
        if loaded is None:
            known = ", ".join(sorted(self.models))
            answer(
                failure(
                    "model_unknown",
                    f"no model is called {message.model!r} here; there are: {known}",
                    message.request_id,
                )
            )
            return None
        request = Request(message, loaded, answer)
        if bool(message.texts) == bool(message.tensors):
            request.fail(BadInput("expected either texts or tensors"))
            return None
        with self.lock:
            pool = self.pool_of(message.model)
            devices = len(pool.devices)
            if not devices:
                request.fail(NoDevice(f"no TPU of this worker is open for {message.model}"))
                return None
            if self._waiting + request.count > WAITING_LIMIT:
                answer(
                    failure(
                        "too_many",
                        "this worker has too much to do; try again in a moment",
                        message.request_id,
                    )
                )
                return None
            self._waiting += request.count
            for part in pieces(request.count, devices):
                work = Work(message.model, message.account, message.priority, Piece(request, part))
                self._hand(pool.submit(work, time.monotonic()), work)
        return request

    def withdraw(self, requests: Iterable[Request]) -> None:
        """Nobody waits for these any more."""
        gone = set(requests)
        with self.lock:
            for request in gone:
                request.over = True
            for pool in (self.invocations, *self._pools.values()):
                for work in pool.withdraw(lambda work: work.payload.request in gone):
                    self._waiting -= len(work.payload.part)

    def finished(
        self, device: Device, work: Work, done: tuple[list[bytes], int] | InferenceError | None
    ) -> None:
        """A device has done its work; it finds the next in its `work`."""
        with self.lock:
            if device.closed:
                return  # what it did is being done again elsewhere
            if work.payload is not None:
                self._settle(work, done, device.labels)
            device.work = device.pool.done(device.name, time.monotonic())

    # --- inside --------------------------------------------------------------------------------------------------

    def _settle(
        self, work: Work, done: tuple[list[bytes], int] | InferenceError | None, labels: Sequence[str]
    ) -> None:
        piece: Piece = work.payload
        self._waiting -= len(piece.part)
        if isinstance(done, InferenceError):
            piece.request.fail(done)
        elif done is not None:
            piece.request.filled(piece.part, *done, labels)

    def _start(self, device: Device) -> None:
        with self.lock:
            self._devices[device.name] = device
        device.start()

    def _form_pipelines(self) -> None:
        """Cut models that have no pipeline get one, as soon as there are as many TPUs as segments."""
        tpus = [each for each in self._devices.values() if isinstance(each, TpuDevice) and not each.closed]
        ready = [each for each in tpus if each.name in self.invocations.devices]
        for name in self._pools:
            loaded = self.models[name]
            count = len(loaded.model.segments)
            if f"pipeline of {name}" not in self._devices and len(ready) >= count:
                # The last ones: work that any TPU does begins with the first.
                self._start(PipelineDevice(self, loaded, ready[-count:]))

    def _close(self, name: str) -> None:
        device = self._devices.pop(name)
        if not device.closed:
            device.closed = True
            device.wake.notify()
            self._leave(device, None)
            if isinstance(device, TpuDevice):
                self._closed[name] = device

    def _leave(self, device: Device, error: InferenceError | None) -> None:
        """A device takes no more work, nor does a pipeline that it is part of; what they had goes to others, unless it has made
        too many fail."""
        work = device.pool.remove(device.name)
        if isinstance(device, PipelineDevice):
            self._devices.pop(device.name, None)
        for other in list(self._devices.values()):
            if isinstance(other, PipelineDevice) and device in other.tpus:
                self._close(other.name)
        if work is not None and error is not None and work.tries >= TRIES_LIMIT:
            self._settle(work, error, ())
        elif work is not None:
            self._hand(device.pool.submit(work, time.monotonic()), work)
        self._form_pipelines()
        if not device.pool.devices:
            # A pipeline that is about to be formed is not there yet; another worker is.
            for each in device.pool.drain():
                self._settle(each, NoDevice("the last TPU of this worker is gone"), ())

    def _hand(self, name: str | None, work: Work) -> None:
        if name is not None:
            self._devices[name].work = work
            self._devices[name].wake.notify()
