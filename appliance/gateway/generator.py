"""`appliance.chat.generator` over the wire: a lease from the supervisor, text straight from the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from appliance.chat.errors import GenerationFailed
from appliance.wire.messages import (
    Finished,
    Generate,
    LeaseGranted,
    Sampling,
    Status,
    Traffic,
    Turn,
    Usage,
)

from .events import Events
from .links import WORKER_LOST, SupervisorLink, WorkerLink, WorkerLinks

#: How often a place is asked for when its worker is gone before its first word, and the pause between, growing: a second in all.
PLACE_ATTEMPTS = 5
PLACE_PAUSE_S = 0.1

#: A reply that nobody reads along comes in pieces of so long, for each wakes this process. What a cancelled one says is not less.
WHOLE_PAUSE_S = 1.0


class LeasedGeneration:
    """A place on a worker, held by a lease."""

    def __init__(
        self, request_id: str, adapter: str, worker: WorkerLink, again: Callable[[], Awaitable[WorkerLink]]
    ) -> None:
        """`again` gives the lease back and takes another."""
        self._request_id, self._adapter, self._worker, self._again = request_id, adapter, worker, again
        self._cancelled = False
        self.usage = Usage()

    async def run(
        self,
        turns: Sequence[Turn],
        sampling: Sampling,
        on_text: Callable[[str], None],
        on_progress: Callable[[int, int], None],
        *,
        whole: bool = False,
    ) -> Finished:
        """Writes the reply. A worker that dies before its first word is replaced; nobody has heard of it."""
        request = Generate(
            request_id=self._request_id,
            turns=list(turns),
            sampling=sampling,
            adapter=self._adapter,
            pause_s=WHOLE_PAUSE_S if whole else 0.0,
        )
        said = False

        def tell(text: str) -> None:
            nonlocal said
            said = True
            on_text(text)

        for attempt in range(1, PLACE_ATTEMPTS + 1):
            try:
                end = self._worker.generate(request, tell, on_progress)
                if self._cancelled:
                    self._worker.cancel(self._request_id)
                finished = await end
            except GenerationFailed as error:
                if error.code != WORKER_LOST or said or self._cancelled or attempt == PLACE_ATTEMPTS:
                    raise
                self._worker = await self._again()
            else:
                self.usage = finished.usage
                return finished
        raise AssertionError("unreachable")

    def cancel(self) -> None:
        self._cancelled = True
        self._worker.cancel(self._request_id)


class LeasedGenerator:
    """Leases and worker connections of one gateway process."""

    def __init__(self, supervisor: SupervisorLink, workers: WorkerLinks) -> None:
        self._supervisor, self._workers = supervisor, workers

    @asynccontextmanager
    async def lease(
        self, request_id: str, session_id: str, *, model: str, adapter: str, on_queued: Callable[[int], None]
    ) -> AsyncIterator[LeasedGeneration]:
        async def place() -> WorkerLink:
            return await self._place(
                request_id,
                lambda: self._supervisor.lease(
                    request_id, session_id, model=model, adapter=adapter, on_queued=on_queued
                ),
            )

        async def again() -> WorkerLink:
            self._supervisor.settle(request_id, Usage())
            return await place()

        generation = LeasedGeneration(request_id, adapter, await place(), again)
        try:
            yield generation
        finally:
            self._supervisor.settle(request_id, generation.usage)

    async def _place(self, request_id: str, lease: Callable[[], Awaitable[LeaseGranted]]) -> WorkerLink:
        """A lease, and the connection to its worker. A worker that died a moment ago is given once more before the supervisor
        knows: the lease goes back and another is asked for."""
        for attempt in range(1, PLACE_ATTEMPTS + 1):
            granted = await lease()
            try:
                return await self._workers.to(granted)
            except BaseException as error:
                self._supervisor.settle(request_id, Usage())
                if attempt == PLACE_ATTEMPTS or not isinstance(error, GenerationFailed):
                    raise
            await asyncio.sleep(attempt * PLACE_PAUSE_S)
        raise AssertionError("unreachable")

    @property
    def connected(self) -> bool:
        """Whether the supervisor can be reached."""
        return self._supervisor.connected

    @property
    def events(self) -> Events:
        """What the supervisor tells of repairs and workers."""
        return self._supervisor.events

    async def status(self) -> Status:
        """What the supervisor knows."""
        return await self._supervisor.status()

    async def recent_status(self) -> Status:
        """What the supervisor knew a second ago, at the most."""
        return await self._supervisor.recent_status()

    async def traffic(self) -> Traffic:
        """What this machine's interfaces carry."""
        return await self._supervisor.traffic()

    async def close(self) -> None:
        await self._workers.close()
        await self._supervisor.close()
