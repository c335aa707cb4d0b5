"""The supervisor itself: what is started in which order, what it answers, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Collection, Coroutine

import msgspec

from appliance import __version__
from appliance.config.appliance import Appliance, by_key, gateway_part
from appliance.config.errors import ConfigError
from appliance.config.load import Settings, load
from appliance.config.network import Mode
from appliance.files import FileLock, LockHeld
from appliance.identity.errors import UsersUnreadable
from appliance.inference import models
from appliance.inference.errors import InferenceError
from appliance.network.keeper import Keeper
from appliance.paths import Paths
from appliance.process import age_s, resident_bytes
from appliance.scheduling.invoke_leases import InvokeLeases
from appliance.scheduling.leases import LeaseTable
from appliance.scheduling.placement import PLACEMENTS
from appliance.telemetry.interfaces import PERIOD_S, Interfaces, read_interfaces
from appliance.telemetry.network_counters import today
from appliance.wire.messages import (
    Message,
    ModelLoad,
    ModelLoaded,
    ModelStatus,
    Repair,
    RepairChanged,
    Status,
    SystemChanged,
    Topic,
    TpuReport,
    WorkerChanged,
    WorkerSpec,
    WorkerState,
    WorkerStatus,
)

from .cgroups import Groups
from .control import ControlSocket
from .errors import AlreadyRunning, NoSuchWorker, ReloadRefused, SubsystemDead
from .forkserver import WORKER_USER, Forkserver
from .logins import Logins
from .network import NetworkDesk, tell_repairs
from .notify import Notify, extend_timeout, feed_watchdog
from .power import machine, not_ours
from .repairs import Kind, Repairs
from .tensor_workers import TensorWorkers
from .text_model import TextModel
from .tpus import Tpus
from .usb import Usb
from .workers import WorkerKeeper

log = logging.getLogger(__name__)


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
        self._leases = LeaseTable(
            queue_limit=appliance.scheduler.queue_limit, placement=PLACEMENTS[appliance.scheduler.placement]
        )
        self._invocations = InvokeLeases(limit=appliance.scheduler.queue_limit)
        self._forkserver = Forkserver(self._exited)
        self._keepers: dict[str, WorkerKeeper] = {}
        self._groups = Groups(None)
        self._repairs = Repairs(self._repair_changed)
        self._reloading = asyncio.Lock()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._beside: set[asyncio.Task[None]] = set()
        self._bug: BaseException | None = None
        self._text = TextModel(paths, appliance.text, self)
        self._tensors = TensorWorkers(paths, appliance.inference, self, self._invocations, self._repairs)
        self.tpus = Tpus(
            appliance.devices,
            self._repairs,
            lambda event: self._control.publish(Topic.TPU, event),
            memory=paths.tpu_quarantine,
            worker_user=os.environ.get(WORKER_USER) or None,
        )
        self._tensors.events = self.tpus.watch
        self._logins = Logins(
            paths.users,
            clock=time.monotonic,
            power=machine if paths == Paths.system() else not_ours,
            unreadable=lambda why: self._repairs.when(Kind.USERS_UNREADABLE, "file", why, self._logins.look),
            ended=lambda: self._control.publish(Topic.SYSTEM, SystemChanged(event="session_ended")),
        )
        self._usb = Usb(paths.usb_link, self._repairs)
        # On a machine that is not the appliance's own, its network is not ours to change.
        self._network = (
            Keeper(
                paths.network_yaml,
                paths.network_state,
                paths.firewall_record,
                lambda troubles: tell_repairs(self._repairs, troubles),
            )
            if paths == Paths.system()
            else None
        )
        self._interfaces = Interfaces()
        self._control = ControlSocket(
            paths.control_socket,
            self._leases,
            self._invocations,
            status=self.status,
            traffic=self._interfaces.traffic,
            socket_of=self._socket_of,
            orders=self,
            logins=self._logins,
            network=NetworkDesk(
                self._network, mode=lambda: str(self._settings.network.mode), usb=self._usb.link
            ),
            why_none_is_ready=self._why_none_is_ready,
            queue_timeout_s=appliance.scheduler.queue_timeout_s,
        )
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """From start to a clean end. READY once the control socket answers; workers load meanwhile."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up)
        self._groups = Groups.of_this_process()
        self._look_at(self._settings)
        self._text.start()  # before anybody asks: what will be served is known then
        self._tensors.start()
        self.tpus.use(self._tensors.tpus_changed, self._tensors.tpu_lost)
        await self._control.start()
        self._run_beside(self._logins.look(), but=UsersUnreadable)  # which is a repair then
        devices = asyncio.create_task(self.tpus.run(), name="devices")
        devices.add_done_callback(self._keeper_ended)
        usb = asyncio.create_task(self._usb.run(), name="usb")
        usb.add_done_callback(self._keeper_ended)
        traffic = asyncio.create_task(self._watch_traffic(), name="traffic")
        traffic.add_done_callback(self._keeper_ended)
        network = asyncio.create_task(self._keep_network(), name="network")
        network.add_done_callback(self._keeper_ended)
        watchdog = asyncio.create_task(feed_watchdog(self._notify, self._prove), name="watchdog")
        self._notify.ready(self._summary())
        log.info("ready in %.2f s; mode %s", age_s(), self._settings.network.mode)
        try:
            await self._stop.wait()
            if self._bug is not None:
                raise self._bug
        finally:
            self._notify.stopping("stopping: waiting for replies to end")
            extending = asyncio.create_task(extend_timeout(self._notify), name="extend timeout")
            self._control.publish(Topic.SYSTEM, SystemChanged(event="stopping"))
            self._control.drain()
            await self._drained()
            await self._text.close()
            await self._tensors.close()
            ending = (*self._tasks.values(), devices, usb, traffic, network, watchdog)
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            await self._forkserver.close()
            await self._control.close()
            self._logins.close()
            extending.cancel()
            log.info("stopped")

    async def _keep_network(self) -> None:
        if self._network is not None:
            await self._network.run()

    async def _watch_traffic(self) -> None:
        while True:
            self._interfaces.take(read_interfaces(self._paths.interfaces), time.monotonic(), today())
            await asyncio.sleep(PERIOD_S)

    # --- what others ask or report ----------------------------------------------------------------------------

    def worker_ready(self, name: str, *, model: str, slots: int, adapters: Collection[str]) -> None:
        """A keeper's worker takes leases."""
        if self._tensors.serves(name):
            self._tensors.ready(name)
        elif self._text.ready(name):
            self._repairs.only(Kind.ADAPTER_UNUSABLE, self._keepers[name].refused.items())
            self._control.granted(
                self._leases.worker_ready(name, model=model, slots=slots, adapters=adapters)
            )

    def worker_gone(self, name: str) -> None:
        """A keeper's worker died."""
        if self._tensors.serves(name):
            self._tensors.gone(name)
        self._control.granted(self._leases.worker_gone(name))
        self.tpus.watch.worker_gone(name)

    def tpu_report(self, worker: str, report: TpuReport) -> None:
        """A keeper's worker did something with a TPU."""
        self._tensors.report(worker, report)

    def worker_changed(self, name: str) -> None:
        """A keeper's worker entered another state, or is trusted again."""
        keeper = self._keepers[name]
        status = keeper.status(self.leases_of(name))
        self._control.publish(Topic.WORKER, WorkerChanged(worker=status))
        if not self._stop.is_set():
            self._notify.status(self._summary())

        tensors = self._tensors.serves(name)
        if not self._text.serves(name) and not tensors:
            return  # one that is on its way in tells whoever loads it, one on its way out nobody

        async def again() -> str:
            return await self.restart_worker(name)

        broken = status.detail if keeper.failure_code else ""
        looping = (
            f"worker {name} dies again and again: {status.detail}" if keeper.crash_loop and not broken else ""
        )
        self._repairs.when(
            Kind.WORKER_MEMORY, name, f"worker {name} {keeper.outgrew}" if keeper.outgrew else ""
        )
        # Between two lives there is a reason to tell; while it starts once more, what was told stands.
        if status.state is not WorkerState.STARTING:
            if tensors and broken:
                self._tensors.failed(name, broken)
            elif not tensors:
                self._repairs.when(Kind.MODEL_UNUSABLE, keeper.spec.model, broken, again)
            self._repairs.when(Kind.WORKER_CRASH_LOOP, name, looping, again)

    def leases_of(self, name: str) -> int:
        """How many replies or answers a worker owes."""
        return self._leases.leases_of(name) + self._invocations.leases_of(name)

    # --- orders -------------------------------------------------------------------------------------------------

    async def reload(self) -> str:
        """Reads the configuration again and applies it. ReloadRefused when it has errors: then everything stays as it was."""
        async with self._reloading:
            self._notify.reloading()
            try:
                detail = await self._apply(await asyncio.to_thread(self._load))
            except ReloadRefused as error:
                self._repairs.open(Kind.CONFIGURATION_REFUSED, "files", str(error), self.reload)
                self._control.publish(
                    Topic.SYSTEM, SystemChanged(event="reload_refused", detail=str(error)[:4096])
                )
                raise
            finally:
                self._notify.ready(self._summary())
            self._repairs.close(Kind.CONFIGURATION_REFUSED, "files")
            self._control.publish(Topic.SYSTEM, SystemChanged(event="reloaded", detail=detail))
            log.info("configuration reloaded: %s", detail)
            return detail

    async def restart_worker(self, name: str) -> str:
        """Restarts one worker, its streams first. NoSuchWorker, RestartFailed."""
        if name not in self._keepers:
            raise NoSuchWorker(
                f"no worker is called {name!r}; there are: {', '.join(self._keepers) or 'none'}"
            )
        log.info("worker %s: restart asked for", name)
        await self._keepers[name].restart()
        return f"worker {name} is ready again"

    async def fix(self, repair_id: str) -> str:
        """Does what a repair offers."""
        return await self._repairs.fix(repair_id)

    async def load_model(self, request: ModelLoad, tell: Callable[[Message], None]) -> ModelLoaded:
        """Lets another model write the replies. InferenceError when it cannot: the one before goes on."""
        return await self._text.load(request, tell)

    async def reset_tpu(self, tpu_id: str) -> str:
        """Resets a TPU and uses it again. DevicesError."""
        return await self.tpus.reset(tpu_id)

    async def quarantine_tpu(self, tpu_id: str) -> str:
        """Takes a TPU out of use. DevicesError."""
        return await self.tpus.quarantine(tpu_id)

    # --- what is shown -------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """Everything that `coral-reef status` and the API show."""
        workers = self._workers()
        return Status(
            version=__version__,
            mode=str(self._settings.network.mode),
            pid=os.getpid(),
            uptime_s=time.monotonic() - self._began,
            rss_bytes=resident_bytes(os.getpid()),
            ready=any(each.state is WorkerState.READY for each in workers if each.kind == "text"),
            summary=self._summary(),
            leases=self._leases.leases,
            waiting=self._leases.waiting,
            requests=self._control.requests,
            prompt_tokens=self._control.prompt_tokens,
            completion_tokens=self._control.completion_tokens,
            repairs=self._repairs.all(),
            workers=workers,
            models=self._models(),
            model=self._text.model,
            configured_model=self._text.configured,
            tpus=self.tpus.all(),
            trays=self.tpus.trays(),
            hotplug=self.tpus.hotplug,
            usb=self._usb.link(),
        )

    # --- what the model asks of us --------------------------------------------------------------------------------

    def start(
        self, spec: WorkerSpec, plan: Callable[[], WorkerSpec], memory_limit_bytes: int
    ) -> WorkerKeeper:
        """A new worker, kept alive from now on."""
        appliance = self._settings.appliance
        text = spec.kind == "text"
        keeper = self._keepers[spec.name] = WorkerKeeper(
            spec,
            plan,
            self._forkserver,
            self,
            restart_delay_s=appliance.supervisor.restart_delay_s,
            drain_s=appliance.supervisor.drain_s,
            memory_limit_bytes=memory_limit_bytes,
            invoke_limit_s=0.0 if text else appliance.inference.invoke_limit_s,
            groups=self._groups,
        )
        task = self._tasks[spec.name] = asyncio.create_task(keeper.run(), name=f"keeper {spec.name}")
        task.add_done_callback(self._keeper_ended)
        return keeper

    async def stop(self, worker: str) -> None:
        """Ends a worker for good, and what was wrong with it."""
        task = self._tasks.pop(worker)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        model = self._keepers.pop(worker).spec.model
        if not any(keeper.spec.model == model and keeper.failure_code for keeper in self._keepers.values()):
            self._repairs.close(Kind.MODEL_UNUSABLE, model)
        self._control.granted(self._leases.worker_removed(worker))
        for kind in (Kind.WORKER_CRASH_LOOP, Kind.WORKER_MEMORY):
            self._repairs.close(kind, worker)

    def expect(self, worker: str, model: str) -> None:
        """That worker is the one whose model answers from now on, as soon as it is ready."""
        self._control.granted(self._leases.set_default_model(model))
        adapters = [each.name for each in self._keepers[worker].spec.adapters]
        self._control.granted(self._leases.worker_expected(worker, model=model, adapters=adapters))

    def closing(self, worker: str) -> int:
        """A worker gets no more leases; returns how many it has."""
        self._leases.worker_retiring(worker)
        return self._leases.leases_of(worker)

    async def idle(self, worker: str) -> None:
        """Returns when a worker has no lease."""
        await self._control.idle(worker)

    # --- inside --------------------------------------------------------------------------------------------------

    async def _prove(self) -> None:
        """Returns when every subsystem has shown that it lives: SubsystemDead, or no end, when one does not."""
        for name, task in self._tasks.items():
            if task.done():
                raise SubsystemDead(f"nobody looks after worker {name} any more")
        self._forkserver.look_after()
        await self._control.prove()

    def _look_at(self, settings: Settings) -> None:
        """Opens and closes the repairs that the configuration itself gives reason for."""
        warnings = [(f"{each.file}:{each.line}", str(each)) for each in settings.warnings]
        self._repairs.only(Kind.CONFIGURATION_WARNING, warnings, self.reload)
        mode = settings.network.mode
        told = (
            []
            if mode is Mode.LOCAL
            else [(str(mode), f"mode {mode} is checked but not in effect yet: running as local")]
        )
        self._repairs.only(Kind.MODE_NOT_IN_EFFECT, told)

    def _load(self) -> Settings:
        try:
            return load(self._paths)
        except ConfigError as error:
            raise ReloadRefused(str(error)) from None

    async def _apply(self, settings: Settings) -> str:
        """Makes other settings take effect, as far as a running supervisor can; returns what happened, for people."""
        before, now = self._settings.appliance, settings.appliance
        changed = _changed_keys(before, now)
        listening = _changed_keys(self._settings.network, settings.network)
        done = [f"changed: {', '.join(changed + listening)}" if changed or listening else "nothing changed"]
        if now.text != before.text:
            # First: it is the one step that can fail, and then everything stays as it was.
            done.append(await self._text.reconfigure(now.text))
        self._settings = settings
        self._look_at(settings)
        if now.devices != before.devices:
            self.tpus.configure(now.devices)
        self._leases.placement = PLACEMENTS[now.scheduler.placement]
        self._leases.queue_limit = now.scheduler.queue_limit
        self._control.queue_timeout_s = now.scheduler.queue_timeout_s
        for keeper in self._keepers.values():
            keeper.restart_delay_s, keeper.drain_s = now.supervisor.restart_delay_s, now.supervisor.drain_s
            keeper.limit_memory(_memory_limit_bytes(now, keeper.spec.kind))
            keeper.invoke_limit_s = 0.0 if keeper.spec.kind == "text" else now.inference.invoke_limit_s
        self._tensors.settings = now.inference
        self._invocations.limit = now.scheduler.queue_limit
        if theirs := [key for key in changed if key in gateway_part(now)]:
            done.append(f"gateway processes that know {', '.join(theirs)} take the place of those that serve")
        sections = {key.partition(".")[0] for key in listening}
        if self._network is not None and sections & {"mode", "interfaces", "vlans", "firewall", "drift"}:
            done.append("the network takes them with 'coral-reef net apply'")
        if "interfaces" in sections:
            done.append("the USB link takes them with 'systemctl restart coral-reef-gadget'")
        if later := [key for key in listening if key.startswith("api.")]:
            done.append(f"not before the next start: {', '.join(later)}")
        return "; ".join(done)

    def _hung_up(self) -> None:
        """SIGHUP: reload, as daemons do; the reason of a refusal is in the log and in the repairs."""

        self._run_beside(self.reload(), but=ReloadRefused)

    def _run_beside(self, work: Coroutine[None, None, str], *, but: type[Exception]) -> None:
        """Runs it for whom nobody waits; `but` is told elsewhere."""

        async def run() -> None:
            with contextlib.suppress(but):
                await work

        task = asyncio.create_task(run(), name="beside")
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    def _repair_changed(self, repair: Repair, gone: bool) -> None:
        self._control.publish(Topic.REPAIR, RepairChanged(repair=repair, gone=gone))
        (log.info if gone else log.warning)(
            "repair %s%s: %s", repair.id, " is over" if gone else "", repair.what
        )

    def _keeper_ended(self, task: asyncio.Task[None]) -> None:
        """One that ends by itself has a bug, and takes the supervisor with it for systemd to restart."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._bug = error
            self._stop.set()

    def _workers(self) -> list[WorkerStatus]:
        """Those that write first."""
        found = []
        for name, keeper in sorted(self._keepers.items(), key=lambda each: each[1].spec.kind != "text"):
            status = keeper.status(self.leases_of(name))
            if self._tensors.serves(name):
                detail = status.detail or self._tensors.detail(name)
                slots = self._tensors.capacity(name)
                status = msgspec.structs.replace(status, detail=detail, slots=slots)
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
            loaded = [keeper for keeper in self._keepers.values() if _runs(keeper.spec, str(model.path))]
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
        """What `systemctl status` shows: which models are served, what is the matter with the workers, what waits."""
        ready = [keeper for keeper in self._keepers.values() if keeper.state is WorkerState.READY]
        served = ", ".join(sorted({keeper.spec.model for keeper in ready}))
        parts = [f"{len(ready)} of {len(self._keepers)} workers ready" + (f" ({served})" if ready else "")]
        for name, keeper in self._keepers.items():
            if detail := keeper.status(0).detail:
                parts.append(f"{name} {keeper.state}: {detail}")
        if repairs := len(self._repairs.all()):
            parts.append(f"{repairs} repair{'s' * (repairs != 1)} waiting")
        return "; ".join(parts).replace("\n", " ")[:SUMMARY_LIMIT_CHARS]

    def _why_none_is_ready(self) -> str:
        """What the workers last said; empty when one is ready, or when none has failed."""
        text = [keeper for keeper in self._keepers.values() if keeper.spec.kind == "text"]
        if any(keeper.state is WorkerState.READY for keeper in text):
            return ""
        return "; ".join(filter(None, (keeper.status(0).detail for keeper in text)))

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
                await self._control.idle()
        except TimeoutError:
            log.warning("%d replies did not end in time", self._leases.leases + self._invocations.leases)


def _memory_limit_bytes(appliance: Appliance, kind: str) -> int:
    """What a worker of that kind may use; 0: no limit."""
    limit_mib = appliance.text.memory_limit_mib if kind == "text" else appliance.inference.memory_limit_mib
    return limit_mib * 1024 * 1024


def _runs(spec: WorkerSpec, model_path: str) -> bool:
    """Whether a worker has that file for a model."""
    return model_path in (spec.model_path, *(model.twin for model in spec.models))


def _changed_keys(before: msgspec.Struct, after: msgspec.Struct) -> list[str]:
    """The `section.key` in which two settings differ."""
    old, new = by_key(before), by_key(after)
    return [key for key in new if old[key] != new[key]]
