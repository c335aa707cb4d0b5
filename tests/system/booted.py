"""The whole appliance, started as its owner starts it, with all its processes in view."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests import endless
from tests.waiting import LOOK_S, wait_for

ROOT = Path(__file__).resolve().parents[2]

#: How long a start, and a stop with replies under way, may take here: the machine may be busy.
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0

#: How long a process that has been killed may need to be gone.
ENDING_S = 10.0

#: In the environment of every process that we started, so that none is missed. Its value is the state folder.
MARK = "CORAL_REEF_TEST_OF"

#: `coral-reef`, whatever the virtual environment has installed.
COMMAND = [sys.executable, "-m", "appliance"]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, without what would choose another appliance."""
    ignored = {
        "PORT",
        "STATE",
        "COLUMNS",
        "LINES",
        *(key for key in os.environ if key.startswith("CORAL_REEF_")),
    }
    kept = {key: value for key, value in os.environ.items() if key not in ignored}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(more or {})}


class Booted:
    """A running appliance."""

    def __init__(self, state: Path, process: subprocess.Popen[bytes], log_file: Path) -> None:
        self.state, self.process, self._log_file = state, process, log_file

    @property
    def url(self) -> str:
        return (self.state / "run/url").read_text("ascii").strip()

    @property
    def websocket_url(self) -> str:
        return self.url.replace("http", "ws", 1) + "/ws"

    @property
    def key(self) -> str:
        return (self.state / "admin.key").read_text("ascii").strip()

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def log(self) -> str:
        """All that it has printed: standard output and standard error."""
        return self._log_file.read_text("utf-8", errors="replace")

    def client(self, *, timeout_s: float = 60.0) -> httpx.Client:
        """A client with the key."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=timeout_s, trust_env=False)

    def status(self) -> dict[str, Any]:
        """What `/api/v1/system/status` says."""
        with self.client() as client:
            response = client.get("/api/v1/system/status")
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def chat(self, message: str = "Hello", **more: Any) -> dict[str, Any]:
        """One whole reply."""
        with self.client() as client:
            response = client.post("/api/v1/chat", json={"persona_id": "finn", "message": message, **more})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def healthy(self) -> bool:
        """Whether `/health` says that a chat would be answered."""
        try:
            return httpx.get(f"{self.url}/health", timeout=15, trust_env=False).status_code == 200
        except (OSError, httpx.TransportError):
            return False

    def wait_until_healthy(self, *, within_s: float = START_TIMEOUT_S) -> None:
        def looks_well() -> bool:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.log}"
            return self.healthy()

        wait_for("the appliance is healthy", looks_well, within_s=within_s)

    def wait_for_leases(self, count: int, *, within_s: float = 30.0) -> None:
        wait_for(f"{count} replies under way", lambda: self.status()["leases"] == count, within_s=within_s)

    def wait_until_idle(self, *, within_s: float = 10.0) -> None:
        """Until no lease is held. Shorter than an endless reply takes, so that one which goes on is noticed."""
        self.wait_for_leases(0, within_s=within_s)

    def worker_pid(self) -> int:
        """The process of the one worker that writes, once it is ready."""
        return int(wait_for("a worker is ready", self._ready_worker, within_s=START_TIMEOUT_S)["pid"])

    def text_workers(self) -> list[dict[str, Any]]:
        """The workers that write replies."""
        return [each for each in self.status()["workers"] if each["kind"] == "text"]

    def _ready_worker(self) -> dict[str, Any] | None:
        return next((each for each in self.text_workers() if each["state"] == "ready"), None)

    def pids(self, title: str) -> list[int]:
        """Our processes whose title is `coral-reef: TITLE...`."""
        return [pid for pid, shown in self.processes().items() if shown.startswith(f"coral-reef: {title}")]

    def gateway_of(self, response: httpx.Response) -> int:
        """Which gateway process holds the connection of this response."""
        host, port = response.extensions["network_stream"].get_extra_info("client_addr")[:2]
        for pid in self.pids("gateway"):
            for each in psutil.Process(pid).net_connections("tcp"):
                if each.raddr and (each.raddr.ip, each.raddr.port) == (host, port):
                    return pid
        raise AssertionError(f"no gateway process holds the connection from port {port}")

    def processes(self) -> dict[int, str]:
        """Every living process of this appliance, and its command line."""
        return {
            pid: _command_line(pid)
            for pid in _pids()
            if _of_session(pid, self.process.pid) or _marked(pid, self.state)
        }

    def wait_until_gone(self, pids: Iterable[int], *, within_s: float = 20.0) -> None:
        """Until none of these processes lives."""
        expected = set(pids)
        wait_for(
            f"processes {sorted(expected)} have ended",
            lambda: not expected & set(self.processes()),
            within_s=within_s,
        )

    def stop(self) -> None:
        """SIGTERM: an orderly end within its time, with status 0 and nothing left behind."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not stop in {STOP_TIMEOUT_S:g} s:\n{self.log}") from None
        assert status == 0, f"it stopped with status {status}:\n{self.log}"
        assert not (left := self._left()), f"left behind: {left}\n{self.log}"
        assert "Traceback" not in self.log, self.log

    def destroy(self) -> None:
        """Kills what is left of it, whatever state it is in."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
        assert not (left := self._left()), f"killed, and still there: {left}"

    def _left(self) -> dict[int, str]:
        """What is left of it a little later: what the kernel ends with its parent needs a moment for that."""
        deadline = time.monotonic() + ENDING_S
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        return left


#: Those that run now, for the log in a failed test's report.
RUNNING: list[Booted] = []


@contextmanager
def state_folder() -> Iterator[Path]:
    """A folder with a short name: UNIX sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="reef.", dir="/tmp"))
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise AssertionError(f"{error}: somebody still writes there: {_users(folder)}") from error


def _users(folder: Path) -> dict[int, str]:
    """Processes that have something open below a folder, with their command lines."""
    return {pid: _command_line(pid) for pid in _pids() if any(_below(folder, link) for link in _links(pid))}


def _links(pid: int) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (Path(f"/proc/{pid}/fd")).iterdir()
        yield Path(f"/proc/{pid}/cwd")


def _below(folder: Path, link: Path) -> bool:
    with contextlib.suppress(OSError):
        return link.readlink().is_relative_to(folder)
    return False


def configure(state: Path, appliance_toml: str = "", *, endless_model: bool = False) -> None:
    """The owner's part of a state folder."""
    (state / "etc").mkdir(exist_ok=True)
    text = appliance_toml
    if endless_model:
        endless.add_endless_model(state / "models")
        text = f"{endless.CONFIGURATION}\n{text}"
    (state / "etc/appliance.toml").write_text(text, "utf-8")


def command(appliance: Booted, *words: str) -> subprocess.CompletedProcess[str]:
    """`coral-reef WORDS` on this appliance."""
    return subprocess.run(
        [*COMMAND, *words, "--state", str(appliance.state)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def free_port() -> int:
    """A port where nobody listens at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def start(
    state: Path, *, log_file: Path, port: int | None = 0, more: Mapping[str, str] | None = None
) -> Booted:
    """Starts `coral-reef run` in a session of its own and does not wait for anything. No port: what the owner's files say. `more`
    goes into its environment."""
    option = [] if port is None else ["--port", str(port)]
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            [*COMMAND, "run", "--state", str(state), *option],
            cwd=ROOT,
            env=environment({MARK: str(state), **(more or {})}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return Booted(state, process, log_file)


@contextmanager
def booted(state: Path, *, more: Mapping[str, str] | None = None) -> Iterator[Booted]:
    """A healthy appliance on `state`; at the end it is stopped and must have stopped well."""
    appliance = start(state, log_file=state / "log", more=more)
    RUNNING.append(appliance)
    try:
        appliance.wait_until_healthy()
        yield appliance
        appliance.stop()
    finally:
        RUNNING.remove(appliance)
        appliance.destroy()


def _pids() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _alive(int(entry.name)):
            yield int(entry.name)


def _alive(pid: int) -> bool:
    """Whether it runs: one that only waits to be reaped does not."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()[0]
            not in "ZX"
        )
    except OSError:
        return False


def _of_session(pid: int, session: int) -> bool:
    try:
        return os.getsid(pid) == session
    except ProcessLookupError:
        return False


def _marked(pid: int, state: Path) -> bool:
    try:
        return f"{MARK}={state}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _command_line(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        )
    except OSError:
        return ""
