"""A supervisor with its workers in this process's loop, TPUs that the stand-in plays, and a gateway's links to it. The table
of devices is played by the test."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from appliance.config.appliance import Appliance, Inference
from appliance.config.load import Settings, load
from appliance.gateway.links import SupervisorLink, WorkerLinks
from appliance.gateway.tensors import Tensors
from appliance.paths import Paths
from appliance.supervisor.service import Supervisor
from appliance.wire.messages import Invoked, Priority, Tpu, TpuRole, TpuState
from tests.edgetpu.stand_in import Fake, add_text_models
from tests.waiting import look_until

TEXTS = [f"text number {number} about the sea and its tide" for number in range(40)]

#: How long an invoke may take here before its worker is ended.
INVOKE_LIMIT_S = 0.5


@dataclass
class Table:
    """Plays the table of devices: a TPU that failed is left out."""

    supervisor: Supervisor
    tpus: dict[str, Tpu] = field(default_factory=dict)
    said: list[tuple[str, str]] = field(default_factory=list)

    def plug(self, *fakes: Fake, tray: str = "tray-1", load_limit: float = 1.0) -> None:
        for slot, fake in enumerate(fakes, len(self.tpus) + 1):
            self.tpus[fake.id] = Tpu(
                id=fake.id,
                bus=fake.bus,
                state=TpuState.READY,
                node=fake.node,
                sysfs="",
                tray=tray,
                slot=slot,
                role=TpuRole.MEMORY,
                load_limit=load_limit,
            )
        self.tell()

    def unplug(self, *fakes: Fake) -> None:
        for fake in fakes:
            self.tpus.pop(fake.id, None)
        self.tell()

    def tell(self) -> None:
        self.supervisor._tensors.tpus_changed(list(self.tpus.values()))

    def opening(self, tpu_id: str, worker: str) -> None:
        self.said.append(("opening", tpu_id))

    def opened(self, tpu_id: str, worker: str) -> None:
        self.said.append(("opened", tpu_id))

    def closed(self, tpu_id: str, worker: str) -> None:
        self.said.append(("closed", tpu_id))

    def failed(self, tpu_id: str, worker: str, reason: str) -> None:
        self.said.append(("failed", tpu_id))
        self.tpus.pop(tpu_id, None)
        self.tell()


@dataclass
class Tower:
    """A running supervisor and a gateway's side of it."""

    supervisor: Supervisor
    table: Table
    tensors: Tensors
    embedding: str

    async def embed(self, texts: list[str] = TEXTS, *, account: str = "somebody") -> Invoked:
        found, model = await self.tensors.invoke("embedding", texts, account=account, priority=Priority.LOW)
        assert model == "coral-reef-embedding"
        assert len(found.outputs) == len(texts)
        return found

    async def until_open(self, count: int) -> None:
        """Until so many TPUs are open."""
        await look_until(
            f"{count} TPUs are open",
            lambda: sum(len(each) for each in self.supervisor._tensors._open.values()) == count,
        )

    def pid(self, worker: str) -> int:
        return self.supervisor._keepers[worker].pid

    def repairs(self) -> dict[str, str]:
        return {repair.kind: repair.what for repair in self.supervisor.status().repairs}


@asynccontextmanager
async def running_tower(*, compiled: bool = True) -> AsyncIterator[Tower]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    paths = Paths.under(folder)
    for each in (paths.run, paths.supervisor, paths.workers, paths.etc):
        each.mkdir(parents=True, exist_ok=True)
    models = add_text_models(paths.models, compiled=compiled)
    inference = Inference(invoke_limit_s=INVOKE_LIMIT_S)
    settings = Settings(appliance=Appliance(inference=inference), network=load(paths).network, warnings=())
    supervisor = Supervisor(paths, settings)
    table = Table(supervisor)
    supervisor._tensors.events = table
    serving = asyncio.create_task(supervisor.run())
    link = SupervisorLink(str(paths.control_socket))
    workers = WorkerLinks()
    link.start()
    try:
        await look_until("the CPU's worker is ready", lambda: supervisor._invocations._workers)
        yield Tower(supervisor, table, Tensors(link, workers), models["embedding"].twin)
    finally:
        await workers.close()
        await link.close()
        supervisor._stop.set()
        await serving
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
        shutil.rmtree(folder)
