"""A model that was cut into segments, on several TPUs."""

from __future__ import annotations

import queue
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from appliance.inference.edgetpu import Found, LibEdgeTpu
from appliance.inference.errors import ModelRefused
from appliance.inference.pipeline import Pipeline, StageFailed
from appliance.inference.tensor_engine import TensorEngine
from appliance.inference.tensor_models import Loaded, on_cpu, on_tpu
from appliance.supervisor.tensor_workers import compiled_files
from appliance.wire.messages import Failure, Invoke, Invoked, TpuStep
from tests.edgetpu.stand_in import Fake, StandIn, write_cut_model, write_model
from tests.waiting import wait_for

ROWS = np.random.default_rng(4).integers(-128, 128, (40, 64), dtype=np.int8)
FAKES = [Fake(f"pci-{number}", ms=3) for number in range(4)]


def stages(model: Loaded, count: int = 3) -> Pipeline:
    library = LibEdgeTpu()
    pairs = zip(model.model.segments, FAKES[:count], strict=True)
    return Pipeline([on_tpu(segment, library, Found(fake.bus, fake.path)) for segment, fake in pairs])


def test_it_gives_what_the_whole_gives(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.tell(*FAKES)
    model = Loaded(write_cut_model(tmp_path, 3))
    pipeline, whole = stages(model), on_cpu(model)
    for rows in (ROWS, ROWS[:1], ROWS[:2]):
        assert (pipeline.run(rows, lambda: None) == whole.run(rows, lambda: None)).all()
    assert (pipeline.scale, pipeline.zero_point) == (whole.scale, whole.zero_point)


def test_the_stages_run_at_the_same_time(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.tell(*(Fake(fake.id, ms=20) for fake in FAKES))
    pipeline = stages(Loaded(write_cut_model(tmp_path, 3)))
    began = time.monotonic()
    pipeline.run(ROWS, lambda: None)
    one_after_the_other_s = 3 * len(ROWS) * 0.020
    assert time.monotonic() - began < 0.8 * one_after_the_other_s


@pytest.mark.parametrize("stage", range(3))
def test_a_stage_that_fails(stand_in: StandIn, tmp_path: Path, stage: int) -> None:
    stand_in.tell(*FAKES)
    pipeline = stages(Loaded(write_cut_model(tmp_path, 3)))
    broken = [Fake(fake.id, "error") if number == stage else fake for number, fake in enumerate(FAKES)]
    stand_in.tell(*broken)
    with pytest.raises(StageFailed) as failed:
        pipeline.run(ROWS, lambda: None)
    assert failed.value.stage == stage
    stand_in.tell(*FAKES)
    assert len(pipeline.run(ROWS, lambda: None)) == len(ROWS)
    assert pipeline.since == [0.0] * 3


def test_segments_that_do_not_belong_together(tmp_path: Path) -> None:
    model = write_cut_model(tmp_path, 3)
    with pytest.raises(ModelRefused, match=r"was not made from cut\.tflite"):
        Loaded(msgspec.structs.replace(model, segments=model.segments[:2]))
    with pytest.raises(ModelRefused, match=r"was not made from cut\.tflite"):
        Loaded(msgspec.structs.replace(model, segments=model.segments[::-1]))


def test_the_names_that_the_compiler_gives(tmp_path: Path) -> None:
    cut, whole = write_cut_model(tmp_path, 3), write_model(tmp_path, "whole")
    assert compiled_files(Path(cut.twin)) == ("", cut.segments)
    assert compiled_files(Path(whole.twin)) == (whole.compiled, [])
    Path(cut.segments[1]).unlink()
    assert compiled_files(Path(cut.twin)) == ("", [])


class Engine:
    """An engine with a cut model, `cut`, beside a whole one, `m`."""

    def __init__(self, folder: Path) -> None:
        models = {each.name: Loaded(each) for each in (write_cut_model(folder, 3), write_model(folder))}
        self.reports: list[tuple[str, TpuStep]] = []
        self.engine = TensorEngine(models, lambda tpu, step, _="": self.reports.append((tpu, step)))
        self.answers: queue.Queue[Invoked | Failure] = queue.Queue()
        cpu = TensorEngine(models, lambda *_: None, on_tpus=False)
        cpu.use_cpu(1)
        wait_for("it is open", lambda: cpu.open_devices)
        cpu.submit(self.message("cut"), self.answers.put)
        found = self.answers.get(timeout=30)
        assert isinstance(found, Invoked)
        self.expected = found.outputs

    @staticmethod
    def message(model: str) -> Invoke:
        return Invoke(request_id=model, model=model, tensors=[row.tobytes() for row in ROWS])

    def ask(self, model: str) -> Invoked | Failure:
        self.engine.submit(self.message(model), self.answers.put)
        return self.answers.get(timeout=30)

    def until_open(self, count: int) -> None:
        wait_for(f"{count} devices are open", lambda: len(self.engine.open_devices) == count)


def test_in_the_engine(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.tell(*FAKES)
    engine = Engine(tmp_path)
    engine.engine.use_tpus([fake.share() for fake in FAKES[:2]])
    engine.until_open(2)
    found = engine.ask("cut")
    assert isinstance(found, Failure)
    assert found.code == "no_device"  # two TPUs are too few for three segments
    engine.engine.use_tpus([fake.share() for fake in FAKES])
    engine.until_open(5)
    found = engine.ask("cut")
    assert isinstance(found, Invoked)
    assert found.outputs == engine.expected
    first = found.ran_on
    assert len(first) == 3
    assert isinstance(engine.ask("m"), Invoked)
    # one of its TPUs fails: who asked is told to ask elsewhere, and the other three are a pipeline again
    stand_in.tell(*(Fake(fake.id, "error") if fake.id == first[0] else fake for fake in FAKES))
    found = engine.ask("cut")
    assert isinstance(found, Failure)
    assert found.code == "no_device"
    engine.until_open(4)
    wait_for("its failure is told", lambda: (first[0], TpuStep.FAILED) in engine.reports)
    found = engine.ask("cut")
    assert isinstance(found, Invoked)
    assert found.outputs == engine.expected
    assert first[0] not in found.ran_on
    engine.engine.use_tpus([])
    engine.until_open(0)
