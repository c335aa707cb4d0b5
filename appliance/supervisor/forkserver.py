"""The supervisor's end of the forkserver: starts it, asks it for workers, hears of their ends, starts it again when it died."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

from appliance.wire.errors import FrameError
from appliance.wire.frames import Decoder, encode
from appliance.wire.messages import Exited, FromForkserver, Hello, Message, Spawn, Spawned, WorkerSpec

from .errors import ForkserverFailed

log = logging.getLogger(__name__)

#: Names the user, and the group, that workers run as; without it they run as the supervisor does.
WORKER_USER = "CORAL_REEF_WORKER_USER"

#: What systemd tells the supervisor alone: where to report to, what it inherits, where its secrets lie.
SUPERVISORS_OWN = frozenset(
    {
        "CREDENTIALS_DIRECTORY",
        "DBUS_SESSION_BUS_ADDRESS",
        "DBUS_SYSTEM_BUS_ADDRESS",
        "LISTEN_FDNAMES",
        "LISTEN_FDS",
        "LISTEN_PID",
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
    }
)

#: Importing the engines takes a third of a second on an idle core; a minute means that something is wrong.
START_TIMEOUT_S = 60.0

#: It answers in a millisecond, however many workers there are; one that has not for this long hangs.
SILENCE_LIMIT_S = 15.0


class Forkserver:
    """One forkserver at a time. `on_exit(pid, status)` is called for each worker that ended."""

    def __init__(self, on_exit: Callable[[int, int], None]) -> None:
        self._on_exit = on_exit
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._ready: asyncio.Future[None] | None = None
        self._spawned: dict[str, asyncio.Future[int]] = {}
        self._alive: set[int] = set()
        self._lock = asyncio.Lock()
        self._asked_at: float | None = None

    async def spawn(self, spec: WorkerSpec, pipe: int) -> int:
        """Forks a worker that owns the write end `pipe`; returns its process id. ForkserverFailed when there is none to ask."""
        async with self._lock:
            await self._ensure()
            assert self._socket is not None
            answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._spawned[spec.name] = answer
            try:
                # A frame of some hundred bytes into an empty socket buffer: this never blocks.
                socket.send_fds(self._socket, [encode(Spawn(spec=spec))], [pipe])
                async with asyncio.timeout(START_TIMEOUT_S):
                    return await answer
            except (OSError, TimeoutError) as error:
                raise ForkserverFailed(f"the forkserver does not answer: {error}") from error
            finally:
                self._spawned.pop(spec.name, None)

    async def close(self) -> None:
        """Ends the forkserver. Workers should be gone by now; those that are not die with it."""
        process = self._process
        self._forget()
        if process is not None:
            await asyncio.to_thread(process.wait)

    def look_after(self) -> None:
        """Asks it for a sign of life, and ends one that owes it for too long: its workers end with it, and their keepers ask for
        others. Called every few seconds."""
        if self._process is None or self._socket is None or self._ready is None or not self._ready.done():
            return
        now = asyncio.get_running_loop().time()
        if self._asked_at is None:
            self._asked_at = now
            with contextlib.suppress(OSError):  # it has ended, which is on the way to us
                self._socket.send(encode(Hello(name="supervisor")))
        elif now - self._asked_at > SILENCE_LIMIT_S:
            log.error("the forkserver has not answered for %.0f s: killing it", now - self._asked_at)
            self._process.kill()

    async def _ensure(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._forget()
        ours, self._process = _launch()
        ours.setblocking(False)
        self._socket = ours
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        decoder: Decoder[Message] = Decoder(FromForkserver)
        loop.add_reader(ours, self._read, ours, decoder)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._ready
        except TimeoutError as error:
            self._process.kill()
            raise ForkserverFailed(f"the forkserver is not ready after {START_TIMEOUT_S:.0f} s") from error

    def _read(self, ours: socket.socket, decoder: Decoder[Message]) -> None:
        try:
            data = ours.recv(65_536)
            messages = decoder.feed(data)
        except BlockingIOError:
            return
        except (OSError, FrameError) as error:
            log.error("the forkserver's connection broke: %s", error)
            data, messages = b"", []
        for message in messages:
            match message:
                case Hello():
                    self._asked_at = None
                    if self._ready is not None and not self._ready.done():
                        self._ready.set_result(None)
                case Spawned(name=name, pid=pid):
                    self._alive.add(pid)
                    if name in self._spawned and not self._spawned[name].done():
                        self._spawned[name].set_result(pid)
                case Exited(pid=pid, status=status):
                    self._alive.discard(pid)
                    # Not at once: when it came in one read with `Spawned`, whoever spawned it does not know the pid yet.
                    asyncio.get_running_loop().call_soon(self._on_exit, pid, status)
        if not data:
            self._lost()

    def _lost(self) -> None:
        """The forkserver died, and by their parent-death signal its workers with it."""
        alive, self._alive = self._alive, set()
        process = self._process
        self._forget()
        if process is not None:
            status = process.wait()  # its end of the socket is closed: it has ended, or does so now
            log.error("the forkserver ended with status %s; its workers end with it", status)
        for pid in alive:
            asyncio.get_running_loop().call_soon(self._on_exit, pid, signal.SIGKILL)

    def _forget(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        error = ForkserverFailed("the forkserver ended: see its message above")
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)
        for answer in self._spawned.values():
            if not answer.done():
                with contextlib.suppress(asyncio.InvalidStateError):
                    answer.set_exception(error)
        self._process = None
        self._asked_at = None


def _groups_of(user: str) -> list[int]:
    """The groups that give the workers' user its devices: plugdev and apex, on a tower."""
    return os.getgrouplist(user, pwd.getpwnam(user).pw_gid)


def _launch() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Our end of its socket, and its process. Called in the main thread: the kernel ties the child's parent-death
    signal to the thread that forks it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        command = [
            sys.executable,
            "-m",
            "appliance.inference.forkserver",
            str(theirs.fileno()),
            str(os.getpid()),
        ]
        user = os.environ.get(WORKER_USER) or None
        process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name not in SUPERVISORS_OWN},
            user=user,
            group=user,
            extra_groups=_groups_of(user) if user else None,
        )
    return ours, process
