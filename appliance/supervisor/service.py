"""The supervisor itself: what is started in which order, what it answers, how it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time

from appliance import __version__
from appliance.config.load import Settings
from appliance.config.network import Mode
from appliance.files import FileLock, LockHeld
from appliance.inference import models
from appliance.inference.errors import InferenceError
from appliance.paths import Paths
from appliance.process import age_s
from appliance.scheduling.leases import LeaseTable
from appliance.wire.messages import ModelStatus, Status, WorkerSpec, WorkerState

from .control import ControlSocket
from .errors import AlreadyRunning
from .forkserver import Forkserver
from .notify import Notify, extend_timeout, feed_watchdog
from .workers import WorkerKeeper, resident_bytes

log = logging.getLogger(__name__)

#: A model whose manifest names no window gets this one, in tokens a slot.
DEFAULT_CONTEXT_TOKENS = 4096

#: However large a model's window is, a slot gets this much unless the owner says more: the KV cache grows with it.
CONTEXT_LIMIT_TOKENS = 8192


#: `systemctl status` shows one line.
SUMMARY_LIMIT_CHARS = 200


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
            queue_timeout_s=appliance.scheduler.queue_timeout_s,
        )
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """From start to a clean end. READY once the control socket answers; workers load meanwhile."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        await self._control.start()
        self._plan_workers()
        tasks = [
            asyncio.create_task(keeper.run(), name=f"keeper {name}") for name, keeper in self._keepers.items()
        ]
        watchdog = asyncio.create_task(
            feed_watchdog(self._notify, lambda: not any(task.done() for task in tasks)), name="watchdog"
        )
        self._notify.ready(self._summary())
        log.info("ready in %.2f s; mode %s", age_s(), self._settings.network.mode)
        try:
            await self._until_stopped(tasks)
        finally:
            self._notify.stopping("stopping: waiting for replies to end")
            self._control.drain()
            await self._drained()
            for task in (*tasks, watchdog):
                task.cancel()
            await asyncio.gather(*tasks, watchdog, return_exceptions=True)
            await self._forkserver.close()
            await self._control.close()
            log.info("stopped")

    # --- what others ask or report ----------------------------------------------------------------------------

    def worker_ready(self, name: str, *, model: str, slots: int) -> None:
        """A keeper's worker takes leases."""
        self._control.granted(self._leases.worker_ready(name, model=model, slots=slots))
        self._notify.status(self._summary())

    def worker_gone(self, name: str) -> None:
        """A keeper's worker died."""
        self._control.granted(self._leases.worker_gone(name))
        self._notify.status(self._summary())

    def status(self) -> Status:
        """Everything that `coral-reef status` and the API show."""
        workers = [keeper.status(self._leases.leases_of(name)) for name, keeper in self._keepers.items()]
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
        )

    # --- inside --------------------------------------------------------------------------------------------------

    def _plan_workers(self) -> None:
        """One text worker for the configured model."""
        text = self._settings.appliance.text
        try:
            model = models.find(self._paths, text.model)
        except InferenceError as error:
            self._problems.append(str(error))
            log.error("no text worker: %s", error)
            return
        name = "text-1"
        trained = model.entry.context_tokens or DEFAULT_CONTEXT_TOKENS
        spec = WorkerSpec(
            name=name,
            kind=model.entry.kind,
            model=model.name,
            model_path=str(model.path),
            model_sha256=model.entry.sha256,
            model_size_bytes=model.entry.size_bytes,
            socket=str(self._paths.workers / f"{name}.sock"),
            folder=str(self._paths.workers / name),
            slots=text.slots,
            threads=text.threads,
            context_tokens=text.context_tokens or min(trained, CONTEXT_LIMIT_TOKENS),
            batch_tokens=text.batch_tokens,
            cache_mib=text.cache_mib,
        )
        self._keepers[name] = WorkerKeeper(
            spec,
            model,
            self._forkserver,
            self,
            restart_delay_s=self._settings.appliance.supervisor.restart_delay_s,
            memory_limit_bytes=text.memory_limit_mib * 1024 * 1024,
        )

    def _models(self) -> list[ModelStatus]:
        try:
            known = models.catalogue(self._paths)
        except InferenceError as error:
            return [
                ModelStatus(
                    name="?",
                    kind="",
                    size_bytes=0,
                    sha256="",
                    shipped=False,
                    loaded_by=[],
                    problem=str(error),
                )
            ]
        found = []
        for model in known.values():
            loaded = [keeper for keeper in self._keepers.values() if keeper.model.path == model.path]
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
        """What `systemctl status` shows: which models are served, and what is the matter with the other workers."""
        ready = [keeper for keeper in self._keepers.values() if keeper.state is WorkerState.READY]
        models_served = ", ".join(sorted({keeper.model.name for keeper in ready}))
        parts = [
            f"{len(ready)} of {len(self._keepers)} workers ready" + (f" ({models_served})" if ready else "")
        ]
        for name, keeper in self._keepers.items():
            if detail := keeper.status(0).detail:
                parts.append(f"{name} {keeper.state}: {detail}")
        return "; ".join(parts).replace("\n", " ")[:SUMMARY_LIMIT_CHARS]

    def _socket_of(self, worker: str) -> tuple[str, str]:
        spec = self._keepers[worker].spec
        return spec.socket, spec.model

    def _exited(self, pid: int, status: int) -> None:
        for keeper in self._keepers.values():
            keeper.exited(pid, status)

    async def _until_stopped(self, tasks: list[asyncio.Task[None]]) -> None:
        """Returns at SIGTERM; a keeper that ends by itself has a bug, and takes the supervisor with it for systemd to restart."""
        stop = asyncio.create_task(self._stop.wait())
        done, _ = await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        for task in done - {stop}:
            task.result()

    async def _drained(self) -> None:
        """Waits for running leases to end, as long as the owner allows."""
        extending = asyncio.create_task(extend_timeout(self._notify), name="extend timeout")
        try:
            async with asyncio.timeout(self._settings.appliance.supervisor.drain_s):
                await self._control.idle()
        except TimeoutError:
            log.warning("%d replies did not end in time", self._leases.leases)
        finally:
            extending.cancel()
