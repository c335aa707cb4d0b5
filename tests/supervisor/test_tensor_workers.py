"""The workers of embedding and emotion models, with a real supervisor, its forkserver and its workers, and a gateway's links.

The TPUs are the stand-in's (tests/edgetpu); the table of devices is played by the test.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import time
from array import array
from pathlib import Path

import pytest

from appliance.inference.text_models import EmbeddingModel, open_text_model
from appliance.wire.messages import WorkerState
from tests.edgetpu import models
from tests.edgetpu.models import EMOTIONS
from tests.edgetpu.stand_in import Fake, StandIn
from tests.edgetpu.tower import TEXTS, running_tower
from tests.waiting import look_until, running


@pytest.fixture(autouse=True)
def no_tpus_left(stand_in: StandIn) -> None:
    stand_in.tell()


async def test_the_cpu_serves_where_no_tpu_is(stand_in: StandIn) -> None:
    async with running_tower() as tower:
        found = await tower.embed()
        assert found.ran_on == ["cpu"]
        assert found.tokens == sum(len(text.split()) for text in TEXTS)
        vector = array("f", found.outputs[0])
        assert sum(each * each for each in vector) == pytest.approx(1)
        model = open_text_model(Path(tower.embedding))
        assert isinstance(model, EmbeddingModel)
        assert len(vector) == model.outputs
        emotion = await tower.tensors.emotion_of("what a lovely day", "somebody")
        assert emotion is not None
        assert emotion.emotion in EMOTIONS
        assert 0 <= emotion.intensity <= 1
        status = tower.supervisor.status()
        (cpu,) = [worker for worker in status.workers if worker.kind == "cpu"]
        assert cpu.engine is not None
        assert cpu.engine.build == "xnnpack"
        assert {model.name for model in status.models if "cpu-1" in model.loaded_by} == {
            "coral-reef-embedding",
            "coral-reef-emotion",
        }
        assert "models_not_compiled" not in tower.repairs()


async def test_tpus_take_over_and_give_the_same(stand_in: StandIn) -> None:
    fakes = [Fake(name, ms=5) for name in ("usb-1-1.2", "pci-0", "usb-2-1", "pci-1")]
    stand_in.tell(*fakes, open_ms=50)
    async with running_tower() as tower:
        before = await tower.embed()
        tower.table.plug(*fakes)
        await tower.until_open(4)
        after = await tower.embed()
        assert set(after.ran_on) <= {fake.id for fake in fakes}
        assert len(after.ran_on) > 1  # one batch is spread
        assert after.outputs == before.outputs
        assert {("opening", fake.id) for fake in fakes} <= set(tower.table.said)
        assert {("opened", fake.id) for fake in fakes} <= set(tower.table.said)
        (worker,) = [each for each in tower.supervisor.status().workers if each.kind == "tpu"]
        assert worker.detail == "4 of 4 TPUs open"
        assert worker.slots == 4
        tower.table.unplug(*fakes)
        await look_until(
            "no TPU worker is left", lambda: not [k for k in tower.supervisor._keepers if k.startswith("tpu")]
        )
        assert (await tower.embed()).ran_on == ["cpu"]


async def test_a_tpu_that_goes_in_the_middle(stand_in: StandIn) -> None:
    fakes = [Fake("pci-0", ms=20), Fake("pci-1", ms=20)]
    stand_in.tell(*fakes)
    async with running_tower() as tower:
        tower.table.plug(*fakes)
        await tower.until_open(2)
        asked = asyncio.create_task(tower.embed())
        await look_until("it is under way", lambda: stand_in.heard("invoke", fakes[0]) > 4)
        stand_in.tell(fakes[1], Fake("pci-0", "error"))
        found = await asked
        assert "pci-1" in found.ran_on
        assert ("failed", "pci-0") in tower.table.said
        assert found.outputs == (await tower.embed()).outputs


async def test_a_tpu_that_the_table_has_lost_already(
    stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker's report crosses the news that its TPU is gone: the real table refuses, the worker lets go, and everybody goes
    on."""
    caplog.set_level("INFO")
    fake = Fake("usb-1-1")
    stand_in.tell(fake)
    async with running_tower() as tower:
        tower.supervisor._tensors.events = tower.supervisor.tpus.watch  # which knows of no such TPU
        tower.table.plug(fake)
        await look_until("it was refused", lambda: "no TPU is called 'usb-1-1'" in caplog.text)
        await tower.until_open(0)
        assert (await tower.embed()).ran_on == ["cpu"]
        tower.supervisor._tensors.events = tower.table
        tower.table.tell()
        await tower.until_open(1)
        assert (await tower.embed()).ran_on == ["usb-1-1"]
    assert "Exception" not in caplog.text


async def test_the_last_tpu_goes_in_the_middle(stand_in: StandIn) -> None:
    fake = Fake("usb-1-1", ms=20)
    stand_in.tell(fake)
    async with running_tower() as tower:
        tower.table.plug(fake)
        await tower.until_open(1)
        asked = asyncio.create_task(tower.embed())
        await look_until("it is under way", lambda: stand_in.heard("invoke", fake) > 4)
        stand_in.tell(Fake("usb-1-1", "error"))
        assert (await asked).ran_on == ["cpu"]


async def test_a_wedged_invoke_costs_its_worker_alone(stand_in: StandIn) -> None:
    good, bad = Fake("pci-0"), Fake("pci-1")
    stand_in.tell(good, bad)
    async with running_tower() as tower:
        tower.table.plug(good, tray="tray-1")
        tower.table.plug(bad, tray="tray-2")
        await tower.until_open(2)
        other, wedged = tower.pid("tpu-1"), tower.pid("tpu-2")
        stand_in.tell(good, Fake("pci-1", "wedge"))
        asked = [asyncio.create_task(tower.embed()) for _ in range(4)]
        await look_until("the wedged worker is gone", lambda: not running(wedged))
        began = time.monotonic()
        found = [await each for each in asked]
        assert time.monotonic() - began < 5
        assert len({tuple(each.outputs) for each in found}) == 1
        assert all("pci-1" not in each.ran_on for each in found)
        assert ("failed", "pci-1") in tower.table.said
        assert tower.pid("tpu-1") == other


async def test_replugged_between_two_looks(stand_in: StandIn) -> None:
    """It was usable before and after, and is another one all the same: its worker lets go of the old one and opens it anew."""
    fake = Fake("pci-0")
    stand_in.tell(fake)
    async with running_tower() as tower:
        tower.table.plug(fake)
        await tower.until_open(1)
        pid = tower.pid("tpu-1")
        tower.table.said.clear()
        tower.supervisor._tensors.tpu_lost("pci-0", "tpu-1")
        await tower.until_open(0)
        tower.table.tell()
        await tower.until_open(1)
        assert [what for what, _ in tower.table.said if what != "opening"] == ["closed", "opened"]
        tower.supervisor._tensors.tpu_lost("pci-7", "tpu-1")
        tower.supervisor._tensors.tpu_lost("pci-0", "tpu-9")
        assert (await tower.embed()).ran_on == ["pci-0"]
        assert tower.pid("tpu-1") == pid


async def test_a_stuck_tpu_that_is_taken_away_is_not_counted_on(stand_in: StandIn) -> None:
    good, bad = Fake("pci-0"), Fake("pci-1")
    stand_in.tell(good, bad)
    async with running_tower() as tower:
        tower.table.plug(good, bad)
        await tower.until_open(2)
        stand_in.tell(good, Fake("pci-1", "wedge"))
        before = stand_in.heard("invoke", bad)
        asked = [asyncio.create_task(tower.embed()) for _ in range(4)]
        await look_until("it is stuck", lambda: stand_in.heard("invoke", bad) > before)
        tower.table.unplug(bad)
        await tower.until_open(1)
        found = [await each for each in asked]
        assert all(each.ran_on in (["pci-0"], ["pci-0", "pci-1"]) for each in found)
        assert len({tuple(each.outputs) for each in found}) == 1


async def test_a_library_that_crashes_at_an_invoke(stand_in: StandIn) -> None:
    fake = Fake("pci-0")
    stand_in.tell(fake)
    async with running_tower() as tower:
        tower.table.plug(fake)
        await tower.until_open(1)
        pid = tower.pid("tpu-1")
        stand_in.tell(Fake("pci-0", "crash"))
        assert (await tower.embed()).ran_on == ["cpu"]
        await look_until("it is gone", lambda: not running(pid))
        stand_in.tell(fake)
        await tower.until_open(1)
        await look_until("it works again", lambda: tower.supervisor._invocations._workers.get("tpu-1"))
        assert (await tower.embed()).ran_on == ["pci-0"]


async def test_a_library_for_another_tensorflow(stand_in: StandIn) -> None:
    fake = Fake("pci-0")
    stand_in.tell(fake, skew=True)
    async with running_tower() as tower:
        tower.table.plug(fake)
        what = await look_until("the repair is there", lambda: tower.repairs().get("tpu_library"))
        assert "SIGSEGV" in what
        assert (
            tower.supervisor._keepers["tpu-1"].state is WorkerState.READY
        )  # the worker itself did not crash
        assert (await tower.embed()).ran_on == ["cpu"]


async def test_models_that_nobody_compiled(stand_in: StandIn) -> None:
    async with running_tower(compiled=False) as tower:
        tower.table.plug(Fake("pci-0"))
        assert "models_not_compiled" in tower.repairs()
        assert "tpu-1" not in tower.supervisor._keepers
        assert (await tower.embed()).ran_on == ["cpu"]
        tower.table.unplug(Fake("pci-0"))
        assert "models_not_compiled" not in tower.repairs()


async def test_a_compiled_model_whose_twin_is_another_now(stand_in: StandIn) -> None:
    async with running_tower(compiled=False) as tower:
        folder = Path(tower.embedding).parent
        manifest = json.loads((folder / "manifest.json").read_text())
        twin = manifest["models"][0]
        content = models.compiled(models.text_model("embedding"))
        (folder / "made_edgetpu.tflite").write_bytes(content)
        made = {
            **twin,
            "name": "made",
            "file": "made_edgetpu.tflite",
            "sha256": hashlib.sha256(content).hexdigest(),
            "size_bytes": len(content),
            "twin": twin["name"],
        }
        for twin_sha256, astray in (("0" * 64, True), (twin["sha256"], False)):
            entries = [*manifest["models"], {**made, "twin_sha256": twin_sha256}]
            (folder / "manifest.json").write_text(json.dumps({"models": entries}))
            tower.table.plug(Fake("pci-0"))
            assert ("has changed since" in tower.repairs().get("model_astray", "")) is astray
            assert ("tpu-1" in tower.supervisor._keepers) is not astray
        stand_in.tell(Fake("pci-0"))
        tower.table.unplug(Fake("pci-0"))
        await look_until("it has stopped", lambda: "tpu-1" not in tower.supervisor._keepers)
        tower.table.plug(Fake("pci-0"))
        await tower.until_open(1)
        assert (await tower.embed()).ran_on == ["pci-0"]


async def test_what_was_compiled_is_broken(stand_in: StandIn) -> None:
    """The CPU goes on with the twins; the TPU's worker says what is wrong, and takes it up when it is mended."""
    fake = Fake("pci-0")
    stand_in.tell(fake)
    async with running_tower() as tower:
        folder = Path(tower.embedding).parent
        kept = {}
        for file in folder.glob("*_edgetpu.tflite"):
            kept[file] = file.read_bytes()
            file.write_bytes(kept[file][:1000])
        tower.table.plug(fake)
        what = await look_until("it is told", lambda: tower.repairs().get("small_model_unusable"))
        assert "_edgetpu.tflite" in what
        assert (await tower.embed()).ran_on == ["cpu"]
        for file, content in kept.items():
            file.write_bytes(content)
        await tower.until_open(1)
        assert (await tower.embed()).ran_on == ["pci-0"]
        assert "small_model_unusable" not in tower.repairs()


async def test_the_cpus_worker_is_killed_in_the_middle(stand_in: StandIn) -> None:
    async with running_tower() as tower:
        pid = tower.pid("cpu-1")
        asked = [asyncio.create_task(tower.embed()) for _ in range(8)]
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        found = [await each for each in asked]
        assert len({tuple(each.outputs) for each in found}) == 1
        assert tower.pid("cpu-1") != pid
