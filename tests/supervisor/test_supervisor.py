"""The supervisor's rules: what it imports, who holds the state folder, what may follow on what."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.config.load import load
from appliance.paths import Paths
from appliance.process import resident_bytes
from appliance.supervisor.errors import AlreadyRunning, SubsystemDead
from appliance.supervisor.service import StateLock, Supervisor
from appliance.supervisor.workers import NEXT, describe_exit
from appliance.wire.messages import WorkerState

ENGINES = "xllamacpp sqlalchemy sqlcipher3 alembic litestar uvicorn numpy httpx appliance.storage appliance.inference.text"


def test_no_engine_and_no_database() -> None:
    code = f"import sys, appliance.supervisor.__main__ as m; print([n for n in {ENGINES.split()!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_state_has_its_followers() -> None:
    assert set(NEXT) == set(WorkerState)
    assert all(following <= set(WorkerState) for following in NEXT.values())
    assert NEXT[WorkerState.STOPPING] == frozenset()
    assert all(state not in following for state, following in NEXT.items())
    reached = {WorkerState.WAITING}  # where a worker begins
    while more := set().union(*(NEXT[state] for state in reached)) - reached:
        reached |= more
    assert reached == set(WorkerState)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "ended with status 0"),
        (1 << 8, "ended with status 1"),
        (70 << 8, "ended with status 70"),
        (signal.SIGKILL, "ended by SIGKILL"),
        (signal.SIGSEGV | 128, "ended by SIGSEGV"),
        (35, "ended by signal 35"),
    ],
)
def test_an_end_in_words(status: int, words: str) -> None:
    assert describe_exit(status) == words


def test_every_signal_has_words() -> None:
    for number in signal.valid_signals():
        if number <= 31:
            assert describe_exit(number) == f"ended by {signal.Signals(number).name}"


def test_resident_set() -> None:
    assert resident_bytes(os.getpid()) > 1_000_000
    assert resident_bytes(2**22 + 1) == 0


def test_one_supervisor_a_folder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("a number of a process that died long ago: 99999999")
    with StateLock(lock):
        assert lock.read_text() == f"{os.getpid()}\n"
        with (
            pytest.raises(
                AlreadyRunning, match=f"{tmp_path} is in use by process {os.getpid()}: stop that one"
            ),
            StateLock(lock),
        ):
            raise AssertionError("two hold it")
        assert lock.read_text() == f"{os.getpid()}\n"
    with StateLock(lock):
        assert lock.exists()


async def test_a_worker_that_nobody_looks_after(tmp_path: Path) -> None:
    supervisor = Supervisor(Paths.under(tmp_path), load(Paths.under(tmp_path)))
    supervisor._tasks["text-1"] = asyncio.create_task(asyncio.sleep(0))
    await supervisor._tasks["text-1"]
    with pytest.raises(SubsystemDead, match="nobody looks after worker text-1 any more"):
        await supervisor._prove()


def test_the_lock_of_a_process_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from appliance.supervisor.service import StateLock\n"
        "with StateLock(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    lock = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(AlreadyRunning, match=f"process {holder.pid}:"), StateLock(lock):
            raise AssertionError("two hold it")
        holder.kill()
        holder.wait()
        with StateLock(lock):
            assert lock.read_text() == f"{os.getpid()}\n"
