"""The supervisor itself: what is started in which order, what it answers, how it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable

import msgspec

from appliance import __version__
from appliance.config.load import Settings
from appliance.config.network import Mode
from appliance.files import FileLock, LockHeld
from appliance.inference import models
from appliance.inference.errors import InferenceError
from appliance.paths import Paths
from appliance.process import age_s
from appliance.scheduling.leases import LeaseTable
from appliance.wire.messages import ModelStatus, Status, WorkerSpec, WorkerState, WorkerStatus

from .control import ControlSocket
from .errors import AlreadyRunning
from .forkserver import Forkserver
from .notify import Notify, feed_watchdog
from .text_model import TextModel
from .workers import WorkerKeeper, resident_bytes

log = logging.getLogger(__name__)


class StateLock(FileLock):
    """One supervisor a state folder."""

    def __enter__(self) -> None:
        try:
            super().__enter__()
        except LockHeld as error:
            raise AlreadyRunning(
                f"{self.path.parent} is in use by process {error.holder}: stop that one, or choose another STATE="
            ) from None


class Supervisor:
    """Owns the forkserver, the workers, the leases and the control socket."""

    def __init__(self, paths: Paths, settings: Settings) -> None:
        self._paths, self._settings = paths, settings
        appliance = settings.appliance
        self._began = time.monotonic()
        self._notify = Notify()
        self._leases = LeaseTable(queue_limit=appliance.scheduler.queue_limit)
        self._forkserver = Forkserver(self._exited)
        self._keepers: dict[str, WorkerKeeper] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._bug: BaseException | None = None
        self._text = TextModel(paths, appliance.text, self)
        self._problems: list[str] = []
        if settings.network.mode is not Mode.LOCAL:
            self._problems.append(
                f"mode {settings.network.mode} is checked but not in effect yet: running as local"
            )
        self._control = ControlSocket(
            paths.control_socket,
            self._leases,
            status=self.status,
            socket_of=self._socket_of,
            load_model=self._text.load,
            why_none_is_ready=self._why_none_is_ready,
            queue_timeout_s=appliance.scheduler.queue_timeout_s,
        )
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """From start to a clean end. READY once the control socket answers; workers load meanwhile."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        await self._control.start()
        self._text.start()
        watchdog = asyncio.create_task(
            feed_watchdog(self._notify, lambda: self._bug is None), name="watchdog"
        )
        self._notify.ready(self._summary())
        log.info("ready in %.2f s; mode %s", age_s(), self._settings.network.mode)
        try:
            await self._stop.wait()
            if self._bug is not None:
                raise self._bug
        finally:
            self._notify.stopping("stopping: waiting for replies to end")
            self._control.drain()
            await self._drained()
            await self._text.close()
            for task in (*self._tasks.values(), watchdog):
                task.cancel()
            await asyncio.gather(*self._tasks.values(), watchdog, return_exceptions=True)
            await self._forkserver.close()
            await self._control.close()
            log.info("stopped")

    # --- what others ask or report ----------------------------------------------------------------------------

    def worker_ready(self, name: str, *, model: str, slots: int) -> None:
        """A keeper's worker takes leases."""
        if self._text.ready(name):
            self._control.granted(self._leases.worker_ready(name, model=model, slots=slots))
        self._notify.status(self._summary())

    def worker_gone(self, name: str) -> None:
        """A keeper's worker died."""
        self._control.granted(self._leases.worker_gone(name))
        self._notify.status(self._summary())

    def status(self) -> Status:
        """Everything that `coral-reef status` and the API show."""
        workers = self._workers()
        return Status(
            version=__version__,
            mode=str(self._settings.network.mode),
            pid=os.getpid(),
            uptime_s=time.monotonic() - self._began,
            rss_bytes=resident_bytes(os.getpid()),
            ready=any(worker.state is WorkerState.READY for worker in workers),
            summary=self._summary(),
            leases=self._leases.leases,
            waiting=self._leases.waiting,
            requests=self._control.requests,
            prompt_tokens=self._control.prompt_tokens,
            completion_tokens=self._control.completion_tokens,
            warnings=[str(warning) for warning in self._settings.warnings] + self._problems,
            workers=workers,
            models=self._models(),
            model=self._text.model,
            configured_model=self._text.configured,
        )

    # --- what the model asks of us --------------------------------------------------------------------------------

    def start(self, spec: WorkerSpec, plan: Callable[[], WorkerSpec]) -> WorkerKeeper:
        """A new worker, kept alive from now on."""
        keeper = self._keepers[spec.name] = WorkerKeeper(
            spec,
            plan,
            self._forkserver,
            self,
            restart_delay_s=self._settings.appliance.supervisor.restart_delay_s,
            memory_limit_bytes=self._settings.appliance.text.memory_limit_mib * 1024 * 1024,
        )
        task = self._tasks[spec.name] = asyncio.create_task(keeper.run(), name=f"keeper {spec.name}")
        task.add_done_callback(self._keeper_ended)
        return keeper

    async def stop(self, worker: str) -> None:
        """Ends a worker for good."""
        task = self._tasks.pop(worker)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        del self._keepers[worker]
        self.worker_gone(worker)

    def closing(self, worker: str) -> int:
        """A worker gets no more leases; returns how many it has."""
        self._leases.worker_closing(worker)
        return self._leases.leases_of(worker)

    async def idle(self, worker: str) -> None:
        """Returns when a worker has no lease."""
        await self._control.idle(lambda: self._leases.leases_of(worker) == 0)

    # --- inside --------------------------------------------------------------------------------------------------

    def _keeper_ended(self, task: asyncio.Task[None]) -> None:
        """One that ends by itself has a bug, and takes the supervisor with it for systemd to restart."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._bug = error
            self._stop.set()

    def _workers(self) -> list[WorkerStatus]:
        found = []
        for name, keeper in self._keepers.items():
            status = keeper.status(self._leases.leases_of(name))
            if self._text.retiring(name) and not status.detail:
                status = msgspec.structs.replace(status, detail="replaced; finishes its replies")
            found.append(status)
        return found

    def _models(self) -> list[ModelStatus]:
        found = []
        try:
            known = models.catalogue(self._paths)
        except InferenceError as error:
            known = models.shipped()
            found.append(
                ModelStatus(
                    name="?",
                    kind="",
                    size_bytes=0,
                    sha256="",
                    shipped=False,
                    loaded_by=[],
                    problem=str(error),
                )
            )
        for model in known.values():
            loaded = [
                keeper for keeper in self._keepers.values() if keeper.spec.model_path == str(model.path)
            ]
            ready = [keeper for keeper in loaded if keeper.state is WorkerState.READY]
            found.append(
                ModelStatus(
                    name=model.name,
                    kind=model.entry.kind,
                    size_bytes=model.entry.size_bytes,
                    sha256=model.entry.sha256,
                    shipped=model.shipped,
                    loaded_by=[keeper.spec.name for keeper in ready],
                    context_tokens=ready[0].context_tokens if ready else model.entry.context_tokens,
                    problem="; ".join(filter(None, (keeper.status(0).detail for keeper in loaded))),
                )
            )
        return found

    def _summary(self) -> str:
        ready = sum(keeper.state is WorkerState.READY for keeper in self._keepers.values())
        reason = self._why_none_is_ready()
        return f"{ready} of {len(self._keepers)} workers ready" + (f": {reason}" if reason else "")

    def _why_none_is_ready(self) -> str:
        """What the workers last said; empty when one is ready, or when none has failed."""
        if any(keeper.state is WorkerState.READY for keeper in self._keepers.values()):
            return ""
        return "; ".join(filter(None, (keeper.status(0).detail for keeper in self._keepers.values())))

    def _socket_of(self, worker: str) -> tuple[str, str]:
        spec = self._keepers[worker].spec
        return spec.socket, spec.model

    def _exited(self, pid: int, status: int) -> None:
        for keeper in self._keepers.values():
            keeper.exited(pid, status)

    async def _drained(self) -> None:
        """Waits for running leases to end, as long as the owner allows."""
        try:
            async with asyncio.timeout(self._settings.appliance.supervisor.drain_s):
                await self._control.idle(lambda: self._leases.leases == 0)
        except TimeoutError:
            log.warning("%d replies did not end in time", self._leases.leases)
