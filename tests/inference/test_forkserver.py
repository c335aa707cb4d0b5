"""The forkserver and what it forks, as processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil
import pytest

import appliance
from appliance.inference import models
from appliance.paths import Paths
from appliance.wire.frames import Decoder, encode
from appliance.wire.messages import (
    Exited,
    FromForkserver,
    FromWorkerPipe,
    Hello,
    Message,
    Spawn,
    Spawned,
    WorkerFailed,
    WorkerReady,
    WorkerSpec,
)
from tests.waiting import running, wait_until_gone

ROOT = Path(appliance.__file__).parents[1]
MODEL = models.find(Paths.under(Path("/nonexistent")), "coral-reef-chat")


def spec(folder: Path, **more: object) -> WorkerSpec:
    values: dict[str, object] = {
        "name": "text-1",
        "kind": "text",
        "model": "m",
        "model_path": str(MODEL.path),
        "model_sha256": MODEL.entry.sha256,
        "model_size_bytes": MODEL.entry.size_bytes,
        "socket": str(folder / "text-1.sock"),
        "folder": str(folder),
        "slots": 1,
        "threads": 1,
        "context_tokens": 256,
        "batch_tokens": 32,
        "cache_mib": 0,
    }
    return WorkerSpec(**(values | more))  # type: ignore[arg-type]


@dataclass
class Forkserver:
    """One, seen from its supervisor."""

    socket: socket.socket
    process: subprocess.Popen[bytes]
    decoder: Decoder[Message] = field(default_factory=lambda: Decoder(FromForkserver))
    heard: list[Message] = field(default_factory=list)

    def next(self) -> Message:
        while not self.heard:
            data = self.socket.recv(65_536)
            assert data, "the forkserver ended"
            self.heard += self.decoder.feed(data)
        return self.heard.pop(0)

    def spawn(self, what: WorkerSpec) -> tuple[int, int]:
        """The worker's process id, and the read end of its pipe."""
        read, write = os.pipe2(os.O_CLOEXEC)
        socket.send_fds(self.socket, [encode(Spawn(spec=what))], [write])
        os.close(write)
        spawned = self.next()
        assert isinstance(spawned, Spawned)
        assert spawned.name == what.name
        return spawned.pid, read


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def launch(**environment: str) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "appliance.inference.forkserver", str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        )
    return ours, process


@pytest.fixture
def forkserver() -> Iterator[Forkserver]:
    ours, process = launch()
    with ours, process:
        found = Forkserver(ours, process)
        assert found.next() == Hello(name="forkserver")
        yield found
        ours.close()
        assert process.wait(20) == 0


def report(pipe: int) -> Message:
    """What a worker says through its pipe, which ends with it."""
    decoder: Decoder[Message] = Decoder(FromWorkerPipe)
    while True:
        data = os.read(pipe, 65_536)
        assert data, "the worker said nothing"
        found = decoder.feed(data)
        if found:
            return found[0]


def test_a_sign_of_life(forkserver: Forkserver) -> None:
    forkserver.socket.sendall(encode(Hello(name="supervisor")) * 2)
    assert [forkserver.next(), forkserver.next()] == [Hello(name="forkserver")] * 2


def test_workers_whose_model_is_not_right(forkserver: Forkserver, folder: Path) -> None:
    missing = spec(folder, model_path=str(folder / "none.gguf"))
    changed = spec(folder, name="text-2", model_sha256="0" * 64)
    (folder / "bad.gguf").write_bytes(b"x")
    for what, words in ((missing, "No such file"), (changed, "has the SHA-256")):
        pid, pipe = forkserver.spawn(what)
        try:
            failed = report(pipe)
        finally:
            os.close(pipe)
        assert isinstance(failed, WorkerFailed)
        assert failed.code == "model_corrupt"
        assert words in failed.message
        assert forkserver.next() == Exited(pid=pid, status=1 << 8)


def test_a_worker_that_is_killed_and_one_that_is_stopped(forkserver: Forkserver, folder: Path) -> None:
    for number, status in ((signal.SIGKILL, signal.SIGKILL), (signal.SIGTERM, 0)):
        pid, pipe = forkserver.spawn(spec(folder))
        try:
            ready = report(pipe)
            assert isinstance(ready, WorkerReady)
            assert ready.context_tokens == 256
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.connect(str(folder / "text-1.sock"))
                client.settimeout(10)
                assert client.recv(4)
            os.kill(pid, number)
            assert forkserver.next() == Exited(pid=pid, status=status)
        finally:
            os.close(pipe)
        (folder / "engine.sock").unlink(missing_ok=True)


def test_a_worker_opens_no_port_and_takes_over_stale_sockets(forkserver: Forkserver, folder: Path) -> None:
    """The engine's own server would listen on TCP for anybody, and refuses to load over a socket that is there."""
    for name in ("text-1.sock", "engine.sock"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
            stale.bind(str(folder / name))
    pid, pipe = forkserver.spawn(spec(folder))
    try:
        assert isinstance(report(pipe), WorkerReady)
        assert psutil.Process(pid).net_connections("inet") == []
        for name in ("text-1.sock", "engine.sock"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.connect(str(folder / name))
    finally:
        os.close(pipe)
    os.kill(pid, signal.SIGTERM)
    assert forkserver.next() == Exited(pid=pid, status=0)


def test_openmp_waits_passively() -> None:
    """With active waiting, two threads on a busy host collapse a hundredfold; OpenMP asks once, when the engine is imported."""
    code = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "xllamacpp":
            print(os.environ.get("OMP_WAIT_POLICY"))
sys.meta_path.insert(0, Watch())
import appliance.inference.preload
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "passive\n"


SUPERVISOR = """
import os, socket, subprocess, sys
from appliance.wire.frames import Decoder, encode
from appliance.wire.messages import FromForkserver, Hello, Spawn, Spawned, WorkerSpec
import msgspec
ours, theirs = socket.socketpair()
command = [sys.executable, "-m", "appliance.inference.forkserver", str(theirs.fileno()), str(os.getpid())]
child = subprocess.Popen(command, pass_fds=[theirs.fileno()])
decoder = Decoder(FromForkserver)
assert decoder.feed(ours.recv(1000)) == [Hello(name="forkserver")]
read, write = os.pipe()
spec = msgspec.json.decode(sys.argv[1], type=WorkerSpec)
socket.send_fds(ours, [encode(Spawn(spec=spec))], [write])
spawned, = decoder.feed(ours.recv(1000))
os.close(write)
assert os.read(read, 1000)
print(child.pid, spawned.pid, flush=True)
sys.stdin.read()
"""


def test_a_killed_supervisor_takes_all_with_it(folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, msgspec.json.encode(spec(folder)).decode()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as supervisor:
        assert supervisor.stdout is not None
        pids = [int(word) for word in supervisor.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(running, pids))
        supervisor.kill()
    wait_until_gone(*pids)


def test_an_engine_that_cannot_be_imported_says_so(tmp_path: Path) -> None:
    (tmp_path / "xllamacpp.py").write_text(
        'raise ImportError("libgomp.so.1: cannot open shared object file")\n'
    )
    ours, process = launch(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    with ours, process:
        _, error = process.communicate(timeout=30)
        assert ours.recv(100) == b""
    assert process.returncode == 1
    assert b"ImportError: libgomp.so.1: cannot open shared object file" in error


def test_an_unexpected_failure_of_a_worker_says_why(folder: Path) -> None:
    ours, process = launch()
    with ours, process:
        forkserver = Forkserver(ours, process)
        assert forkserver.next() == Hello(name="forkserver")
        pid, pipe = forkserver.spawn(spec(folder, socket=str(folder / "no" / "such.sock")))
        os.close(pipe)
        assert forkserver.next() == Exited(pid=pid, status=70 << 8)
        ours.close()
        _, error = process.communicate(timeout=20)
    assert b"FileNotFoundError" in error
