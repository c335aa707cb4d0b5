"""A machine with a systemd of its own, in which the appliance is installed as its owner would install it: systemd-nspawn(1).

The root is Debian from `fresh_debian`'s archive with `make install DESTDIR=` on top. It lies in a tmpfs that only a mount
namespace of ours sees; each boot writes into an overlay of its own. The first process of a PID namespace ends everything else
with it, and a control group of our own takes what the machine's systemd makes, so that nothing is left behind. Authorisation is
Debian's default.

Not real in it: controllers of control groups when the machine below has them elsewhere (memory.max), udev, devices.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.waiting import running, wait_for

from .booted import ROOT
from .fresh_debian import cache_folder, debian_archive
from .guest import COMMAND_TIMEOUT_S, HOME, LOGIN, Guest, become

#: Besides what the variant `minbase` has. NetworkManager's actions are asked for by the supervisor.
PACKAGES = (
    "ca-certificates",
    "dbus",
    "dnsmasq-base",
    "iproute2",
    "libgomp1",
    "libsodium23",
    "network-manager",
    "nftables",
    "polkitd",
    "python3",
    "systemd",
    "systemd-resolved",
    "systemd-sysv",
)

#: What would only make the boot longer.
MASKED = (
    "NetworkManager-wait-online.service",
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
)

INSTALL_TIMEOUT_S = 900.0
BOOT_TIMEOUT_S = 120.0


class Machine(Guest):
    """A running one. Process ids are this machine's, unless said otherwise."""

    def __init__(self, name: str, init: int, console: Path) -> None:
        self.name, self._init, self._console = name, init, console

    @property
    def root(self) -> Path:
        """Its files, as this machine sees them."""
        return Path(f"/proc/{self._init}/root")

    @property
    def running(self) -> bool:
        """Whether its first process is there, and the same as ever: a machine that was restarted has another."""
        return running(self._init)

    def command(self, *words: str | Path, user: str = "") -> list[str]:
        """What runs `words` in it as somebody who has just logged in."""
        enter = ["nsenter", f"--target={self._init}", "--all"]
        return [*enter, "env", "-i", *LOGIN, *become(user), *map(str, words)]

    def run(
        self, *words: str | Path, user: str = "", check: bool = True, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """As `Guest.run`; an error also shows the end of the journal."""
        done = subprocess.run(
            self.command(*words, user=user),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}\n{self.journal(60)}"
        )
        return done

    def processes(self) -> dict[int, str]:
        """Every living process in it, by this machine's process ids, with its command line."""
        namespace = _namespace_of(self._init)
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if _namespace_of(int(entry.name)) != namespace or _state(int(entry.name)) in "ZX":
                    continue
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            found[int(entry.name)] = line.strip()
        return found


#: Those that run now, for the journal in a failed test's report.
RUNNING: list[Machine] = []


@dataclass(frozen=True)
class Root:
    """A Debian with the appliance installed: at `folder`, as the process `keeper` sees it."""

    keeper: int
    folder: Path

    def command(self, *words: str | Path) -> list[str]:
        """What runs `words` on this machine, with the root in sight."""
        return ["nsenter", f"--target={self.keeper}", "--mount", *map(str, words)]

    @property
    def tree(self) -> Path:
        """The same folder, as this process sees it."""
        return Path(f"/proc/{self.keeper}/root") / self.folder.relative_to("/")


@contextmanager
def nspawn_root(log: IO[bytes]) -> Iterator[Root]:
    """The one for `booted_machine`, as long as the context lasts."""
    with installed_root(debian_archive("nspawn", PACKAGES, log), log) as root:
        (root.tree / "etc/systemd/system/multi-user.target.wants/NetworkManager.service").unlink()
        yield root


@contextmanager
def installed_root(archive: Path, log: IO[bytes]) -> Iterator[Root]:
    """One from this archive of a Debian, as long as the context lasts."""
    folder = Path(tempfile.mkdtemp(prefix="reef-root.", dir="/tmp"))
    script = f"""
        set -eu
        mount -t tmpfs -o mode=755 tmpfs {folder}
        cd {folder}
        tar --numeric-owner -xf {archive}
        for unit in {" ".join(MASKED)}; do ln -sf /dev/null etc/systemd/system/$unit; done
        echo machine >etc/hostname
        mkdir -p /run/systemd
        mount -t tmpfs -o mode=755 tmpfs /run/systemd
        echo ready
        exec sleep infinity
    """
    keeper = subprocess.Popen(
        [
            "setpriv",
            "--pdeathsig=KILL",
            "unshare",
            "--mount",
            "--propagation=private",
            "/bin/sh",
            "-c",
            script,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
    )
    try:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"ready\n", "the root could not be made: see the log"
        root = Root(keeper.pid, folder)
        _install(root, log)
        yield root
    finally:
        keeper.kill()
        keeper.wait()
        assert keeper.stdout is not None
        keeper.stdout.close()
        folder.rmdir()  # it is empty again: the mount has gone with the namespace


def _install(root: Root, log: IO[bytes]) -> None:
    """`make install`, with the Python packages from the cache when they are those that the lock file wants."""
    lock = (ROOT / "requirements-system.lock").read_bytes()
    key = hashlib.sha256(lock + sys.version.encode()).hexdigest()[:12]
    cached = cache_folder() / f"system-{key}.tar"

    def inside(*words: str | Path, timeout_s: float = INSTALL_TIMEOUT_S) -> None:
        subprocess.run(
            root.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            timeout=timeout_s,
            check=True,
        )

    if cached.exists():
        inside("tar", "-C", root.folder, "-xf", cached)
    inside("make", "-C", ROOT, "install", f"DESTDIR={root.folder}")
    if not cached.exists():
        for old in cache_folder().glob("system-*.tar"):
            old.unlink()
        partial = cached.with_suffix(".partial")
        inside("tar", "-C", root.folder, "-cf", partial, HOME.relative_to("/"))
        partial.rename(cached)


@contextmanager
def booted_machine(root: Root, log: IO[bytes]) -> Iterator[Machine]:
    """A machine that has booted from `root`, which it does not change; ended with the context, whatever happened in it."""
    name = f"reef-{secrets.token_hex(3)}"
    folder = Path(tempfile.mkdtemp(prefix="reef-nspawn.", dir="/tmp"))
    console = folder / "console"
    group = _control_group(name)
    isolate = [
        "setpriv",
        "--pdeathsig=KILL",
        "unshare",
        "--mount",
        "--propagation=private",
        "--pid",
        "--mount-proc",
    ]
    boot = [
        "systemd-nspawn",
        "--boot",
        "--quiet",
        "--register=no",
        "--keep-unit",
        f"--machine={name}",
        f"--directory={root.folder}",
        "--volatile=overlay",
        "--private-network",
        "--console=pipe",
    ]
    joined = f'echo $$ >"{group}/cgroup.procs"; exec "$@"'
    with console.open("wb") as output:
        process = subprocess.Popen(
            root.command(*isolate, "--fork", "--kill-child=KILL", "/bin/sh", "-c", joined, "boot", *boot),
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        try:
            init = wait_for("its systemd runs", lambda: _init_of(process), within_s=BOOT_TIMEOUT_S)
            machine = Machine(name, init, console)
            wait_for("it has booted", lambda: _has_booted(machine), within_s=BOOT_TIMEOUT_S)
        except BaseException:
            log.write(console.read_bytes()[-20_000:])
            raise
        RUNNING.append(machine)
        yield machine
    finally:
        RUNNING[:] = [each for each in RUNNING if each.name != name]
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for("its processes have ended", lambda: _leave(group))
        shutil.rmtree(folder)


def _control_group(name: str) -> Path:
    """A fresh group of version 2 below the one that we are in."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text("utf-8").splitlines()]
    mount = next(Path(words[1]) for words in mounts if words[2] == "cgroup2")
    lines = Path("/proc/self/cgroup").read_text("ascii").splitlines()
    own = next(line.removeprefix("0::") for line in lines if line.startswith("0::"))
    group = mount / own.lstrip("/") / name
    group.mkdir()
    return group


def _leave(group: Path) -> bool:
    """Removes a group and those below it; False as long as processes are left in one."""
    for each in sorted(group.rglob("*"), reverse=True):
        if each.is_dir():
            try:
                each.rmdir()
            except OSError:
                return False
    try:
        group.rmdir()
    except OSError:
        return False
    return True


def _init_of(process: subprocess.Popen[bytes]) -> int | None:
    """The machine's first process: the descendant that calls itself 1 and has become systemd."""
    assert process.poll() is None, f"systemd-nspawn ended with {process.returncode}: see its console"
    waiting = [process.pid]
    while waiting:
        pid = waiting.pop()
        try:
            waiting += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split())
            status = dict(
                line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
            )
        except OSError:
            continue
        if status["Name"] == "systemd" and status["NSpid"].split()[-1] == "1":
            return pid
    return None


def _has_booted(machine: Machine) -> bool:
    done = machine.run("systemctl", "is-system-running", check=False)
    return done.stdout.strip() in ("running", "degraded")


def _namespace_of(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/pid").readlink())


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
