"""What a process asks of the kernel."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import appliance
from tests.waiting import running, wait_until_gone

CHILD = (
    "import time; from appliance.process import die_with_parent; die_with_parent({parent});"
    "print('alive', flush=True); time.sleep(60)"
)
PARENT = (
    "import os, subprocess, sys\n"
    f"child = subprocess.Popen([sys.executable, '-c', {CHILD!r}.format(parent=os.getpid())], stdout=subprocess.PIPE)\n"
    "child.stdout.readline(); print(child.pid, flush=True); sys.stdin.read()"
)


def test_a_child_dies_with_its_parent() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert running(child)
        parent.kill()
    wait_until_gone(child)


def test_a_parent_that_is_gone_already() -> None:
    code = CHILD.format(parent=os.getpid() + 100_000)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to give up")
def test_no_capability_is_left() -> None:
    code = (
        "from appliance.process import drop_capabilities; drop_capabilities()\n"
        "print([line.split()[1] for line in open('/proc/self/status') if line[:6] in "
        "('CapInh', 'CapPrm', 'CapEff', 'CapAmb')])"
    )
    ambient = "+setuid,+setgid,+kill"
    become = [
        "setpriv",
        "--reuid=65534",
        f"--inh-caps={ambient}",
        f"--ambient-caps={ambient}",
        "--clear-groups",
    ]
    folder = str(Path(appliance.__file__).parents[1])
    # What runs as another user reads neither our folders nor a virtual environment in them.
    with tempfile.TemporaryDirectory(dir="/tmp") as readable:
        Path(readable).chmod(0o755)
        shutil.copytree(
            Path(folder) / "appliance", Path(readable) / "appliance", ignore=lambda *_: ["models", "making"]
        )
        done = subprocess.run(
            [*become, "/usr/bin/python3", "-c", code],
            env={"PYTHONPATH": readable, "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout.strip() == str(["0" * 16] * 4)


HASHING = """
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from appliance.identity.passwords import hash_password
from appliance.process import give_back_blocks

def resident_kib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024

if {give_back}:
    give_back_blocks(1024 * 1024)
with ThreadPoolExecutor(1) as thread:  # as the supervisor does
    before = resident_kib()
    for _ in range(3):
        thread.submit(hash_password, "coral and reef").result()
    print(resident_kib() - before)
"""


@pytest.mark.parametrize("give_back", [True, False])
def test_what_a_password_took_is_given_back(give_back: bool) -> None:
    """19 MiB; without asking, the C library keeps them."""
    grown_kib = int(
        subprocess.run(
            [sys.executable, "-c", HASHING.format(give_back=give_back)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    assert (grown_kib < 8 * 1024) == give_back
