"""How soon the appliance is there, and what it takes when idle."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from .appliance_run import RunningAppliance
from .report import ms, row

READY_LIMIT_S = 1.0
HEALTHY_LIMIT_S = 3.0
SUPERVISOR_LIMIT_MIB = 40.0


def measure(rounds: int) -> None:
    """The supervisor to READY=1; `coral-reef run` to its first healthy answer on a state folder that exists; resident sets."""
    median = statistics.median
    ready = median(_ready_s() for _ in range(rounds))
    row("supervisor to READY", ms(ready), ms(READY_LIMIT_S), ready / READY_LIMIT_S)
    times = []
    for _ in range(rounds):
        with RunningAppliance() as appliance:
            times.append(appliance.start_s)
            memory = list(appliance.memory())
    healthy = median(times)
    row(
        "coral-reef run to the first healthy answer",
        ms(healthy),
        ms(HEALTHY_LIMIT_S),
        healthy / HEALTHY_LIMIT_S,
    )
    for title, used in memory:
        mib = used / 2**20
        limit = SUPERVISOR_LIMIT_MIB if title.endswith("supervisor") else None
        title = title if title.startswith("coral-reef:") else "coral-reef run"
        row(
            f"memory: {title}",
            f"{mib:.1f} MiB",
            f"{limit:.1f} MiB" if limit else "",
            mib / limit if limit else None,
        )


def _ready_s() -> float:
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as state,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
    ):
        path = f"{state}/notify"
        notify.bind(path)
        environment = {**os.environ, "CORAL_REEF_STATE": state, "NOTIFY_SOCKET": path}
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "appliance.supervisor"], env=environment, stderr=subprocess.DEVNULL
        )
        while b"READY=1" not in notify.recv(4096):
            pass
        taken = time.perf_counter() - began
        process.terminate()
        process.wait(30)
        return taken
