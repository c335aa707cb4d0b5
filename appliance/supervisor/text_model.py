"""The model that writes the replies: which one, what its worker is told, and how another takes its place while replies go on.

Workers are named text-1, text-2, ...: a load starts the next one beside the one that serves. When it is ready, new leases go to
it alone; the one before finishes its replies and is stopped. When it fails, everything stays as it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from appliance.config.appliance import Text
from appliance.inference import models
from appliance.inference.choice import choose_model, chosen_model
from appliance.inference.errors import EngineFailed, InferenceError, ModelRefused
from appliance.paths import Paths
from appliance.wire.messages import (
    AdapterFile,
    Message,
    ModelLoad,
    ModelLoaded,
    ModelLoading,
    WorkerSpec,
    WorkerState,
)

from .errors import ReloadRefused
from .workers import LOAD_BYTES_PER_S, LOAD_FLOOR_S, WorkerKeeper

log = logging.getLogger(__name__)

#: A model whose manifest names no window gets this one, in tokens a slot.
DEFAULT_CONTEXT_TOKENS = 4096

#: However large a model's window is, a slot gets this much unless the owner says more: the KV cache grows with it.
CONTEXT_LIMIT_TOKENS = 8192

#: The longest reply that may be asked for, 32,768 tokens, takes this long at nine tokens a second. Both models are in memory
#: meanwhile.
DRAIN_LIMIT_S = 3600.0

#: Between two looks at a worker that loads.
LOOK_S = 0.05


class Workers(Protocol):
    """What the supervisor does with workers."""

    def start(
        self, spec: WorkerSpec, plan: Callable[[], WorkerSpec], memory_limit_bytes: int
    ) -> WorkerKeeper: ...

    async def stop(self, worker: str) -> None: ...

    def expect(self, worker: str, model: str) -> None:
        """It is the one that answers from now on, as soon as it is ready."""
        ...

    def closing(self, worker: str) -> int:
        """It gets no more leases; returns how many it has."""
        ...

    async def idle(self, worker: str) -> None:
        """Returns when it has none left."""
        ...


class TextModel:
    """Owns the choice of the model and the text workers."""

    def __init__(self, paths: Paths, settings: Text, workers: Workers) -> None:
        self._paths, self._settings, self._workers = paths, settings, workers
        self.model = chosen_model(paths, settings.model)
        self._count = 0
        self._worker = ""
        self._keeper: WorkerKeeper | None = None
        self._incoming = ""
        self._taken_over: asyncio.Future[int] | None = None
        self._retiring: dict[str, asyncio.Task[None]] = {}
        self._loading = ""
        self._closed = False

    @property
    def configured(self) -> str:
        """What appliance.toml says."""
        return self._settings.model

    def start(self) -> None:
        """The worker of the model that was chosen last, or is configured. One that cannot be loaded yet is looked for again and
        again: see the worker's `detail`."""
        self._worker, self._keeper = self._start(self.model)
        self._workers.expect(self._worker, self.model)

    def ready(self, worker: str) -> bool:
        """A worker has loaded its model. False when it is to take no leases: it was on its way out and died."""
        if worker == self._incoming:
            # At this very moment: whoever waits for a place gets one on the new worker.
            self._take_over(worker)
        return worker not in self._retiring

    def serves(self, worker: str) -> bool:
        """Whether it is the one that gets the leases, now or when it has started."""
        return worker == self._worker

    async def reconfigure(self, settings: Text) -> str:
        """Other settings: they take effect by a fresh worker, as `load` brings it in. Returns what happened, for people.

        ReloadRefused when the model cannot be loaded with them: everything stays as it was.
        """
        before, self._settings = self._settings, settings
        model = settings.model if settings.model != before.model else self.model
        request = ModelLoad(request_id="reload", model=model)
        try:
            loaded = await self.load(request, lambda _progress: None)
        except InferenceError as error:
            self._settings = before
            raise ReloadRefused(f"text: {model}: {error}") from error
        return f"{loaded.model} serves on {loaded.worker}"

    def retiring(self, worker: str) -> bool:
        """Whether it only finishes its replies."""
        return worker in self._retiring

    async def load(self, request: ModelLoad, tell: Callable[[Message], None]) -> ModelLoaded:
        """Replaces the model by another, or by a newer file of the same name. `tell` hears when the loading begins.

        ModelUnknown, ModelRefused, ManifestBroken, or EngineFailed with what the worker said; the model before goes on then.
        """
        if self._closed:
            raise ModelRefused("the appliance is stopping")
        if self._loading:
            raise ModelRefused(f"{self._loading} is being loaded: try again when that is done")
        self._loading = request.model
        try:
            return await self._load(request, tell)
        finally:
            self._loading = self._incoming = ""

    async def close(self) -> None:
        """Starts no worker and waits for no reply any more; the supervisor stops the workers themselves."""
        self._closed = True
        for task in self._retiring.values():
            task.cancel()
        await asyncio.gather(*self._retiring.values(), return_exceptions=True)

    # --- inside --------------------------------------------------------------------------------------------------

    async def _load(self, request: ModelLoad, tell: Callable[[Message], None]) -> ModelLoaded:
        wanted = self._plan(
            self._worker, request.model
        )  # what cannot be loaded is refused before a worker is started
        if (
            self._keeper is not None
            and self._keeper.state is WorkerState.READY
            and self._keeper.spec == wanted
        ):
            return self._loaded(request, self._keeper, draining=0)
        taken_over = self._taken_over = asyncio.get_running_loop().create_future()
        worker, keeper = self._start(request.model)
        self._incoming = worker
        tell(
            ModelLoading(
                request_id=request.request_id,
                model=request.model,
                worker=worker,
                size_bytes=wanted.model_size_bytes,
                deadline_s=LOAD_FLOOR_S + wanted.model_size_bytes / LOAD_BYTES_PER_S,
            )
        )
        try:
            while not taken_over.done():
                status = keeper.status(0)
                if status.restarts:  # a keeper goes on trying, we do not
                    raise EngineFailed(status.detail)
                await asyncio.wait([taken_over], timeout=LOOK_S)
        except BaseException:
            if self._worker != worker:
                self._incoming = ""
                await self._workers.stop(worker)
            raise
        self._keeper = keeper
        return self._loaded(request, keeper, draining=taken_over.result())

    def _loaded(self, request: ModelLoad, keeper: WorkerKeeper, *, draining: int) -> ModelLoaded:
        return ModelLoaded(
            request_id=request.request_id,
            model=request.model,
            worker=keeper.spec.name,
            context_tokens=keeper.context_tokens,
            draining=draining,
        )

    def _take_over(self, worker: str) -> None:
        assert self._taken_over is not None
        before, self._worker, self._incoming = self._worker, worker, ""
        self.model = self._loading
        self._workers.expect(worker, self.model)
        try:
            choose_model(self._paths, self.model, self.configured)
        except OSError as error:
            log.error(
                "%s: %s: after a restart %s is loaded again",
                self._paths.model_choice,
                error.strerror,
                self.configured,
            )
        replies = self._workers.closing(before)
        log.info(
            "%s on %s takes over from %s, which finishes %d replies", self.model, worker, before, replies
        )
        self._retiring[before] = asyncio.create_task(self._retire(before), name=f"retiring {before}")
        self._taken_over.set_result(replies)

    async def _retire(self, worker: str) -> None:
        try:
            async with asyncio.timeout(DRAIN_LIMIT_S):
                await self._workers.idle(worker)
        except TimeoutError:
            log.warning("worker %s: its replies did not end in %.0f s; it is stopped", worker, DRAIN_LIMIT_S)
        await self._workers.stop(worker)
        del self._retiring[worker]

    def _start(self, model: str) -> tuple[str, WorkerKeeper]:
        self._count += 1
        worker = f"text-{self._count}"
        try:
            spec = self._plan(worker, model)
        except InferenceError:
            spec = self._spec(worker, model)  # the keeper asks again, and says what is wrong
        limit_bytes = self._settings.memory_limit_mib << 20
        return worker, self._workers.start(spec, lambda: self._plan(worker, model), limit_bytes)

    def _plan(self, worker: str, model: str) -> WorkerSpec:
        """What a worker is told, as the library is now."""
        found = models.find(self._paths, model)
        entry, text = found.entry, self._settings
        if entry.base:
            raise ModelRefused(
                f"{model} is an adapter of {entry.base}: load that one, then ask for the adapter in a request"
            )
        if entry.kind != "text":
            raise ModelRefused(f"{model} is a model for {entry.kind}: it cannot write replies")
        limit = text.memory_limit_mib << 20
        if limit and entry.size_bytes > limit:
            raise ModelRefused(
                f"{model} has {entry.size_bytes >> 20} MiB, and a worker may use {text.memory_limit_mib}: "
                "raise memory_limit_mib in [text] of appliance.toml"
            )
        trained = entry.context_tokens or DEFAULT_CONTEXT_TOKENS
        return self._spec(
            worker,
            model,
            path=str(found.path),
            sha256=entry.sha256,
            size_bytes=entry.size_bytes,
            context_tokens=text.context_tokens or min(trained, CONTEXT_LIMIT_TOKENS),
            adapters=[
                AdapterFile(
                    name=each.name,
                    path=str(each.path),
                    sha256=each.entry.sha256,
                    size_bytes=each.entry.size_bytes,
                )
                for each in models.adapters_of(self._paths, model)
            ],
        )

    def _spec(
        self,
        worker: str,
        model: str,
        *,
        path: str = "",
        sha256: str = "",
        size_bytes: int = 0,
        context_tokens: int = 0,
        adapters: Sequence[AdapterFile] = (),
    ) -> WorkerSpec:
        text = self._settings
        return WorkerSpec(
            name=worker,
            kind="text",
            model=model,
            model_path=path,
            model_sha256=sha256,
            model_size_bytes=size_bytes,
            socket=str(self._paths.workers / f"{worker}.sock"),
            folder=str(self._paths.workers / worker),
            slots=text.slots,
            threads=text.threads,
            context_tokens=context_tokens,
            batch_tokens=text.batch_tokens,
            cache_mib=text.cache_mib,
            adapters=list(adapters),
        )
