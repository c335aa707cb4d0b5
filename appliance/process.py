"""What each process of ours asks of the kernel for itself."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_M_MMAP_THRESHOLD = -3


def die_with_parent(parent: int, signal_number: int = signal.SIGKILL) -> None:
    """The kernel sends us `signal_number` when the thread that started us ends; at once when `parent` has ended already.

    prctl(2), PR_SET_PDEATHSIG. A change of user clears it: call this after.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal_number)


def drop_capabilities() -> None:
    """Gives up every capability, and with them the way to hand any down: capset(2), prctl(2), PR_CAP_AMBIENT."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_CAP_AMBIENT)")
    header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()  # two of (effective, permitted, inheritable), for 64 capabilities
    if libc.capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def give_back_blocks(larger_than_bytes: int) -> None:
    """From now on, memory blocks larger than this go back to the kernel when they are freed: mallopt(3), M_MMAP_THRESHOLD.

    Else the C library learns from the first large block that such are kept, and the process stays as large as it once was.
    """
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, larger_than_bytes)


def watchdog_period_s() -> float | None:
    """Half of what systemd wants to hear from us, None when it does not: sd_watchdog_enabled(3)."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2_000_000


def age_s() -> float:
    """Seconds since this process was started, its interpreter's own start included. proc(5), stat; exact to 10 ms."""
    fields = Path("/proc/self/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Resident set of a process, 0 when it is gone or out of sight (ProtectProc=). proc(5), statm."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def available_cores() -> int:
    """Cores that this process may use: of the machine, or of the set that it was bound to. sched_getaffinity(2)."""
    return len(os.sched_getaffinity(0))
