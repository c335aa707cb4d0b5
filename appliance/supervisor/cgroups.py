"""A control group for each worker, below the one that systemd delegates to the service (`Delegate=cpu memory pids`).

cgroups(7), version 2; the kernel allows processes only in the leaves, so the supervisor moves itself into one first. Without a
delegated group (`make run`, an older kernel) there are none, and the keeper watches the resident set instead.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

ROOT = Path("/sys/fs/cgroup")
VMSTAT = Path("/proc/vmstat")
CONTROLLERS = ("cpu", "memory", "pids")

#: Inference gives way to the processes that keep the appliance reachable (100 is everybody's default).
WORKER_CPU_WEIGHT = 50

#: An engine starts a few threads a slot; what has more is a runaway.
WORKER_PIDS = 1024


class Group:
    """One worker's control group."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # A group that could not be removed after the last life, because a process of it was not quite gone, goes on counting.
        self._oom_kills_before = self._all_oom_kills()

    def enter(self, pid: int) -> None:
        """Moves a process in. OSError when it is gone or the kernel refuses."""
        (self.folder / "cgroup.procs").write_text(str(pid), "ascii")

    def oom_kills(self) -> int:
        """How often the kernel killed in this life of the group because memory.max was reached; 0 when it does not count."""
        return self._all_oom_kills() - self._oom_kills_before

    def _all_oom_kills(self) -> int:
        return _oom_kills(self.folder / "memory.events")

    def limit_memory(self, limit_bytes: int) -> None:
        """From now on; 0 is no limit. OSError when the kernel refuses; nothing happens where memory is not counted."""
        if not (self.folder / "memory.max").exists():
            return
        (self.folder / "memory.max").write_text(str(limit_bytes) if limit_bytes else "max", "ascii")
        # Swapping out a worker would only make it slow, which looks like a stall.
        with contextlib.suppress(OSError):  # a kernel without swap accounting
            (self.folder / "memory.swap.max").write_text("0" if limit_bytes else "max", "ascii")

    def close(self) -> None:
        """Removes the group; one that still has processes stays until the service stops."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()


class Groups:
    """The delegated group, divided; `available` is False where there is none."""

    def __init__(self, own: Path | None) -> None:
        self._own = own
        self.available = own is not None
        self.controllers: frozenset[str] = frozenset()

    @classmethod
    def of_this_process(cls, root: Path = ROOT) -> Groups:
        """Divides the group that this process is in, when systemd has delegated it."""
        own = _delegated(root)
        groups = cls(own)
        if own is not None:
            try:
                groups._divide(own)
            except OSError as error:
                log.warning("workers get no control groups: %s", error)
                groups.available = False
        return groups

    def _divide(self, own: Path) -> None:
        ours = own / "supervisor"
        ours.mkdir(exist_ok=True)
        for pid in (own / "cgroup.procs").read_text("ascii").split():
            (ours / "cgroup.procs").write_text(pid, "ascii")
        offered = (own / "cgroup.controllers").read_text("ascii").split()
        for controller in CONTROLLERS:
            if controller in offered:
                (own / "cgroup.subtree_control").write_text(f"+{controller}", "ascii")
        self.controllers = frozenset(offered) & frozenset(CONTROLLERS)
        if missing := set(CONTROLLERS) - self.controllers:
            log.warning("control groups without %s: not limited for workers", ", ".join(sorted(missing)))

    def make(self, name: str, *, memory_limit_bytes: int) -> Group | None:
        """A fresh group for a worker; None where there are none. A limit of 0 is none."""
        if not self.available or self._own is None:
            return None
        folder = self._own / f"worker-{name}"
        try:
            folder.mkdir(exist_ok=True)
            group = Group(folder)
            group.limit_memory(memory_limit_bytes)
            if "memory" in self.controllers:
                (folder / "memory.oom.group").write_text("1", "ascii")
            if "cpu" in self.controllers:
                (folder / "cpu.weight").write_text(str(WORKER_CPU_WEIGHT), "ascii")
            if "pids" in self.controllers:
                (folder / "pids.max").write_text(str(WORKER_PIDS), "ascii")
        except OSError as error:
            log.warning("worker %s gets no control group: %s", name, error)
            return None
        return group


def machine_oom_kills() -> int:
    """How often the kernel ended a process of this machine for want of memory, in whatever group; 0 if it does not say."""
    return _oom_kills(VMSTAT)


def _oom_kills(path: Path) -> int:
    """The line `oom_kill` of memory.events or of /proc/vmstat: cgroups(7), proc(5)."""
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text("ascii").splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def _delegated(root: Path) -> Path | None:
    """The version 2 group of this process when systemd marked it as delegated and it can be written."""
    try:
        line = next(
            each for each in Path("/proc/self/cgroup").read_text().splitlines() if each.startswith("0::")
        )
    except (OSError, StopIteration):
        return None
    own = root / line.removeprefix("0::").lstrip("/")
    if own.name == "supervisor":  # an earlier life of this service divided it already
        own = own.parent
    for mark in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(own, mark) == b"1" and os.access(own / "cgroup.procs", os.W_OK):
                return own
    return None
