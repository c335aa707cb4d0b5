"""The README's commands on a Debian that has nothing but `make`."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.waiting import wait_for

from .booted import free_port
from .fresh_debian import FreshDebian, fresh_debian

# Installing takes a minute or two when the machine has nothing else to do.
pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(900),
    pytest.mark.skipif("CORAL_REEF_FRESH_DEBIAN" in os.environ, reason="this is the fresh Debian"),
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and chroot are root's"),
]

FIRST_START_WITHIN_S = 420.0

#: Three seconds were promised for an idle machine, `make` and the look at what is installed included.
SECOND_START_WITHIN_S = 10.0

CHECK_WITHIN_S = 800.0

Figures = Callable[[str, object], None]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshDebian]:
    """A fresh Debian with the project in it."""
    log = tmp_path_factory.mktemp("fresh") / "log"
    with log.open("wb") as file:
        try:
            with fresh_debian(file) as found:
                yield found
        except BaseException:
            print(log.read_text("utf-8", errors="replace")[-8000:])
            raise


class Run:
    """`make run` under way."""

    def __init__(self, machine: FreshDebian, log: Path) -> None:
        self._machine, self._log = machine, log
        self.url = ""
        self._began = time.monotonic()
        port = free_port()
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                machine.command("make", "run", f"PORT={port}"),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self.url = f"http://127.0.0.1:{port}"

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", errors="replace")

    def wait_until_healthy(self, within_s: float) -> float:
        """How long it took."""

        def healthy() -> bool:
            assert self._process.poll() is None, f"make ended with {self._process.returncode}:\n{self.log}"
            try:
                return httpx.get(f"{self.url}/health", timeout=15, trust_env=False).status_code == 200
            except httpx.TransportError:
                return False

        try:
            wait_for("it is healthy", healthy, within_s=within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log[-8000:]}") from None
        return time.monotonic() - self._began

    def stop(self) -> None:
        """SIGTERM to what `make` has started: both end with status 0, and nothing else is left."""
        (launcher,) = [
            pid
            for pid, line in self._machine.processes().items()
            if "/coral-reef run " in line and "python" in line
        ]
        os.kill(launcher, signal.SIGTERM)
        assert self._process.wait(60) == 0, self.log
        assert not self._machine.processes(), self._machine.processes()
        assert "Traceback" not in self.log, self.log

    def destroy(self) -> None:
        for pid in self._machine.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()


def test_make_run(machine: FreshDebian, tmp_path: Path, record_property: Figures) -> None:
    first = Run(machine, tmp_path / "first.log")
    try:
        took_s = first.wait_until_healthy(FIRST_START_WITHIN_S)
        record_property("first `make run`, installing included: healthy after, s", round(took_s, 1))
        print(f"first `make run` on a fresh Debian: healthy after {took_s:.1f} s")
        wait_for("it greets", lambda: "Ctrl-C" in first.log)
        assert f": {first.url}\n" in first.log
        assert "  chat      .venv/bin/coral-reef chat " in first.log
        assert "key: .state/admin.key" in first.log
        key = (machine.project / ".state/admin.key").read_text("ascii").strip()
        reply = httpx.post(
            f"{first.url}/api/v1/chat",
            json={"persona_id": "finn", "message": "Hello"},
            headers={"Authorization": f"Bearer {key}"},
            timeout=60,
            trust_env=False,
        )
        assert reply.status_code == 200, reply.text
        assert reply.json()["content"].strip()
        # What it told the owner to type.
        chat = subprocess.run(
            machine.command(".venv/bin/coral-reef", "chat", "-m", "Hello"),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert (chat.returncode, chat.stderr) == (0, ""), chat
        assert chat.stdout.strip()
        first.stop()
    finally:
        first.destroy()

    second = Run(machine, tmp_path / "second.log")
    try:
        took_s = second.wait_until_healthy(60)
        record_property("second `make run`: healthy after, s", round(took_s, 2))
        print(f"second `make run`: healthy after {took_s:.2f} s")
        assert "Installing" not in second.log
        second.stop()
    finally:
        second.destroy()
    assert took_s < SECOND_START_WITHIN_S


def test_make_check(machine: FreshDebian, tmp_path: Path, record_property: Figures) -> None:
    """All that needs no appliance: format, lint, types, import order, unit tests."""
    log = tmp_path / "check.log"
    began = time.monotonic()
    with log.open("wb") as file:
        finished = subprocess.run(
            machine.command("make", "check"),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            timeout=CHECK_WITHIN_S,
            check=False,
        )
    took_s = time.monotonic() - began
    record_property("`make check`, s", round(took_s, 1))
    print(f"`make check` on a fresh Debian: {took_s:.1f} s")
    assert finished.returncode == 0, log.read_text("utf-8", errors="replace")[-8000:]
    assert " passed" in log.read_text("utf-8")


def test_make_install(machine: FreshDebian, tmp_path: Path) -> None:
    """Onto the machine itself, packages included; without a systemd that runs there is nobody to tell."""
    log = tmp_path / "install.log"

    def make(target: str) -> None:
        with log.open("wb") as file:
            done = subprocess.run(
                machine.command("make", target),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=FIRST_START_WITHIN_S,
                check=False,
            )
        assert done.returncode == 0, log.read_text("utf-8", errors="replace")[-8000:]

    make("install")
    assert "systemctl enable --now coral-reef.target" in log.read_text("utf-8")
    checks = (
        "coral-reef --version",
        "id coral-worker",
        "systemd-analyze verify coral-reef.target",
        "stat -c %U /run/coral-reef/workers",
    )
    script = " && ".join(checks)
    found = subprocess.run(
        machine.command("sh", "-c", script), capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 0, found
    assert found.stdout.startswith("coral-reef ")
    assert found.stdout.endswith("coral-worker\n")
    make("uninstall")
    assert not (machine.root / "usr/lib/coral-reef").exists()
    assert not (machine.root / "usr/bin/coral-reef").is_symlink()
    assert (machine.root / "var/lib/coral-reef").is_dir()
