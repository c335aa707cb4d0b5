"""Care of one worker: started, watched, restarted with growing patience, stopped.

Its life, and what may follow on what, is the table `NEXT`; everything that happens to it goes through `_enter`.
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
from collections.abc import Callable, Collection
from typing import Protocol

from appliance.inference.errors import InferenceError
from appliance.process import resident_bytes
from appliance.wire.errors import FrameError
from appliance.wire.frames import Decoder, encode
from appliance.wire.messages import (
    EngineBuild,
    FromWorkerPipe,
    Message,
    TpuReport,
    TpuStep,
    WorkerFailed,
    WorkerPulse,
    WorkerReady,
    WorkerSpec,
    WorkerState,
    WorkerStatus,
)

from .cgroups import Group, Groups, machine_oom_kills
from .errors import ForkserverFailed, RestartFailed
from .forkserver import Forkserver

log = logging.getLogger(__name__)

#: state -> the states that may follow it
NEXT: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.WAITING: frozenset({WorkerState.STARTING, WorkerState.STOPPING}),
    WorkerState.STARTING: frozenset({WorkerState.READY, WorkerState.WAITING, WorkerState.STOPPING}),
    WorkerState.READY: frozenset({WorkerState.DRAINING, WorkerState.WAITING, WorkerState.STOPPING}),
    WorkerState.DRAINING: frozenset({WorkerState.WAITING, WorkerState.STOPPING}),
    WorkerState.STOPPING: frozenset(),
}

#: A restart waits this long at most, however often it failed; after a life in which it could be used, so long that requests,
#: which wait ten seconds for it, are still there.
RESTART_DELAY_LIMIT_S = 30.0
READY_RESTART_DELAY_LIMIT_S = 5.0

#: However little the owner allows, and however often it doubles: 2**1024 is more than a float holds.
RESTART_DELAY_FLOOR_S = 0.05
DOUBLINGS_LIMIT = 16

#: A worker that was ready for this long may be restarted without delay again.
SETTLED_S = 10.0

#: Loading holds the interpreter's lock, so silence is normal: a floor for the start, and the slowest disk to allow for.
LOAD_FLOOR_S = 60.0
LOAD_BYTES_PER_S = 20 * 1024 * 1024

#: One that was killed for its memory is trusted again after this.
MEMORY_SETTLED_S = 600.0

#: So many short lives in a row are a loop that somebody should look at; it is tried again all the same.
CRASH_LOOP = 3

#: How often memory and progress are looked at; the worker's pulse comes as often.
GUARD_PERIOD_S = 2.0

#: Without a step of the engine for this long, or for so many times what a step takes, a worker with leases has stalled.
STALL_FLOOR_S = 10.0
STALL_STEPS = 20

#: Without a pulse for this long a worker hangs, whether it has leases or not.
SILENCE_LIMIT_S = 30.0

#: After SIGTERM a worker drains its streams (5 s); then it is killed.
STOP_TIMEOUT_S = 8.0


class WorkerEvents(Protocol):
    """Who needs to know."""

    def worker_ready(self, name: str, *, model: str, slots: int, adapters: Collection[str]) -> None: ...

    def closing(self, worker: str) -> int: ...

    def worker_gone(self, name: str) -> None: ...

    def worker_changed(self, name: str) -> None: ...

    def leases_of(self, name: str) -> int: ...

    async def idle(self, worker: str) -> None: ...

    def tpu_report(self, worker: str, report: TpuReport) -> None: ...


class WorkerKeeper:
    """Keeps one worker alive until `stop`."""

    def __init__(
        self,
        spec: WorkerSpec,
        plan: Callable[[], WorkerSpec],
        forkserver: Forkserver,
        events: WorkerEvents,
        *,
        restart_delay_s: float,
        drain_s: float,
        memory_limit_bytes: int,
        invoke_limit_s: float = 0.0,
        groups: Groups | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`spec` is what is known now; `plan` is asked before each start, so that a model that was repaired or added is found.
        It may raise InferenceError. With `invoke_limit_s`, an invoke that has not returned after it ends the worker."""
        self.spec, self._plan = spec, plan
        self._forkserver, self._events = forkserver, events
        self.restart_delay_s, self.drain_s = restart_delay_s, drain_s
        self.memory_limit_bytes, self.invoke_limit_s = memory_limit_bytes, invoke_limit_s
        self._groups = groups or Groups(None)
        self._group: Group | None = None
        self._clock = clock
        self._state = WorkerState.WAITING
        self._since = clock()
        self._pid = 0
        self._restarts = 0
        self._failures = 0
        self._detail = ""
        self.context_tokens = 0
        #: Why the engine did not load the last time, as InferenceError's `code`; empty when it did.
        self.failure_code = ""
        self._engine: EngineBuild | None = None
        self._asked = self._was_ready = False
        self._hurry = asyncio.Event()
        self._entered = asyncio.Event()
        self._lives = 0
        self._short_lives = 0
        #: What is to be said of its memory: it was killed for it, and has not lived within it for long since. Else empty.
        self.outgrew = ""
        # Of the last two looks: it may have counted this worker's end some moments before we hear of it.
        self._machine_oom_kills: deque[int] = deque(maxlen=2)
        self._steps, self._step_s, self._stepped, self._heard = 0, 0.0, clock(), clock()
        self._told_bytes = 0
        self._exited: asyncio.Future[int] | None = None
        self._pipe: socket.socket | None = None
        #: Set when it has ended or wedged.
        self._changed = asyncio.Event()
        self._wedged = False
        #: Why some of its models cannot be used.
        self.refused: dict[str, str] = {}

    @property
    def state(self) -> WorkerState:
        return self._state

    @property
    def pid(self) -> int:
        """The process, 0 when there is none."""
        return self._pid

    @property
    def crash_loop(self) -> bool:
        """Whether it has died young several times in a row."""
        return self._short_lives >= CRASH_LOOP

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
            rss_bytes=self._resident_bytes(),
            since_s=self._clock() - self._since,
            detail=self._detail,
            engine=self._engine,
        )

    async def run(self) -> None:
        """Starts the worker again whenever it ends; returns only by cancellation, with the worker stopped."""
        try:
            while True:
                self._asked = self._was_ready = False
                await self._once()
                self._restarts += 1
                if self._asked:
                    continue
                delay = self.restart_delay_s * 2 ** min(self._failures, DOUBLINGS_LIMIT)
                limit = READY_RESTART_DELAY_LIMIT_S if self._was_ready else RESTART_DELAY_LIMIT_S
                delay = min(max(delay, RESTART_DELAY_FLOOR_S), max(limit, self.restart_delay_s))
                self._failures += 1
                self._hurry.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._hurry.wait()
        finally:
            self._enter(WorkerState.STOPPING, "")
            await self._terminate()

    async def restart(self) -> None:
        """Lets the streams end, for at most `drain_s`, and starts the worker anew; at once when it waits for its restart.

        Returns when it is ready. RestartFailed when it does not become so.
        """
        lives = self._lives + (self._state is not WorkerState.STARTING)
        if self._state is WorkerState.READY:
            self._asked = True
            self._enter(WorkerState.DRAINING, "restarts as asked")
            self._events.closing(self.spec.name)
            try:
                async with asyncio.timeout(self.drain_s):
                    await self._events.idle(self.spec.name)
            except TimeoutError:
                log.warning("worker %s: replies did not end in %.0f s", self.spec.name, self.drain_s)
            await self._terminate()
        self._hurry.set()
        while self._lives < lives or self._state is WorkerState.STARTING:
            if self._state is WorkerState.STOPPING:
                break
            await self._entered.wait()
        if self._state is not WorkerState.READY:
            raise RestartFailed(f"worker {self.spec.name} is {self._state}: {self._detail}")

    def limit_memory(self, limit_bytes: int) -> None:
        """Another limit, for the life that is and those that follow; what was said of the one before is over."""
        if limit_bytes == self.memory_limit_bytes:
            return
        self.memory_limit_bytes, self.outgrew = limit_bytes, ""
        if self._group is not None:
            with contextlib.suppress(OSError):  # its resident set is looked at all the same
                self._group.limit_memory(limit_bytes)
        self._events.worker_changed(self.spec.name)

    def tell(self, message: Message) -> None:
        """Says something to the worker through its pipe; nothing when there is none."""
        if self._pipe is not None:
            # It reads at once, and what it is told is small: a pipe that is full is that of a worker about to be ended.
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self._pipe.send(encode(message))

    def exited(self, pid: int, status: int) -> None:
        """The forkserver says that a worker of this process id ended."""
        if pid == self._pid and self._exited is not None and not self._exited.done():
            self._exited.set_result(status)
            self._changed.set()

    async def _once(self) -> None:
        """One life of the worker, from its fork to its end."""
        loop = asyncio.get_running_loop()
        before = self._detail
        self._lives += 1
        self._machine_oom_kills.append(machine_oom_kills())
        self._enter(WorkerState.STARTING, "")
        try:
            self.spec = self._plan()
        except InferenceError as error:
            self.failure_code = error.code
            if str(error) != before:
                log.error("worker %s cannot start: %s", self.spec.name, error)
            self._enter(WorkerState.WAITING, str(error))
            return
        self._exited = loop.create_future()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        self._pipe, read = ours, ours.fileno()
        self._changed.clear()
        self._wedged = False
        reports: asyncio.Queue[Message | None] = asyncio.Queue()
        loop.add_reader(read, self._read_pipe, read, Decoder[Message](FromWorkerPipe), reports)
        try:
            try:
                self._pid = await self._forkserver.spawn(self.spec, theirs.fileno())
            except ForkserverFailed as error:
                self._enter(WorkerState.WAITING, str(error))
                return
            finally:
                theirs.close()
            self._group = self._groups.make(self.spec.name, memory_limit_bytes=self.memory_limit_bytes)
            if self._group is not None:
                with contextlib.suppress(OSError):  # it has ended already: `_watch` hears of it
                    self._group.enter(self._pid)
            await self._watch(reports)
        finally:
            loop.remove_reader(read)
            ours.close()
            self._pipe = None
            if self._group is not None:
                self._group.close()
                self._group = None

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
            case WorkerReady():
                problem = await self._serving(report, reports)
            case WorkerFailed(code=code, message=message):
                self.failure_code, problem = code, message
        status = await self._exited
        lived_s = self._clock() - self._since
        settled = self._state in (WorkerState.READY, WorkerState.DRAINING) and lived_s > SETTLED_S
        if self._group is not None and self._group.oom_kills():
            problem = self._outgrown("the kernel ended it")
        elif not problem and describe_exit(status) == "ended by SIGKILL" and self._memory_was_short():
            self.outgrew = problem = "ended by the kernel: there was no memory left for it"
        self._pid = 0
        self._events.worker_gone(self.spec.name)
        if self._asked:
            self._enter(WorkerState.WAITING, "")
            log.info("worker %s ended as asked; it is started anew", self.spec.name)
            return
        self._failures = 0 if settled else self._failures
        self._short_lives = 0 if settled else self._short_lives + 1
        problem = problem or describe_exit(status)
        self._enter(WorkerState.WAITING, problem)
        log.error("worker %s: %s; it is restarted", self.spec.name, problem)

    async def _serving(self, ready: WorkerReady, reports: asyncio.Queue[Message | None]) -> str:
        """From readiness to the end; returns why it had to be ended, if it had to."""
        name = self.spec.name
        self.context_tokens, self._engine, self.failure_code = ready.context_tokens, ready.engine, ""
        self.refused = ready.refused
        self._steps, self._step_s, self._stepped, self._heard = 0, 0.0, self._clock(), self._clock()
        self._told_bytes = 0
        self._enter(WorkerState.READY, "")
        self._was_ready = True
        window = f", {self.spec.slots} slots of {ready.context_tokens} tokens" if ready.context_tokens else ""
        log.info("worker %s is ready: %s%s, loaded in %.2f s", name, self.spec.model, window, ready.load_s)
        self._events.worker_ready(name, model=self.spec.model, slots=self.spec.slots, adapters=ready.adapters)
        loop = asyncio.get_running_loop()
        timers = (loop.call_later(SETTLED_S, self._settled), loop.call_later(MEMORY_SETTLED_S, self._fits))
        try:
            return await self._guard(reports)
        finally:
            for timer in timers:
                timer.cancel()

    def _settled(self) -> None:
        """It has been ready for long enough: no crash loop."""
        self._short_lives = 0
        self._events.worker_changed(self.spec.name)

    def _fits(self) -> None:
        """It has lived within its memory for long enough."""
        self.outgrew = ""
        self._events.worker_changed(self.spec.name)

    async def _guard(self, reports: asyncio.Queue[Message | None]) -> str:
        """Waits for the worker's end; kills it when it grows beyond its limit or stalls, and says so."""
        assert self._exited is not None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GUARD_PERIOD_S):
                    await self._changed.wait()
            self._changed.clear()
            if self._exited.done():
                return ""
            self._hear(reports)
            self._machine_oom_kills.append(machine_oom_kills())
            used, limit = self._resident_bytes(), self.memory_limit_bytes
            problem = ""
            if self._wedged:
                problem = f"an invoke did not return within {self.invoke_limit_s:g} s"
            elif limit and used > limit:
                problem = self._outgrown(f"used {used >> 20} MiB")
            elif (silent := self._clock() - self._stepped) > self._stall_limit_s():
                problem = f"stalled: no step of the engine for {silent:.0f} s with replies under way"
            elif (silent := self._clock() - self._heard) > SILENCE_LIMIT_S:
                problem = f"hangs: no sign of life for {silent:.0f} s"
            if problem:
                self._send(signal.SIGKILL)
                return problem

    def _hear(self, reports: asyncio.Queue[Message | None]) -> None:
        """Takes the worker's pulses: when did its engine last do something that it had to do?"""
        while not reports.empty():
            match reports.get_nowait():
                case WorkerPulse(steps=steps, step_s=step_s, streams=streams, rss_bytes=rss_bytes):
                    self._told_bytes = rss_bytes
                    if steps != self._steps or not streams:
                        self._stepped = self._clock()
                    self._steps, self._step_s, self._heard = steps, step_s, self._clock()
        if not self._events.leases_of(self.spec.name):
            self._stepped = self._clock()  # nothing to do is no stall

    def _resident_bytes(self) -> int:
        """As it is; where other users' processes are out of our sight, as the worker last said."""
        return (resident_bytes(self._pid) or self._told_bytes) if self._pid else 0

    def _stall_limit_s(self) -> float:
        return max(STALL_FLOOR_S, STALL_STEPS * self._step_s)

    def _outgrown(self, how: str) -> str:
        limit = f"{self.memory_limit_bytes >> 20} MiB"
        self.outgrew = f"needed more than its {limit} of memory"
        return f"{how}: its memory limit is {limit}"

    def _memory_was_short(self) -> bool:
        """Whether the kernel ended something for want of memory just now: a worker that was killed then was that."""
        return machine_oom_kills() > self._machine_oom_kills[0]

    def _read_pipe(
        self, read: int, decoder: Decoder[Message], reports: asyncio.Queue[Message | None]
    ) -> None:
        try:
            data = os.read(read, 65_536)
            for message in decoder.feed(data):
                if isinstance(message, TpuReport):
                    self._events.tpu_report(self.spec.name, message)
                    continue
                if isinstance(message, WorkerPulse):
                    self._look_at(message)
                reports.put_nowait(message)
        except BlockingIOError:
            return
        except ConnectionError:  # it ended without having read everything
            data = b""
        except FrameError as error:
            log.error("worker %s: %s", self.spec.name, error)
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(read)
            reports.put_nowait(None)

    def _look_at(self, pulse: WorkerPulse) -> None:
        """Whether a device of the worker has wedged: nothing but its end frees it."""
        limit_s = self.invoke_limit_s
        if limit_s and pulse.stuck_s > limit_s and not self._wedged:
            self._wedged = True
            self._changed.set()
            detail = f"an invoke did not return within {limit_s:g} s"
            self._events.tpu_report(
                self.spec.name, TpuReport(id=pulse.stuck, step=TpuStep.FAILED, detail=detail)
            )

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
        self._entered.set()
        self._entered = asyncio.Event()
        self._events.worker_changed(self.spec.name)


def describe_exit(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        known = {each.value: each.name for each in signal.Signals}  # real-time signals have no name there
        return f"ended by {known.get(number, f'signal {number}')}"
    return f"ended with status {os.waitstatus_to_exitcode(status)}"
