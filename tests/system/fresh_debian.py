"""A Debian as its installer leaves it, in namespaces of its own: nothing that happens in it outlives it.

The root is made by mmdebstrap from this machine's own package sources and kept in the cache for a day. It lies in a tmpfs that
only the namespace has mounted; the first process of its PID namespace ends everything else with it. The network is this
machine's, and so is how to use it: name servers, certificates, proxies, and where apt and pip find their packages are lent to
it read-only.
"""

from __future__ import annotations

import configparser
import datetime
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.waiting import wait_for

from .booted import ROOT

#: Besides what the variant `minbase` has.
PACKAGES = ("make",)

#: Where the project lies in it.
PROJECT = Path("/root/coral-reef")

#: Where this machine's certificates lie in it: its own folder belongs to its own package `ca-certificates`.
CERTIFICATES = Path("/run/machine/certificates.crt")

BUILD_TIMEOUT_S = 900.0

_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

#: Environment variables that say how to reach the network and its packages; `PIP_...` too.
_NETWORK = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")

#: Options of pip that may name a folder.
_PIP_PLACES = ("find-links", "index-url", "extra-index-url")


class FreshDebian:
    """A running one. Commands in it are run by `command`; its files are seen from here below `root`."""

    def __init__(self, folder: Path, init: int) -> None:
        self._folder, self._init = folder, init
        self._environment = _environment()

    @property
    def root(self) -> Path:
        """Its root folder, as this machine sees it."""
        return Path(f"/proc/{self._init}/root")

    @property
    def project(self) -> Path:
        return self.root / PROJECT.relative_to("/")

    def command(self, *words: str | Path) -> list[str]:
        """What runs `words` in it, in the project's folder, with the environment of somebody who has just logged in."""
        inside = shlex.join(["exec", "env", "-i", *self._environment, *map(str, words)])
        script = f"cd {PROJECT} 2>/dev/null; {inside}"
        enter = ["nsenter", f"--target={self._init}", "--mount", "--pid"]
        return [*enter, "chroot", str(self._folder), "/bin/sh", "-c", script]

    def processes(self) -> dict[int, str]:
        """Everything that runs in it, by this machine's process ids, but its first process and what that started."""
        namespace = _namespace_of(self._init)
        return {
            pid: line
            for pid, line in _in_namespace(namespace).items()
            if pid != self._init and not line.startswith("sleep ")
        }

    def lend(self, path: Path, *, to: Path | None = None) -> None:
        """Shows it a file or folder of this machine, read-only."""
        if not path.exists():
            return
        target = self._folder / (to or path).relative_to("/")
        make = "mkdir -p" if path.is_dir() else 'mkdir -p "${2%/*}"; : >>'
        script = f'set -eu; {make} "$2"; mount --bind "$1" "$2"; mount -o remount,bind,ro "$2"'
        enter = ["nsenter", f"--target={self._init}", "--mount"]
        subprocess.run(
            [*enter, "/bin/sh", "-c", script, "lend", str(path.resolve()), str(target)], check=True
        )

    def copy_project(self) -> None:
        """The project as git would commit it now, all that is not ignored included."""
        names = project_files()
        self.project.mkdir(parents=True)
        with subprocess.Popen(
            ["tar", "-c", "--null", "-T", "-"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as packing:
            assert packing.stdin is not None
            with subprocess.Popen(
                ["tar", "-x", "--no-same-owner"], cwd=self.project, stdin=packing.stdout
            ) as unpacking:
                packing.stdin.write("\0".join(names).encode())
                packing.stdin.close()
            assert (packing.wait(), unpacking.returncode) == (0, 0)


@contextmanager
def fresh_debian(log: IO[bytes]) -> Iterator[FreshDebian]:
    """One that has everything lent to it and the project copied; gone without a trace afterwards."""
    archive = debian_archive("debian", PACKAGES, log)
    folder = Path(tempfile.mkdtemp(prefix="reef-debian.", dir="/tmp"))
    try:
        with _namespace(folder, archive, log) as init:
            machine = FreshDebian(folder, init)
            _lend_network(machine)
            machine.copy_project()
            yield machine
    finally:
        folder.rmdir()  # it is empty again: the mount has gone with the namespace
    assert str(folder) not in Path("/proc/self/mountinfo").read_text("utf-8")


@contextmanager
def _namespace(folder: Path, archive: Path, log: IO[bytes]) -> Iterator[int]:
    """The first process of a machine on `folder`. It dies with this process, and everything in the machine with it."""
    devices = " ".join(_DEVICES)
    script = f"""
        set -eu
        mount -t tmpfs -o mode=755 tmpfs {folder}
        cd {folder}
        tar -xf {archive}
        mount -t proc proc proc
        mount --rbind /sys sys
        mount -o remount,bind,ro sys
        mount -t tmpfs -o mode=755 tmpfs dev
        for device in {devices}; do : >dev/$device; mount --bind /dev/$device dev/$device; done
        mkdir dev/pts dev/shm
        mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
        mount -t tmpfs -o mode=1777 tmpfs dev/shm
        ln -s pts/ptmx dev/ptmx
        ln -s /proc/self/fd dev/fd
        for number in 0 1 2; do ln -s /proc/self/fd/$number dev/std$(echo in out err | cut -d' ' -f$((number + 1))); done
        echo ready
        exec chroot . /bin/bash -c 'while true; do sleep 3600 & wait; done'
    """
    keeper = subprocess.Popen(
        [
            "setpriv",
            "--pdeathsig=KILL",
            "unshare",
            "--mount",
            "--propagation=private",
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "/bin/sh",
            "-c",
            script,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
    )
    namespace = ""
    try:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"ready\n", "the namespace could not be made: see the log"
        children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text("ascii").split()
        init = int(children[0])
        namespace = _namespace_of(init)
        yield init
    finally:
        for child in Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text("ascii").split():
            os.kill(int(child), signal.SIGKILL)
        keeper.wait()
        assert keeper.stdout is not None
        keeper.stdout.close()
        if namespace:
            wait_for("all its processes have ended", lambda: not _in_namespace(namespace))


def _namespace_of(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/pid").readlink())


def _in_namespace(namespace: str) -> dict[int, str]:
    """The processes of a PID namespace: this machine's process id and the command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if _namespace_of(int(entry.name)) == namespace:
                found[int(entry.name)] = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                )
        except OSError:
            continue
    return found


def project_files() -> list[str]:
    """What git would commit now, by name: all that is not ignored."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    names = [name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]
    assert "Makefile" in names
    return names


# --- the root -----------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where this project keeps what takes long to make."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coral-reef"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def debian_packages(*purposes: str) -> list[str]:
    """Those that debian-packages.txt lists for any of these purposes."""
    lines = (ROOT / "debian-packages.txt").read_text("utf-8").splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    return sorted({package for package, purpose, *_ in words if purpose in purposes})


def debian_archive(name: str, packages: Sequence[str], log: IO[bytes], *, hook: str = "") -> Path:
    """A root with these packages as a tar archive: today's from the cache, or a new one. `hook` is a shell script that finds the
    root in $1 and mmdebstrap's settings for apt in $MMDEBSTRAP_APT_CONFIG."""
    cache = cache_folder()
    sources = _sources()
    recipe = (tuple(packages), _LEFT_OUT, _suite(), [path.read_bytes() for path in sources], hook)
    key = hashlib.sha256(repr(recipe).encode())
    today = str(datetime.datetime.now(datetime.UTC).date())
    archive = cache / f"{name}-{today}-{key.hexdigest()[:12]}.tar"
    if archive.exists():
        return archive
    for old in cache.glob(f"{name}-20*.tar"):
        if today not in old.name:
            old.unlink()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as working:
        new = Path(working) / "root.tar"
        subprocess.run(
            [
                "mmdebstrap",
                "--variant=minbase",
                "--format=tar",
                f"--include={','.join(packages)}",
                "--dpkgopt=force-unsafe-io",
                *(f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT),
                *([f"--customize-hook={hook}"] if hook else []),
                _suite(),
                str(new),
                *map(str, sources),
            ],
            env={**os.environ, "TMPDIR": working},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            timeout=BUILD_TIMEOUT_S,
            check=True,
        )
        partial = archive.with_suffix(".partial")
        shutil.copyfile(new, partial)
        partial.rename(archive)
    return archive


def _suite() -> str:
    """The Debian that this machine runs."""
    release = Path("/etc/os-release").read_text("utf-8").splitlines()
    return next(line.partition("=")[2] for line in release if line.startswith("VERSION_CODENAME="))


def _sources() -> list[Path]:
    """Where this machine gets Debian itself from; other suppliers' packages are not for a fresh one."""
    folder = Path("/etc/apt/sources.list.d")
    named = [path for path in sorted(folder.glob("debian*.sources")) if path.is_file()]
    if named:
        return named
    signed = [
        path for path in sorted(folder.glob("*.sources")) if b"debian-archive-keyring" in path.read_bytes()
    ]
    if signed:
        return signed
    one = Path("/etc/apt/sources.list")
    assert one.exists(), "this machine has no package sources of Debian"
    return [one]


# --- what is lent -------------------------------------------------------------------------------------------------


def _lend_network(machine: FreshDebian) -> None:
    """Name servers, certificates, and the settings of apt and pip, with the folders that those name."""
    for name in ("resolv.conf", "hosts"):
        machine.lend(Path("/etc") / name)
    if certificates := _certificates():
        machine.lend(certificates, to=CERTIFICATES)
        setting = f'Acquire::https::CaInfo "{CERTIFICATES}";\n'
        (machine.root / "etc/apt/apt.conf.d/00certificates").write_text(setting, "ascii")
    for path in (Path("/etc/apt/apt.conf"), *sorted(Path("/etc/apt/apt.conf.d").glob("*"))):
        # How to fetch, not what to do afterwards.
        if path.is_file() and b"Acquire::" in path.read_bytes():
            machine.lend(path)
    settings = _pip_settings()
    for path in settings:
        inside = Path("/root") / path.relative_to(Path.home()) if path.is_relative_to(Path.home()) else path
        machine.lend(path, to=inside)
    for place in _pip_places(settings):
        machine.lend(place)


def _certificates() -> Path | None:
    """The bundle that this machine trusts."""
    named = [os.environ.get(name, "") for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")]
    for name in (*named, "/etc/ssl/certs/ca-certificates.crt"):
        if name and Path(name).is_file():
            return Path(name)
    return None


def _pip_settings() -> list[Path]:
    """The configuration files that pip reads on this machine."""
    shown = subprocess.run(
        [sys.executable, "-m", "pip", "config", "debug"], capture_output=True, text=True, check=True
    ).stdout
    return [
        Path(line.partition(", exists: True")[0].strip())
        for line in shown.splitlines()
        if line.endswith(", exists: True")
    ]


def _pip_places(settings: Sequence[Path]) -> list[Path]:
    """Folders of packages on this machine that pip's settings name."""
    values = [os.environ.get(f"PIP_{option.upper().replace('-', '_')}", "") for option in _PIP_PLACES]
    for path in settings:
        parser = configparser.RawConfigParser()
        parser.read(path, "utf-8")
        values += [
            parser.get(section, option, fallback="")
            for section in parser.sections()
            for option in _PIP_PLACES
        ]
    words = [word.removeprefix("file://").rstrip("/") for value in values for word in value.split()]
    places = {Path(word) for word in words if word.startswith("/")}
    # The pages of an index name files beside it: `../../files/...`.
    return sorted(
        place.parent if place.name == "simple" and place.parent != Path("/") else place for place in places
    )


def _environment() -> list[str]:
    """`NAME=value` of what a login sets, and of what this machine needs to reach the network."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.lower() in _NETWORK or (name.startswith("PIP_") and name != "PIP_CONFIG_FILE")
    }
    certificates = dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE"), str(CERTIFICATES)) if _certificates() else {}
    login = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "USER": "root",
        "SHELL": "/bin/bash",
        "TERM": "dumb",
        "CORAL_REEF_FRESH_DEBIAN": "1",
    }
    return [f"{name}={value}" for name, value in {**kept, **certificates, **login}.items()]
