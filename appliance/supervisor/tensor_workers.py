"""The workers that run embedding and emotion models: one for the CPU, and one for each 16 TPUs of a tray.

The table of devices says which TPUs are usable (`tpus_changed`); the workers are told which of them are theirs, while they
run, and what becomes of each is told the table (`TpuEvents`). The CPU's worker is always there: what a TPU worker owed when
it ended is served by another or by it.
"""

from __future__ import annotations

import asyncio
import glob
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from appliance.config.appliance import Inference
from appliance.devices.errors import DevicesError
from appliance.inference import models
from appliance.inference.errors import InferenceError
from appliance.paths import Paths
from appliance.scheduling.groups import group
from appliance.scheduling.invoke_leases import InvokeLeases
from appliance.wire.messages import (
    TPUS_LIMIT,
    TensorModel,
    Tpu,
    TpuReport,
    TpuSet,
    TpuShare,
    TpuStep,
    WorkerSpec,
    WorkerState,
)

from .repairs import Kind, Repairs
from .workers import WorkerKeeper

log = logging.getLogger(__name__)

#: The kinds of models that these workers run.
KINDS = frozenset({"embedding", "emotion"})

CPU_WORKER = "cpu-1"


class TpuEvents(Protocol):
    """The table of devices, as it hears of TPUs from their workers."""

    def opening(self, tpu_id: str, worker: str) -> None:
        """The worker opens it now, which resets it: what udev tells of that is no event."""
        ...

    def opened(self, tpu_id: str, worker: str) -> None:
        """The worker has it open."""
        ...

    def closed(self, tpu_id: str, worker: str) -> None:
        """The worker has it open no more."""
        ...

    def failed(self, tpu_id: str, worker: str, reason: str) -> None:
        """It could not be opened, an invoke failed or did not return. It is closed, and opened again when `tpus_changed` has left
        it out once."""
        ...


class Workers(Protocol):
    """What the supervisor does with workers."""

    def start(
        self, spec: WorkerSpec, plan: Callable[[], WorkerSpec], memory_limit_bytes: int
    ) -> WorkerKeeper: ...

    async def stop(self, worker: str) -> None: ...


class TensorWorkers:
    """Owns the workers of the kinds `cpu` and `tpu`."""

    def __init__(
        self,
        paths: Paths,
        settings: Inference,
        workers: Workers,
        leases: InvokeLeases,
        repairs: Repairs,
    ) -> None:
        self._paths, self.settings = paths, settings
        self._workers, self._leases, self._repairs = workers, leases, repairs
        #: Set by whoever puts the supervisor together; None without a table of devices.
        self.events: TpuEvents | None = None
        self._keepers: dict[str, WorkerKeeper] = {}
        self._tpus: dict[str, Tpu] = {}
        self._worker_of: dict[str, str] = {}
        self._open: dict[str, set[str]] = {}
        self._told: dict[str, TpuSet] = {}
        self._refused: dict[str, Mapping[str, str]] = {}
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    def start(self) -> None:
        """The CPU's worker, if there are models."""
        if self._models():
            self._start(CPU_WORKER, "cpu")

    async def close(self) -> None:
        """Starts no worker any more; the supervisor stops those that run."""
        self._closed = True
        await asyncio.gather(*self._stopping.values(), return_exceptions=True)

    def tpus_changed(self, tpus: Sequence[Tpu]) -> None:
        """These are the TPUs that a worker may have open now; called whenever one of them changes."""
        if self._closed:
            return
        self._tpus = {tpu.id: tpu for tpu in tpus}
        known = self._models()
        compiled = [model for model in known if model.on_tpus]
        missing = [model.name for model in known if not model.on_tpus] if tpus else []
        self._repairs.only(
            Kind.MODELS_NOT_COMPILED,
            [(name, f"{name} is not compiled for Edge TPUs: it runs on the CPU") for name in missing],
        )
        if not self._tpus:
            self._repairs.only(Kind.TPU_LIBRARY, [])
        trays = {tpu.id: tpu.tray for tpu in self._tpus.values()} if compiled else {}
        before = set(self._worker_of.values())
        self._worker_of = group(trays, self._worker_of, taken=self._stopping)
        now = set(self._worker_of.values())
        for worker in sorted(now - self._keepers.keys()):
            self._start(worker, "tpu")
        for worker in sorted(before - now):
            self._stopping[worker] = asyncio.create_task(self._stop(worker), name=f"stopping {worker}")
        for worker in sorted(now & before):
            self._tell(worker)

    def tpu_lost(self, tpu_id: str, worker: str) -> None:
        """What the worker has open, or wants to open, is not there for it any more. It lets go of it even if there is another one
        in its place by now, which it is told of as usual."""
        keeper, told = self._keepers.get(worker), self._told.get(worker)
        if keeper is None or keeper.state is not WorkerState.READY or told is None:
            return
        if any(share.id == tpu_id for share in told.tpus):
            self._send(worker, TpuSet(tpus=[share for share in told.tpus if share.id != tpu_id]))

    # --- what the keepers report ------------------------------------------------------------------------------------

    def serves(self, worker: str) -> bool:
        """Whether it is one of these workers."""
        return worker in self._keepers

    def ready(self, worker: str) -> None:
        """It has loaded its models."""
        keeper = self._keepers[worker]
        self._refuses(worker, keeper.refused)
        self._open[worker] = set()
        self._told.pop(worker, None)
        self._offer(worker)
        self._tell(worker)

    def failed(self, worker: str, why: str) -> None:
        """It does not start: none of its models can be used."""
        self._refuses(worker, {self._keepers[worker].spec.model: why})

    def gone(self, worker: str) -> None:
        """Its process ended."""
        self._leases.worker_gone(worker)
        for tpu in sorted(self._open.pop(worker, set())):
            if self.events is not None:
                self.events.closed(tpu, worker)

    def report(self, worker: str, report: TpuReport) -> None:
        """What became of a TPU of it."""
        opened = self._open.setdefault(worker, set())
        if report.step is TpuStep.OPEN:
            opened.add(report.id)
            self._repairs.only(Kind.TPU_LIBRARY, [])
        elif report.step is not TpuStep.OPENING:
            opened.discard(report.id)
        if report.step is TpuStep.UNUSABLE:
            self._repairs.open(Kind.TPU_LIBRARY, "libedgetpu", report.detail)
        self._offer(worker)
        if report.detail:
            log.warning("TPU %s of worker %s: %s: %s", report.id, worker, report.step, report.detail)
        if self.events is None:
            return
        try:
            match report.step:
                case TpuStep.OPENING:
                    self.events.opening(report.id, worker)
                case TpuStep.OPEN:
                    self.events.opened(report.id, worker)
                case TpuStep.CLOSED | TpuStep.UNUSABLE:
                    self.events.closed(report.id, worker)
                case TpuStep.FAILED:
                    self.events.failed(report.id, worker, report.detail)
        except DevicesError as error:
            # It went, or into quarantine, while the worker was at it, or another has not let go of it yet.
            log.info("TPU %s of worker %s is %s: %s", report.id, worker, report.step, error)
            self.tpu_lost(report.id, worker)

    def detail(self, worker: str) -> str:
        """How many of its TPUs it has open."""
        if worker == CPU_WORKER:
            return "runs the models on the CPU"
        mine = sum(each == worker for each in self._worker_of.values())
        return f"{len(self._open.get(worker, ()))} of {mine} TPUs open"

    def capacity(self, worker: str) -> int:
        """How many devices of it run models at the same time."""
        return self.settings.cpu_threads if worker == CPU_WORKER else len(self._open.get(worker, ()))

    # --- inside -----------------------------------------------------------------------------------------------------

    def _refuses(self, worker: str, refused: Mapping[str, str]) -> None:
        """Why a worker cannot use some of its models; another may be able to."""
        self._refused[worker] = refused
        found = {name: why for each in self._refused.values() for name, why in each.items()}
        self._repairs.only(Kind.SMALL_MODEL_UNUSABLE, found.items())

    def _offer(self, worker: str) -> None:
        """Tells the scheduler what it can do now."""
        keeper = self._keepers.get(worker)
        if keeper is None or keeper.state is not WorkerState.READY:
            return
        names = [model.name for model in keeper.spec.models if model.name not in keeper.refused]
        self._leases.worker(
            worker, models=names, capacity=self.capacity(worker), tpu=keeper.spec.kind == "tpu"
        )

    def _tell(self, worker: str) -> None:
        """Tells a worker which TPUs are its own."""
        if worker == CPU_WORKER or self._keepers[worker].state is not WorkerState.READY:
            return
        tpus = [self._tpus[tpu] for tpu, each in sorted(self._worker_of.items()) if each == worker]
        wanted = TpuSet(
            tpus=[
                TpuShare(id=tpu.id, bus=tpu.bus, node=tpu.node, role=tpu.role, share=tpu.load_limit)
                for tpu in tpus
            ]
        )
        if self._told.get(worker) != wanted:
            self._send(worker, wanted)

    def _send(self, worker: str, wanted: TpuSet) -> None:
        self._told[worker] = wanted
        opened = self._open.setdefault(worker, set())
        if not_its_own := opened - {share.id for share in wanted.tpus}:
            opened -= not_its_own  # it may have to wait until an invoke ends; to count on it is over
            self._offer(worker)
        self._keepers[worker].tell(wanted)

    def _start(self, worker: str, kind: str) -> None:
        self._keepers[worker] = self._workers.start(
            self._plan(worker, kind),
            lambda: self._plan(worker, kind),
            self.settings.memory_limit_mib << 20,
        )

    async def _stop(self, worker: str) -> None:
        try:
            await self._workers.stop(worker)
            self.gone(worker)
            self._refuses(worker, {})
            del self._keepers[worker]
        finally:
            del self._stopping[worker]

    def _models(self) -> list[TensorModel]:
        """Those that there are now."""
        try:
            known = models.catalogue(self._paths)
        except InferenceError as error:
            log.error("%s", error)
            known = models.shipped()
        small = {name: each for name, each in known.items() if each.entry.kind in KINDS}
        made = models.compiled(small)
        astray = [each for each in small.values() if each.entry.twin and each not in made.values()]
        self._repairs.only(Kind.MODEL_ASTRAY, [(each.name, _astray(each, small)) for each in astray])
        found = [_tensor_model(each, made.get(name)) for name, each in small.items() if not each.entry.twin]
        self._leases.expect({model.name: model.kind for model in found})
        return found

    def _plan(self, worker: str, kind: str) -> WorkerSpec:
        """What a worker is told, as the library is now."""
        known = self._models()
        # What was compiled is nothing to the CPU: it serves where that is broken.
        plain = [
            msgspec.structs.replace(model, compiled="", compiled_sha256="", segments=[]) for model in known
        ]
        mine = plain if kind == "cpu" else [model for model in known if model.on_tpus]
        return WorkerSpec(
            name=worker,
            kind=kind,
            model=", ".join(model.name for model in mine),
            model_path="",
            model_sha256="",
            model_size_bytes=sum(model.size_bytes for model in mine),
            socket=str(self._paths.workers / f"{worker}.sock"),
            folder=str(self._paths.workers / worker),
            slots=self.capacity(worker),
            threads=self.settings.cpu_threads,
            models=mine,
        )


def _tensor_model(model: models.Model, made: models.Model | None) -> TensorModel:
    """`made` is what the library has as compiled from it; else what lies beside it counts."""
    compiled, segments = (str(made.path), []) if made else compiled_files(model.path)
    return TensorModel(
        name=model.name,
        kind=model.entry.kind,
        twin=str(model.path),
        sha256=model.entry.sha256,
        size_bytes=model.entry.size_bytes,
        compiled=compiled,
        compiled_sha256=made.entry.sha256 if made else "",
        segments=segments,
    )


def _astray(model: models.Model, known: Mapping[str, models.Model]) -> str:
    twin = model.entry.twin
    how = f"{twin} has changed since" if twin in known else f"there is no {twin}"
    return f"{model.name} is not used: it was compiled from {twin}, and {how}"


def compiled_files(twin: Path) -> tuple[str, list[str]]:
    """What edgetpu_compiler has made of a file, in the names that it gives: one file, else all segments of one that was cut."""
    whole = twin.with_name(f"{twin.stem}_edgetpu.tflite")
    if whole.exists():
        return str(whole), []
    for last in sorted(twin.parent.glob(f"{glob.escape(twin.stem)}_segment_0_of_*_edgetpu.tflite")):
        count = last.name.removesuffix("_edgetpu.tflite").rpartition("_")[2]
        if count.isdecimal() and 1 < int(count) <= TPUS_LIMIT:
            names = [
                f"{twin.stem}_segment_{number}_of_{count}_edgetpu.tflite" for number in range(int(count))
            ]
            segments = [twin.with_name(name) for name in names]
            if all(segment.exists() for segment in segments):
                return "", [str(segment) for segment in segments]
    return "", []
