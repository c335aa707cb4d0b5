"""The parent of the gateway processes: forks them onto the sockets, replaces what dies or falls silent, ends them in order.

It has the application imported and never used, so that a process is there in milliseconds. It has no loop and no thread, serves
nobody, and owns nothing that a fork would have to leave behind.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from types import FrameType

from setproctitle import setproctitle

from appliance.process import die_with_parent

log = logging.getLogger(__name__)

#: A process says this often that its loop turns; one that has been silent for longer hangs, and is replaced.
BEAT_S = 2.0
SILENCE_LIMIT_S = 30.0

#: What a process may take until it serves.
START_LIMIT_S = 60.0

#: So many that ended before they served, one after the other: those with the settings before go on, if there are any; and who has
#: nobody left that serves gives up. Otherwise it is tried again with growing patience.
FAILURES_LIMIT = 5
RESTART_S = 0.5
RESTART_LIMIT_S = 30.0

#: What a process may take beyond the time that its replies are given.
STOP_MARGIN_S = 10.0

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

_BEAT, _CHANGED = b".", b"c"


class Parent:
    """What a process tells its parent, through a pipe. `place` is the smallest number that no other living process has."""

    def __init__(self, pipe: int, place: int = 0) -> None:
        self._pipe, self.place = pipe, place

    def beat(self) -> None:
        """It serves."""
        self._tell(_BEAT)

    def changed(self) -> None:
        """The owner's settings may be others now."""
        self._tell(_CHANGED)

    def _tell(self, what: bytes) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # a stopped parent hears the next one
            os.write(self._pipe, what)


#: Runs in each process: serves, calling `beat` once it does and every BEAT_S from then on; returns the exit status.
Serve = Callable[[Parent], int]


@dataclass(frozen=True, eq=False)
class Plan:
    """How many processes run what, and how long their replies may go on when one has to end. `settings` is what it was made
    from: plans of equal settings do the same."""

    count: int
    serve: Serve
    drain_s: float
    settings: object


@dataclass
class _Process:
    """`pipe` is None when it has closed its end, `leaves_by` when it is killed after it was told to end."""

    pid: int
    place: int
    pipe: int | None
    plan: Plan
    heard: float
    serves: bool = False
    leaves_by: float | None = None


class Processes:
    """Keeps a plan's processes running, and replaces them one after the other by those of another plan: on SIGHUP, and when one
    tells that the settings changed and they have. When those of the other plan cannot serve, it goes back to the one before."""

    def __init__(
        self,
        plan: Plan,
        *,
        replan: Callable[[], Plan | None],
        tell: Callable[[str], object],
        serving: Callable[[], None],
        watchdog_s: float | None = None,
    ) -> None:
        """`replan` returns None to keep what runs; `tell` reaches systemd, which wants to hear us every `watchdog_s`; `serving`
        is called once, when the first process serves."""
        self._plan, self._replan = plan, replan
        self._proven: Plan | None = None
        self._refused: object = None
        self._trouble = ""
        self._tell, self._serving, self._watchdog_s = tell, serving, watchdog_s
        self._processes: dict[int, _Process] = {}
        self._failures, self._status = 0, 0
        self._not_before = 0.0
        self._told, self._said = False, ""
        self._stopping = self._reloading = self._changed = False
        self._wake = (-1, -1)

    def run(self) -> int:
        """Until SIGTERM, with status 0; or until processes fail again and again, with the status of the last one."""
        self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake[1])
        for number in _SIGNALS:
            signal.signal(number, self._signalled)
        try:
            while not self._stopping and not self._hopeless():
                self._look()
                self._reap()
                if self._reloading or self._changed:
                    self._begin_reload()
                self._fill()
                self._report()
            return self._end()
        finally:
            signal.set_wakeup_fd(-1)
            for descriptor in self._wake:
                os.close(descriptor)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stopping = True
        elif number == signal.SIGHUP:
            self._reloading = True

    def _hopeless(self) -> bool:
        return self._failures >= FAILURES_LIMIT and not any(each.serves for each in self._processes.values())

    # --- what happened ------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Waits for a signal, a beat, or the time to look after something; ends what has fallen silent or does not leave."""
        patience_s = min(self._watchdog_s or BEAT_S, BEAT_S)
        pause_s = self._not_before - time.monotonic()
        if pause_s > 0 or not self._processes:
            patience_s = max(0.0, min(pause_s, patience_s))
        pipes = {process.pipe: process for process in self._processes.values() if process.pipe is not None}
        readable, _, _ = select.select([self._wake[0], *pipes], [], [], patience_s)
        now = time.monotonic()
        for descriptor in readable:
            with contextlib.suppress(BlockingIOError):
                heard = os.read(descriptor, 4096)
                if descriptor in pipes:
                    self._hear(pipes[descriptor], heard, now)
        for process in self._processes.values():
            limit_s = SILENCE_LIMIT_S if process.serves else START_LIMIT_S
            if process.leaves_by is None and now - process.heard > limit_s:
                log.error("gateway process %d does not answer: killing it", process.pid)
                process.heard = now
                os.kill(process.pid, signal.SIGKILL)
            elif process.leaves_by is not None and now > process.leaves_by:
                log.warning("gateway process %d did not stop in time: killing it", process.pid)
                process.leaves_by = math.inf
                os.kill(process.pid, signal.SIGKILL)

    def _hear(self, process: _Process, heard: bytes, now: float) -> None:
        if not heard:  # SIGCHLD tells the rest; until then the end would be read again and again
            self._close_pipe(process)
            return
        process.heard = now
        self._changed |= _CHANGED in heard
        if _BEAT in heard and not process.serves:
            process.serves = True
            if process.plan is self._plan:
                self._failures = 0

    def _reap(self) -> None:
        while self._processes:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            process = self._processes.pop(pid)
            self._close_pipe(process)
            if process.leaves_by is not None:
                continue
            self._status = os.waitstatus_to_exitcode(status)
            log.error("gateway process %d ended with status %d; another takes its place", pid, self._status)
            if not process.serves and process.plan is self._plan:
                self._failures += 1
                pause_s = RESTART_S * 2.0 ** min(max(0, self._failures - FAILURES_LIMIT), 16)
                self._not_before = time.monotonic() + min(pause_s, RESTART_LIMIT_S)
                if self._failures >= FAILURES_LIMIT and self._proven not in (None, self._plan):
                    self._go_back()

    @staticmethod
    def _close_pipe(process: _Process) -> None:
        if process.pipe is not None:
            os.close(process.pipe)
            process.pipe = None

    def _begin_reload(self) -> None:
        """Takes another plan: any when asked by SIGHUP, else one of settings that were not tried. However many processes tell of
        one change, only the first finds it."""
        asked, self._reloading, self._changed = self._reloading, False, False
        if asked:
            self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        plan = self._replan()
        if plan is not None and (asked or plan.settings != self._refused):
            self._refused, self._trouble = None, ""
            if asked or plan.settings != self._plan.settings:
                log.info("%d new gateway processes take the place of those that serve", plan.count)
                self._plan, self._failures, self._not_before = plan, 0, 0.0
        if asked:
            self._tell("READY=1")

    def _go_back(self) -> None:
        """The processes of the new plan cannot serve: those of the one before do."""
        assert self._proven is not None
        self._trouble = f"with the new settings they ended with status {self._status}, those before go on"
        log.error(
            "gateway processes with the new settings ended %d times before they served, last with status %d; those before go on "
            "(another change, or SIGHUP to process %d, tries again)",
            self._failures,
            self._status,
            os.getpid(),
        )
        self._refused, self._plan, self._failures = self._plan.settings, self._proven, 0

    # --- what is to be done -------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Makes up for what is missing at once, and replaces what is outdated one by one, each only when its successor serves."""
        if time.monotonic() < self._not_before:
            return
        staying = [process for process in self._processes.values() if process.leaves_by is None]
        while len(staying) < self._plan.count:
            staying.append(self._fork())
        outdated = [process for process in staying if process.plan is not self._plan]
        current = [process for process in staying if process.plan is self._plan]
        if len(staying) > self._plan.count and all(process.serves for process in current):
            self._dismiss(outdated[0] if outdated else current[0])
        elif outdated and all(process.serves for process in current):
            self._fork()
        elif not outdated and all(process.serves for process in current):
            self._proven = self._plan

    def _report(self) -> None:
        serving = sum(process.serves and process.leaves_by is None for process in self._processes.values())
        said = f"STATUS={serving} of {self._plan.count} processes serve"
        if self._trouble:
            said = f"{said}; {self._trouble}"
        if serving and not self._told:
            self._told = True
            self._serving()
            self._tell("READY=1")
        if said != self._said:
            self._tell(said)
            self._said = said
        if self._watchdog_s is not None:
            self._tell("WATCHDOG=1")

    def _end(self) -> int:
        """Lets the replies end, for at most `drain_s`; asks systemd for that time bit by bit, lest a hang take all of it."""
        for process in self._processes.values():
            self._dismiss(process)
        while self._processes:
            more = f"EXTEND_TIMEOUT_USEC={round(STOP_MARGIN_S * 1e6)}"
            self._tell(f"STOPPING=1\nSTATUS=stopping: replies may end\n{more}\nWATCHDOG=1")
            self._look()
            self._reap()
        return 0 if self._stopping else self._status or os.EX_UNAVAILABLE

    def _dismiss(self, process: _Process) -> None:
        if process.leaves_by is None:
            process.leaves_by = time.monotonic() + process.plan.drain_s + STOP_MARGIN_S
            os.kill(process.pid, signal.SIGTERM)

    def _fork(self) -> _Process:
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        taken = {each.place for each in self._processes.values()}
        place = next(each for each in count() if each not in taken)
        parent = os.getpid()
        signal.pthread_sigmask(
            signal.SIG_BLOCK, _SIGNALS
        )  # one that came before the child is itself would be lost in it
        pid = os.fork()
        if pid == 0:
            self._live(parent, Parent(write, place), read)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.close(write)
        process = _Process(pid, place, read, self._plan, time.monotonic())
        self._processes[pid] = process
        return process

    def _live(self, parent: int, tell: Parent, read: int) -> None:
        """A forked process's whole life: nothing of the parent's is left in it, and it never returns to its loop."""
        status = os.EX_SOFTWARE
        try:
            die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            for descriptor in (*self._wake, read):
                os.close(descriptor)
            for process in self._processes.values():
                self._close_pipe(process)
            setproctitle("coral-reef: gateway")
            status = self._plan.serve(tell)
        except BaseException:
            log.exception("a gateway process failed")
        finally:
            logging.shutdown()
            os._exit(status)
