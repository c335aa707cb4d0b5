"""`appliance.chat.generator` over the wire: a lease from the supervisor, text straight from the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from appliance.chat.errors import GenerationFailed
from appliance.wire.errors import WireError
from appliance.wire.frames import connect
from appliance.wire.messages import (
    Finished,
    FromWorker,
    Generate,
    LeaseGranted,
    Sampling,
    Status,
    Turn,
    Usage,
)

from .links import SupervisorLink, WorkerLink


class LeasedGeneration:
    """A place on a worker, held by a lease."""

    def __init__(self, request_id: str, worker: WorkerLink) -> None:
        self._request_id, self._worker = request_id, worker
        self._cancelled = False
        self.usage = Usage()

    async def run(
        self, turns: Sequence[Turn], sampling: Sampling, on_text: Callable[[str], None]
    ) -> Finished:
        request = Generate(request_id=self._request_id, turns=list(turns), sampling=sampling)
        writing = asyncio.ensure_future(self._worker.generate(request, on_text))
        if self._cancelled:
            await asyncio.sleep(0)  # let it send the request before the cancel
            self._worker.cancel(self._request_id)
        finished = await writing
        self.usage = finished.usage
        return finished

    def cancel(self) -> None:
        self._cancelled = True
        self._worker.cancel(self._request_id)


class LeasedGenerator:
    """Leases and worker connections of one gateway process."""

    def __init__(self, supervisor: SupervisorLink) -> None:
        self._supervisor = supervisor
        self._workers: dict[str, WorkerLink] = {}
        self._connecting = asyncio.Lock()

    @asynccontextmanager
    async def lease(self, request_id: str, session_id: str) -> AsyncIterator[LeasedGeneration]:
        granted = await self._supervisor.lease(request_id, session_id)
        usage = Usage()
        try:
            generation = LeasedGeneration(request_id, await self._worker(granted))
            try:
                yield generation
            finally:
                usage = generation.usage
        finally:
            self._supervisor.settle(request_id, usage)

    @property
    def connected(self) -> bool:
        """Whether the supervisor can be reached."""
        return self._supervisor.connected

    async def status(self) -> Status:
        """What the supervisor knows."""
        return await self._supervisor.status()

    async def close(self) -> None:
        for worker in self._workers.values():
            await worker.close()
        await self._supervisor.close()

    async def _worker(self, granted: LeaseGranted) -> WorkerLink:
        async with self._connecting:
            link = self._workers.get(granted.worker)
            if link is None or not link.alive:
                try:
                    connection = await connect(granted.socket, FromWorker, name="gateway")
                except WireError as error:
                    raise GenerationFailed(
                        f"worker {granted.worker} cannot be reached: {error}", "worker_lost"
                    ) from error
                link = self._workers[granted.worker] = WorkerLink(connection, granted.worker)
            return link
