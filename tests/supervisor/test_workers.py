"""The keeper of one worker, with a real forkserver and engine; what systems tests would have to wait a minute for."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Collection

import pytest

from appliance.inference.models import shipped
from appliance.supervisor import workers
from appliance.supervisor.forkserver import Forkserver
from appliance.supervisor.workers import WorkerKeeper
from appliance.wire.messages import TpuReport, WorkerSpec, WorkerState
from tests.waiting import look_until

MODEL = shipped()["coral-reef-chat"]


class Events:
    """Takes what a keeper tells."""

    def worker_ready(self, name: str, *, model: str, slots: int, adapters: Collection[str]) -> None:
        pass

    def tpu_report(self, worker: str, report: TpuReport) -> None:
        pass

    def closing(self, worker: str) -> int:
        return 0

    def worker_gone(self, name: str) -> None:
        pass

    def worker_changed(self, name: str) -> None:
        pass

    def leases_of(self, name: str) -> int:
        return 0

    async def idle(self, worker: str) -> None:
        pass


async def test_loading_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that loads is silent for as long as the disk takes; one that is silent for longer is ended."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        spec = WorkerSpec(
            name="text-1",
            kind="text",
            model=MODEL.name,
            model_path=str(MODEL.path),
            model_sha256=MODEL.entry.sha256,
            model_size_bytes=MODEL.entry.size_bytes,
            socket=f"{folder}/text-1.sock",
            folder=f"{folder}/engine",
            slots=1,
            threads=1,
            context_tokens=256,
            batch_tokens=32,
            cache_mib=0,
        )
        keepers: list[WorkerKeeper] = []
        forkserver = Forkserver(lambda pid, status: keepers[0].exited(pid, status))
        keeper = WorkerKeeper(
            spec,
            lambda: spec,
            forkserver,
            Events(),
            restart_delay_s=0.05,
            drain_s=1,
            memory_limit_bytes=0,
        )
        keepers.append(keeper)
        monkeypatch.setattr(workers, "LOAD_FLOOR_S", 0.0)
        monkeypatch.setattr(workers, "LOAD_BYTES_PER_S", float("inf"))
        running = asyncio.create_task(keeper.run())
        detail = await look_until(
            "it is ended", lambda: keeper.status(0).restarts and keeper.status(0).detail
        )
        assert detail == "not loaded after 0 s"
        monkeypatch.setattr(workers, "LOAD_FLOOR_S", 60.0)
        await look_until("it is ready in time", lambda: keeper.state is WorkerState.READY)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await forkserver.close()
