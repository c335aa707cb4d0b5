"""Care of one worker: started, watched, restarted with growing patience, stopped.

Its life, and what may follow on what, is the table `NEXT`; everything that happens to it goes through `_enter`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from appliance.inference.models import Model
from appliance.wire.errors import FrameError
from appliance.wire.frames import Decoder
from appliance.wire.messages import (
    FromWorkerPipe,
    Message,
    WorkerFailed,
    WorkerReady,
    WorkerSpec,
    WorkerState,
    WorkerStatus,
)

from .errors import ForkserverFailed
from .forkserver import Forkserver

log = logging.getLogger(__name__)

#: state -> the states that may follow it
NEXT: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.WAITING: frozenset({WorkerState.STARTING, WorkerState.STOPPING}),
    WorkerState.STARTING: frozenset({WorkerState.READY, WorkerState.WAITING, WorkerState.STOPPING}),
    WorkerState.READY: frozenset({WorkerState.WAITING, WorkerState.STOPPING}),
    WorkerState.STOPPING: frozenset(),
}

#: A restart waits this long at most, however often it failed.
RESTART_DELAY_LIMIT_S = 30.0

#: However little the owner allows, and however often it doubles: 2**1024 is more than a float holds.
RESTART_DELAY_FLOOR_S = 0.05
DOUBLINGS_LIMIT = 16

#: A worker that was ready for this long may be restarted without delay again.
SETTLED_S = 10.0

#: Loading holds the interpreter's lock, so silence is normal: a floor for the start, and the slowest disk to allow for.
LOAD_FLOOR_S = 60.0
LOAD_BYTES_PER_S = 20 * 1024 * 1024

#: How often the resident set is read.
MEMORY_PERIOD_S = 2.0

#: After SIGTERM a worker drains its streams (5 s); then it is killed.
STOP_TIMEOUT_S = 8.0


class WorkerEvents(Protocol):
    """Who needs to know."""

    def worker_ready(self, name: str, *, model: str, slots: int) -> None: ...

    def worker_gone(self, name: str) -> None: ...


def resident_bytes(pid: int) -> int:
    """Resident set of a process, 0 when it is gone. proc(5), statm."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


class WorkerKeeper:
    """Keeps one worker alive until `stop`."""

    def __init__(
        self,
        spec: WorkerSpec,
        model: Model,
        forkserver: Forkserver,
        events: WorkerEvents,
        *,
        restart_delay_s: float,
        memory_limit_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec, self.model = spec, model
        self._forkserver, self._events = forkserver, events
        self._restart_delay_s, self._memory_limit_bytes = restart_delay_s, memory_limit_bytes
        self._clock = clock
        self._state = WorkerState.WAITING
        self._since = clock()
        self._pid = 0
        self._restarts = 0
        self._failures = 0
        self._detail = ""
        self.context_tokens = 0
        self._exited: asyncio.Future[int] | None = None

    @property
    def state(self) -> WorkerState:
        return self._state

    @property
    def pid(self) -> int:
        """The process, 0 when there is none."""
        return self._pid

    def status(self, leases: int) -> WorkerStatus:
        """What `coral-reef status` shows."""
        return WorkerStatus(
            name=self.spec.name,
            kind=self.spec.kind,
            model=self.spec.model,
            state=self._state,
            pid=self._pid,
            leases=leases,
            slots=self.spec.slots,
            restarts=self._restarts,
            rss_bytes=resident_bytes(self._pid) if self._pid else 0,
            since_s=self._clock() - self._since,
            detail=self._detail,
        )

    async def run(self) -> None:
        """Starts the worker again whenever it ends; returns only by cancellation, with the worker stopped."""
        try:
            while True:
                await self._once()
                delay = self._restart_delay_s * 2 ** min(self._failures, DOUBLINGS_LIMIT)
                delay = min(max(delay, RESTART_DELAY_FLOOR_S), RESTART_DELAY_LIMIT_S)
                self._failures += 1
                self._restarts += 1
                await asyncio.sleep(delay)
        finally:
            self._enter(WorkerState.STOPPING, "")
            await self._terminate()

    def exited(self, pid: int, status: int) -> None:
        """The forkserver says that a worker of this process id ended."""
        if pid == self._pid and self._exited is not None and not self._exited.done():
            self._exited.set_result(status)

    async def _once(self) -> None:
        """One life of the worker, from its fork to its end."""
        loop = asyncio.get_running_loop()
        self._exited = loop.create_future()
        self._enter(WorkerState.STARTING, "")
        read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read, False)
        reports: asyncio.Queue[Message | None] = asyncio.Queue()
        loop.add_reader(read, self._read_pipe, read, Decoder[Message](FromWorkerPipe), reports)
        try:
            try:
                self._pid = await self._forkserver.spawn(self.spec, write)
            except ForkserverFailed as error:
                self._enter(WorkerState.WAITING, str(error))
                return
            finally:
                os.close(write)
            await self._watch(reports)
        finally:
            loop.remove_reader(read)
            os.close(read)

    async def _watch(self, reports: asyncio.Queue[Message | None]) -> None:
        assert self._exited is not None
        deadline_s = LOAD_FLOOR_S + self.spec.model_size_bytes / LOAD_BYTES_PER_S
        problem = ""
        try:
            async with asyncio.timeout(deadline_s):
                report = await reports.get()
        except TimeoutError:
            report = None
            problem = f"not loaded after {deadline_s:.0f} s"
            self._send(signal.SIGKILL)
        match report:
            case WorkerReady(context_tokens=context_tokens, load_s=load_s):
                self.context_tokens = context_tokens
                self._enter(WorkerState.READY, "")
                log.info(
                    "worker %s is ready: %s, %d slots of %d tokens, loaded in %.2f s",
                    self.spec.name,
                    self.spec.model,
                    self.spec.slots,
                    context_tokens,
                    load_s,
                )
                self._events.worker_ready(self.spec.name, model=self.spec.model, slots=self.spec.slots)
                problem = await self._guard_memory()
            case WorkerFailed(message=message):
                problem = message
        status = await self._exited
        self._pid = 0
        self._events.worker_gone(self.spec.name)
        if self._state is WorkerState.READY and self._clock() - self._since > SETTLED_S:
            self._failures = 0
        problem = problem or describe_exit(status)
        self._enter(WorkerState.WAITING, problem)
        log.error("worker %s: %s; it is restarted", self.spec.name, problem)

    async def _guard_memory(self) -> str:
        """Waits for the worker's end; kills it when it grows beyond its limit, and says so."""
        assert self._exited is not None
        limit = self._memory_limit_bytes
        while True:
            done, _ = await asyncio.wait([self._exited], timeout=MEMORY_PERIOD_S if limit else None)
            if done:
                return ""
            used = resident_bytes(self._pid)
            if used > limit:
                self._send(signal.SIGKILL)
                return f"used {used >> 20} MiB of memory, its limit is {limit >> 20} MiB"

    def _read_pipe(
        self, read: int, decoder: Decoder[Message], reports: asyncio.Queue[Message | None]
    ) -> None:
        try:
            data = os.read(read, 65_536)
            for message in decoder.feed(data):
                reports.put_nowait(message)
        except BlockingIOError:
            return
        except FrameError as error:
            log.error("worker %s: %s", self.spec.name, error)
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(read)
            reports.put_nowait(None)

    async def _terminate(self) -> None:
        if not self._pid or self._exited is None:
            return
        self._send(signal.SIGTERM)
        done, _ = await asyncio.wait([self._exited], timeout=STOP_TIMEOUT_S)
        if not done:
            log.warning("worker %s did not stop in %.0f s: killing it", self.spec.name, STOP_TIMEOUT_S)
            self._send(signal.SIGKILL)
            await asyncio.wait([self._exited])
        self._pid = 0

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # gone already: its end is on the way to us
            os.kill(self._pid, number)

    def _enter(self, state: WorkerState, detail: str) -> None:
        if state not in NEXT[self._state]:
            raise AssertionError(f"worker {self.spec.name}: {self._state} cannot become {state}")
        self._state, self._since, self._detail = state, self._clock(), detail


def describe_exit(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        known = {each.value: each.name for each in signal.Signals}  # real-time signals have no name there
        return f"ended by {known.get(number, f'signal {number}')}"
    return f"ended with status {os.waitstatus_to_exitcode(status)}"
