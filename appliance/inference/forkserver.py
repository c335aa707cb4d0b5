"""Forks workers from a process that has imported the engines and used none: `python -m appliance.inference.forkserver FD PARENT`.

One thread, no event loop, so that a fork copies nothing that runs. FD is a socket to the supervisor: it sends `Spawn` with the
worker's pipe, and hears `Spawned` and, when a worker ends, `Exited`; a `Hello` is answered with one. When the supervisor ends,
so does the forkserver, and with it the workers.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from types import FrameType

from setproctitle import setproctitle

from appliance.process import die_with_parent, drop_capabilities
from appliance.wire.frames import Decoder, encode
from appliance.wire.messages import (
    Exited,
    Hello,
    Spawn,
    Spawned,
    ToForkserver,
    WorkerSpec,
)


def serve(control: socket.socket) -> None:
    """Forks and reaps until the supervisor closes its end."""
    from . import tensor_worker, worker

    mains = {"text": worker.main, "tpu": tensor_worker.main, "cpu": tensor_worker.main}
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, _noted)
    # Ctrl-C and SIGTERM reach the whole group; the supervisor decides in which order things end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    decoder: Decoder[Spawn | Hello] = Decoder(ToForkserver)
    hello = encode(Hello(name="forkserver"))
    control.sendall(hello)
    while True:
        readable, _, _ = select.select([control.fileno(), wake_read], [], [])
        if wake_read in readable:
            os.read(wake_read, 4096)
            for ended in _reap():
                control.sendall(encode(ended))
        if control.fileno() in readable:
            data, descriptors, _, _ = socket.recv_fds(control, 65_536, 16)
            if not data:
                return
            pipes = iter(descriptors)
            for message in decoder.feed(data):
                if isinstance(message, Hello):
                    control.sendall(hello)
                    continue
                pipe = next(pipes)
                main = mains[message.spec.kind]
                pid = _fork(message.spec, pipe, control, (wake_read, wake_write), main)
                os.close(pipe)
                control.sendall(encode(Spawned(name=message.spec.name, pid=pid)))


def _fork(
    spec: WorkerSpec,
    pipe: int,
    control: socket.socket,
    wake: tuple[int, int],
    main: Callable[[WorkerSpec, int], int],
) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    # From here on a worker: nothing of the forkserver's may be left, and no way back into its loop.
    status = 70
    try:
        die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        control.close()
        os.close(wake[0])
        os.close(wake[1])
        status = main(spec, pipe)
    except BaseException:
        traceback.print_exc()  # os._exit below would swallow it
        raise
    finally:
        # Not sys.exit: the engine's threads would abort an orderly end (rc 134).
        sys.stderr.flush()
        os._exit(status)


def _reap() -> list[Exited]:
    ended: list[Exited] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append(Exited(pid=pid, status=status))


def _noted(_number: int, _frame: FrameType | None) -> None:
    """SIGCHLD needs a handler for the wake-up descriptor to be written."""


def main() -> None:
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    # The supervisor started us as the workers' user; what it needed for that is nobody's from here on.
    if os.geteuid() != 0:
        drop_capabilities()
    die_with_parent(parent)
    setproctitle("coral-reef: forkserver")
    from . import preload  # noqa: F401

    with socket.socket(fileno=descriptor) as control:
        control.setblocking(True)
        with contextlib.suppress(ConnectionError):  # the supervisor went away while we spoke to it
            serve(control)


if __name__ == "__main__":
    main()
