"""`coral-reef run`: the whole appliance in the foreground, with one readable log: what systemd does on the tower, done here."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from appliance.config.errors import ConfigError
from appliance.config.load import Settings, load
from appliance.files import FileLock, LockHeld, write_atomically
from appliance.paths import Paths
from appliance.telemetry.log import set_up_logging
from appliance.telemetry.log_file import Copier, LogFile

from .ask import ask_status
from .config import load_or_explain
from .exit_status import ExitStatus, Failed

log = logging.getLogger(__name__)

#: A part that dies is started again after this; one that dies again within SETTLED_S counts as failing.
RESTART_S = 0.5
SETTLED_S = 10.0
FAILURES_LIMIT = 5

#: What a first start may take on a slow machine before something is wrong.
START_TIMEOUT_S = 60.0

#: The greeting waits this long to say whether the model could be loaded; a large one takes longer.
GREETING_PATIENCE_S = 1.0

#: What a gateway needs beyond `drain_s` to cancel, to store and to cut off, and its parent to see it.
GATEWAY_STOP_S = 15.0

#: The console waits for nobody.
CONSOLE_STOP_S = 5.0


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        help="start the appliance here, in the foreground",
        description="Starts supervisor and gateway and shows their log. Ctrl-C or SIGTERM stops them cleanly.",
    )
    parser.add_argument(
        "--state",
        type=Path,
        default=Path(os.environ.get("CORAL_REEF_STATE") or os.environ.get("STATE") or ".state"),
        metavar="DIR",
        help="everything is kept below this folder (default: $STATE or .state)",
    )
    parser.add_argument(
        "--port", type=_port, default=None, help="default: $PORT, or api.port of network.yaml"
    )
    parser.set_defaults(run=run)


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        port = -1
    if not 0 <= port <= 65_535:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no port: expected a number from 1 to 65535 (0 picks a free one)"
        )
    return port


def run(arguments: argparse.Namespace) -> int:
    set_up_logging("run")
    paths = Paths.under(arguments.state)
    _make_folders(paths)
    settings = load_or_explain(paths)
    if settings is None:
        return ExitStatus.BAD_CONFIGURATION
    with (
        _only_instance(paths),
        _bind(settings, _port_of(arguments, settings)) as listener,
        _copied_log(paths) as log_pipe,
    ):
        return _Launcher(paths, settings, listener, log_pipe).run()


@contextlib.contextmanager
def _copied_log(paths: Paths) -> Iterator[int]:
    """The descriptor that the appliance's processes, this one included, write their log to: it is shown here and kept on disk."""
    try:
        copier = Copier(LogFile(paths.log_file))
    except OSError as error:
        raise Failed(f"cannot write {paths.log_file}: {error.strerror}", ExitStatus.CANNOT_CREATE) from None
    with os.fdopen(os.dup(copier.descriptor), "w", buffering=1, encoding="utf-8", errors="replace") as stream:
        set_up_logging("run", stream=stream)
        try:
            yield copier.descriptor
        finally:
            set_up_logging("run")
            stream.close()
            copier.close()


def _make_folders(paths: Paths) -> None:
    try:
        for folder in (paths.state, paths.etc, paths.run, paths.supervisor):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=paths.run).close()
    except OSError as error:
        raise Failed(
            f"cannot write to {paths.state}: {error.strerror}; choose another folder with STATE=",
            ExitStatus.CANNOT_CREATE,
        ) from None
    if not paths.sockets_fit():
        raise Failed(
            f"{paths.run} is too long for the address of a UNIX socket; choose a shorter folder with STATE=",
            ExitStatus.CANNOT_CREATE,
        )


def _port_of(arguments: argparse.Namespace, settings: Settings) -> int:
    if arguments.port is not None:
        return int(arguments.port)
    if os.environ.get("PORT"):
        try:
            return _port(os.environ["PORT"])
        except argparse.ArgumentTypeError as error:
            raise Failed(f"PORT: {error}", ExitStatus.USAGE) from None
    return settings.network.api.port


@contextlib.contextmanager
def _only_instance(paths: Paths) -> Iterator[None]:
    """One clear line before anything starts when an appliance has this folder already, started by `run` or by systemd."""
    try:
        with FileLock(paths.launcher_lock):
            with FileLock(paths.lock):
                pass  # the supervisor takes it next; here it only shows that no other one runs
            yield
    except LockHeld as error:
        raise Failed(
            f"an appliance runs with {paths.state} already (process {error.holder}): stop it, or choose another STATE=",
            ExitStatus.IN_USE,
        ) from None


def _address(settings: Settings) -> str:
    """Where to listen: where the owner says, but never beyond this machine as long as nothing guards what is beyond."""
    host = settings.network.api.bind
    if ipaddress.ip_address(host).is_loopback:
        return host
    log.warning(
        "listening on 127.0.0.1, not on %s: TLS and the firewall that belong to it are not there yet", host
    )
    return "127.0.0.1"


def _bind(settings: Settings, port: int) -> socket.socket:
    host = _address(settings)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise Failed(
            f"cannot listen on {host} port {port}: {error.strerror}; stop what uses it, or choose another with PORT=",
            ExitStatus.IN_USE,
        ) from None
    return listener


class _Part:
    """One process of the appliance."""

    def __init__(
        self, name: str, command: list[str], *, descriptors: tuple[int, ...] = (), needed: bool = True
    ) -> None:
        """The appliance can do without a part that is not `needed`."""
        self.name, self._command, self._descriptors = name, command, descriptors
        self.needed = needed
        self.process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self.failures = 0

    def start(self, environment: dict[str, str], log_pipe: int, *, ready: int | None = None) -> None:
        """Starts the process; it writes a byte to `ready` when it serves."""
        command, descriptors = self._command, self._descriptors
        if ready is not None:
            command, descriptors = [*command, "--ready-fd", str(ready)], (*descriptors, ready)
        self._started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment,
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stderr=log_pipe,
            # Ctrl-C reaches the whole foreground group; the launcher alone decides in which order things end.
            process_group=0,
        )

    def ended(self) -> int | None:
        """The exit status of a process that ended since it was started; counts quick ends as failures."""
        if self.process is None:
            return None
        status = self.process.poll()
        if status is not None:
            self.process = None
            self.failures = 1 if time.monotonic() - self._started > SETTLED_S else self.failures + 1
        return status

    def stop(self, timeout_s: float) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            log.warning("%s did not stop in %.0f s: killing it", self.name, timeout_s)
            self.process.kill()
            self.process.wait()
        self.process = None


class _Launcher:
    """Starts the parts, watches them, ends them in order."""

    def __init__(self, paths: Paths, settings: Settings, listener: socket.socket, log_pipe: int) -> None:
        self._paths, self._settings, self._listener = paths, settings, listener
        self._log_pipe = log_pipe
        self._environment = {
            **os.environ,
            "CORAL_REEF_STATE": str(paths.state),
            "CORAL_REEF_LAUNCHER": str(os.getpid()),
        }
        self._supervisor = _Part("supervisor", ["appliance.supervisor"])
        self._gateway = _Part(
            "gateway",
            ["appliance.gateway", "--fd", str(listener.fileno())],
            descriptors=(listener.fileno(),),
        )
        self._parts = [self._supervisor, self._gateway]
        self._console: _Part | None = None
        self._terminal = ""
        self._stopping = False

    def run(self) -> int:
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        host, port = self._listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        try:
            began = time.monotonic()
            self._supervisor.start(self._environment, self._log_pipe)
            write_atomically(
                self._paths.run / "url", f"{url}\n".encode()
            )  # it listens: whoever comes now, waits
            if self._start_gateway(wake_read):
                self._start_console()
                self._greet(url, time.monotonic() - began)
            return self._watch(wake_read)
        finally:
            signal.set_wakeup_fd(-1)
            (self._paths.run / "url").unlink(missing_ok=True)
            self._paths.console_line.unlink(missing_ok=True)
            self._end()

    def _start_console(self) -> None:
        """The console on a pseudo-terminal, which is there as long as we are, whatever becomes of the console."""
        try:
            ours, theirs = os.openpty()
        except OSError as error:
            log.warning("no console: this machine gives no pseudo-terminal: %s", error.strerror)
            return
        self._terminal = os.ttyname(theirs)
        os.close(theirs)  # opened and closed once: from now on the kernel tells whether somebody has it open
        self._paths.console_line.unlink(missing_ok=True)
        self._paths.console_line.symlink_to(self._terminal)
        self._console = _Part("console", ["console", "--pty", str(ours)], descriptors=(ours,), needed=False)
        self._console.start(self._environment, self._log_pipe)
        self._parts.append(self._console)

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _start_gateway(self, wake: int) -> bool:
        """Starts it and waits until it serves; False when it was told to stop, or a part ended, before."""
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        try:
            self._gateway.start(self._environment, self._log_pipe, ready=ready_write)
            os.close(ready_write)
            ready_write = -1
            deadline = time.monotonic() + START_TIMEOUT_S
            while not self._stopping and time.monotonic() < deadline:
                readable, _, _ = select.select([ready_read, wake], [], [], deadline - time.monotonic())
                if ready_read in readable:
                    return bool(os.read(ready_read, 1))
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
                if self._supervisor.process is not None and self._supervisor.process.poll() is not None:
                    return False
            return False
        finally:
            os.close(ready_read)
            if ready_write >= 0:
                os.close(ready_write)

    def _watch(self, wake: int) -> int:
        """Starts again what ends by itself, until told to stop or until one part keeps failing."""
        while not self._stopping:
            for part in list(self._parts):
                status = part.ended()
                if status is None:
                    continue
                if part.failures >= FAILURES_LIMIT and not part.needed:
                    log.error("%s ended with status %d; going on without it", part.name, status)
                    self._parts.remove(part)
                    continue
                # A configuration, a database or a lock that is refused will be refused again.
                if part.failures >= FAILURES_LIMIT or status in (os.EX_CONFIG, os.EX_IOERR, os.EX_TEMPFAIL):
                    log.error("%s ended with status %d; stopping", part.name, status)
                    return status if status > 0 else ExitStatus.UNAVAILABLE
                log.error("%s ended with status %d; starting it again", part.name, status)
            dead = [part for part in self._parts if part.process is None]
            select.select([wake], [], [], RESTART_S if dead else None)
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
            if not self._stopping:
                for part in dead:
                    part.start(self._environment, self._log_pipe)
        return ExitStatus.OK

    def _end(self) -> None:
        """The gateway first, so that replies can end while their workers still write; a second Ctrl-C does not wait."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with contextlib.suppress(ConfigError):  # a reload may have changed how long it may take
            self._settings = load(self._paths)
        if self._gateway.process is not None:
            log.info("stopping: replies may end; Ctrl-C again ends them now")
        if self._console is not None:
            self._console.stop(CONSOLE_STOP_S)
        self._gateway.stop(self._settings.appliance.gateway.drain_s + GATEWAY_STOP_S)
        self._supervisor.stop(self._settings.appliance.supervisor.drain_s + 15)
        log.info("stopped")

    def _greet(self, url: str, seconds: float) -> None:
        shown = _shortest(self._paths.state)
        option = "" if shown == ".state" else f" --state {shown}"
        command = (
            "coral-reef" if _on_path() else os.path.relpath(Path(sys.executable).with_name("coral-reef"))
        )
        lines = (
            f"Coral-Reef is up after {seconds:.1f} s: {url}",
            f"  chat      {command} chat{option}        (in another terminal)",
            *([f"  console   {command} console --line {self._terminal}"] if self._terminal else []),
            f"  API       {url}/docs   key: {_shortest(self._paths.admin_key)}",
            "  stop      Ctrl-C",
            *self._model_trouble(),
        )
        print("\n" + "\n".join(lines) + "\n", flush=True)

    def _model_trouble(self) -> list[str]:
        """What the owner should know when nobody would answer a chat now."""
        deadline = time.monotonic() + GREETING_PATIENCE_S
        while True:
            try:
                status = ask_status(self._paths)
            except Failed as error:
                return [f"  problem   {error}"]
            reason = "; ".join(
                worker.detail for worker in status.workers if worker.detail and worker.kind == "text"
            )
            if status.ready:
                return []
            if reason:
                return [f"  problem   no replies: {reason}"]
            if self._stopping or time.monotonic() > deadline:
                return [f"  wait      the model {status.model} is being loaded"]
            time.sleep(0.05)


def _on_path() -> bool:
    import shutil

    found = shutil.which("coral-reef")
    return (
        found is not None and Path(found).resolve() == Path(sys.executable).with_name("coral-reef").resolve()
    )


def _shortest(path: Path) -> str:
    """Relative to here when it lies here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
