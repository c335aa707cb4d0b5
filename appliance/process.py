"""What each process of ours asks of the kernel for itself."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, signal_number: int = signal.SIGKILL) -> None:
    """The kernel sends us `signal_number` when the thread that started us ends; at once when `parent` has ended already.

    prctl(2), PR_SET_PDEATHSIG. A change of user clears it: call this after.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal_number)


def age_s() -> float:
    """Seconds since this process was started, its interpreter's own start included. proc(5), stat; exact to 10 ms."""
    fields = Path("/proc/self/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def available_cores() -> int:
    """Cores that this process may use: of the machine, or of the set that it was bound to. sched_getaffinity(2)."""
    return len(os.sched_getaffinity(0))
