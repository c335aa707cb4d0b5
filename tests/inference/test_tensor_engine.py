"""The engine of a TPU worker: devices that come, fail and go while requests run."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.inference import tensor_engine
from appliance.inference.tensor_engine import TensorEngine
from appliance.inference.tensor_models import load
from appliance.scheduling.invocations import TRIES_LIMIT
from appliance.wire.messages import Failure, Invoke, Invoked, TensorModel, TpuRole, TpuStep
from tests.edgetpu import models
from tests.edgetpu.stand_in import Fake, StandIn, write_model
from tests.waiting import wait_for

WAIT_S = 30.0
TENSORS = [row.tobytes() for row in np.random.default_rng(5).integers(-128, 128, (96, 64), dtype=np.int8)]


@dataclass
class Engine:
    """An engine with a model of tensors, `m`, and what it reported."""

    folder: Path
    reports: list[tuple[str, TpuStep, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        embedding = models.text_model("embedding")
        wanted: list[TensorModel] = [
            write_model(self.folder),
            write_model(self.folder, "words", content=embedding, kind="embedding"),
        ]
        loaded, refused = load(wanted)
        assert not refused
        self.engine = TensorEngine(loaded, lambda *said: self.reports.append((*said, "")[:3]))
        self.answers: queue.Queue[Invoked | Failure] = queue.Queue()

    def cpu(self, threads: int = 1) -> Engine:
        self.engine.use_cpu(threads)
        self.until_open(threads)
        return self

    def tpus(self, *fakes: Fake, role: TpuRole = TpuRole.MEMORY) -> Engine:
        self.engine.use_tpus([fake.share(role=role) for fake in fakes])
        return self

    def until_open(self, count: int) -> None:
        wait_for(f"{count} devices are open", lambda: len(self.engine.open_devices) == count)

    def steps(self, tpu: str) -> list[TpuStep]:
        return [step for name, step, _ in self.reports if name == tpu]

    def send(self, request_id: str = "r", *, model: str = "m", **inputs: list[bytes] | list[str]) -> None:
        message = Invoke(request_id=request_id, model=model, **inputs)  # type: ignore[arg-type]
        self.request = self.engine.submit(message, self.answers.put)

    def ask(self, request_id: str = "r", *, model: str = "m", **inputs: list[bytes] | list[str]) -> Invoked:
        self.send(request_id, model=model, **inputs)
        found = self.answers.get(timeout=WAIT_S)
        assert isinstance(found, Invoked), found
        assert found.request_id == request_id
        return found

    def refused(self, *, model: str = "m", **inputs: list[bytes] | list[str]) -> str:
        self.send("r", model=model, **inputs)
        found = self.answers.get(timeout=WAIT_S)
        assert isinstance(found, Failure)
        return f"{found.code}: {found.message}"

    def close(self) -> None:
        """Lets go of the TPUs; the stand-in's log is then the next test's."""
        self.engine.use_tpus([])
        for device in self.engine._closed.values():
            if not device.invoking_since:  # one that is stuck stays
                device.join(WAIT_S)


@pytest.fixture
def engine(tmp_path: Path, stand_in: StandIn) -> Iterator[Engine]:
    stand_in.tell()
    stand_in.log.unlink(missing_ok=True)
    found = Engine(tmp_path)
    yield found
    found.close()


@pytest.fixture
def expected(tmp_path: Path) -> list[bytes]:
    """What the twin makes of TENSORS."""
    return Engine(tmp_path / "other").cpu().ask(tensors=TENSORS).outputs


def test_the_cpu(engine: Engine) -> None:
    found = engine.cpu(2).ask(tensors=TENSORS)
    assert found.ran_on == ["cpu"]
    assert len(found.outputs) == len(TENSORS)
    assert found.tokens == 0
    assert engine.ask(model="words", texts=["two words", "one"]).tokens == 3


def test_each_input_is_invoked_once(engine: Engine, stand_in: StandIn, expected: list[bytes]) -> None:
    fakes = [Fake("pci-0"), Fake("pci-1"), Fake("usb-1-1")]
    stand_in.tell(*fakes)
    engine.tpus(*fakes).until_open(3)
    wait_for("the models are loaded", lambda: engine.engine.steps == 6)
    stand_in.log.unlink()
    assert engine.ask(tensors=TENSORS).outputs == expected
    assert sum(stand_in.heard("invoke", fake) for fake in fakes) == len(TENSORS)


def test_a_tpu_that_fails_is_closed_and_its_work_begun_elsewhere(
    engine: Engine, stand_in: StandIn, expected: list[bytes]
) -> None:
    fakes = [Fake("pci-0", ms=2), Fake("pci-1", ms=2)]
    stand_in.tell(*fakes)
    engine.tpus(*fakes).until_open(2)
    engine.send(tensors=TENSORS)
    wait_for("it is under way", lambda: stand_in.heard("invoke", fakes[0]) > 4)
    stand_in.tell(Fake("pci-0", "error"), fakes[1])
    found = engine.answers.get(timeout=WAIT_S)
    assert isinstance(found, Invoked)
    assert found.outputs == expected
    assert engine.answers.empty()
    assert engine.steps("pci-0")[-3:] == [TpuStep.OPENING, TpuStep.OPEN, TpuStep.FAILED]
    # still asked for: it is not opened again by itself
    stand_in.tell(*fakes)
    engine.tpus(*fakes)
    assert engine.engine.open_devices == ["pci-1"]
    engine.tpus(fakes[1])
    engine.tpus(*fakes)
    engine.until_open(2)


def test_the_time_of_an_opening_begins_when_the_probe_is_done(engine: Engine, stand_in: StandIn) -> None:
    """Whoever suppresses what an opening does to its port is told again: the probe has opened one of them, the others waited."""
    fakes = [Fake(f"pci-{number}") for number in range(3)]
    stand_in.tell(*fakes)
    engine.tpus(*fakes[:2]).until_open(2)
    engine.tpus(*fakes).until_open(3)
    for fake in fakes[:2]:
        assert engine.steps(fake.id) == [TpuStep.OPENING, TpuStep.OPENING, TpuStep.OPEN]
    assert engine.steps(fakes[2].id) == [TpuStep.OPENING, TpuStep.OPEN]


def test_a_tpu_that_is_taken_away_in_the_middle(
    engine: Engine, stand_in: StandIn, expected: list[bytes]
) -> None:
    fakes = [Fake("pci-0", ms=5), Fake("pci-1", ms=5)]
    stand_in.tell(*fakes)
    engine.tpus(*fakes).until_open(2)
    engine.send(tensors=TENSORS)
    wait_for("it is under way", lambda: stand_in.heard("invoke", fakes[0]) > 4)
    engine.tpus(fakes[1])
    found = engine.answers.get(timeout=WAIT_S)
    assert isinstance(found, Invoked)
    assert found.outputs == expected
    assert found.ran_on == ["pci-1"]
    assert engine.steps("pci-0")[-1] is TpuStep.CLOSED
    wait_for(
        "the library closed it", lambda: stand_in.heard("close", fakes[0]) >= stand_in.heard("open", fakes[0])
    )


def test_the_last_tpu(engine: Engine, stand_in: StandIn) -> None:
    fake = Fake("pci-0", ms=2)
    stand_in.tell(fake)
    engine.tpus(fake).until_open(1)
    engine.send(tensors=TENSORS)
    wait_for("it is under way", lambda: stand_in.heard("invoke", fake) > 4)
    stand_in.tell(Fake("pci-0", "error"))
    found = engine.answers.get(timeout=WAIT_S)
    assert isinstance(found, Failure)
    assert found.code == "no_device"
    assert engine.refused(tensors=TENSORS).startswith("no_device")


def test_an_input_that_makes_every_tpu_fail_takes_not_all_along(engine: Engine, stand_in: StandIn) -> None:
    fakes = [Fake(f"pci-{number}") for number in range(TRIES_LIMIT + 2)]
    stand_in.tell(*fakes)
    engine.tpus(*fakes).until_open(len(fakes))
    wait_for("the models are loaded", lambda: engine.engine.steps == 2 * len(fakes))
    stand_in.tell(*(Fake(fake.id, "error") for fake in fakes))
    assert engine.refused(tensors=TENSORS[:1]).startswith("tpu_failed: USB transfer error")
    assert len(engine.engine.open_devices) == 2


def test_a_stuck_invoke_is_seen_and_costs_no_other(
    engine: Engine, stand_in: StandIn, expected: list[bytes]
) -> None:
    fakes = [Fake("pci-0"), Fake("pci-1")]
    stand_in.tell(*fakes)
    engine.tpus(*fakes).until_open(2)
    wait_for("the models are loaded", lambda: engine.engine.steps == 4)
    stand_in.tell(Fake("pci-0", "wedge"), fakes[1])
    for number in range(2):
        engine.send(f"stuck-{number}", tensors=TENSORS[:1])
    wait_for("one is stuck", lambda: engine.engine.stuck()[1] > 0.1)
    assert engine.engine.stuck()[0] == "pci-0"
    assert engine.answers.get(timeout=WAIT_S).request_id.startswith("stuck")
    assert engine.ask(tensors=TENSORS).outputs == expected
    assert engine.engine.stuck()[0] == "pci-0"


def test_pulled_out_stuck_and_back(engine: Engine, stand_in: StandIn) -> None:
    """A thread of ours is still in the library's code for that TPU: nothing but the worker's end helps, and that is told."""
    fake = Fake("pci-0")
    stand_in.tell(fake)
    engine.tpus(fake).until_open(1)
    wait_for("the models are loaded", lambda: engine.engine.steps == 2)
    stand_in.tell(Fake("pci-0", "wedge"))
    engine.send(tensors=TENSORS[:1])
    wait_for("it is stuck", lambda: engine.engine.stuck()[1] > 0.05)
    engine.tpus()
    assert engine.engine.stuck() == ("", 0.0)  # it harms nobody
    assert isinstance(engine.answers.get(timeout=WAIT_S), Failure)
    stand_in.tell(fake)
    engine.tpus(fake)
    wait_for("it is stuck again", lambda: engine.engine.stuck()[1] > 0.1)
    assert engine.engine.stuck()[0] == "pci-0"
    assert not engine.engine.open_devices


def test_a_hot_tpu_gets_less(engine: Engine, stand_in: StandIn) -> None:
    cool, hot = Fake("pci-0", ms=3), Fake("pci-1", ms=3)
    stand_in.tell(cool, hot)
    engine.engine.use_tpus([cool.share(), hot.share(0.25)])
    engine.until_open(2)
    wait_for("the models are loaded", lambda: engine.engine.steps == 4)
    stand_in.log.unlink()
    for number in range(40):
        engine.send(str(number), tensors=TENSORS[:4])
    for _ in range(40):
        assert isinstance(engine.answers.get(timeout=WAIT_S), Invoked)
    assert 0 < stand_in.heard("invoke", hot) < stand_in.heard("invoke", cool)
    engine.engine.use_tpus([cool.share(), hot.share(0.0)])
    stand_in.log.unlink()
    for number in range(4):
        assert engine.ask(str(number), tensors=TENSORS).ran_on == ["pci-0"]


def test_roles_decide_what_is_loaded_first(engine: Engine, stand_in: StandIn) -> None:
    memory, language = Fake("pci-0"), Fake("pci-1")
    stand_in.tell(memory, language)
    engine.engine.use_tpus([memory.share(role=TpuRole.MEMORY), language.share(role=TpuRole.LANGUAGE)])
    engine.until_open(2)
    wait_for("all are loaded", lambda: engine.engine.steps == 4)
    assert engine.ask(model="words", texts=["one"]).ran_on == ["pci-0"]


def test_the_reserve_takes_over_and_steps_back(engine: Engine, stand_in: StandIn) -> None:
    memory, spare = Fake("pci-0"), Fake("pci-1")
    stand_in.tell(memory, spare)

    def roles(second: TpuRole) -> None:
        engine.engine.use_tpus([memory.share(role=TpuRole.LANGUAGE), spare.share(role=second)])

    roles(TpuRole.RESERVE)
    engine.until_open(2)
    wait_for("all are loaded", lambda: engine.engine.steps == 4)
    assert engine.ask(model="words", texts=["one"]).ran_on == ["pci-0"]
    roles(TpuRole.MEMORY)
    for _ in range(5):
        assert engine.ask(model="words", texts=["one"]).ran_on == ["pci-1"]
    roles(TpuRole.RESERVE)
    assert engine.ask(model="words", texts=["one"]).ran_on == ["pci-0"]


def test_models_that_do_not_fit_together_are_swapped(
    engine: Engine, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_engine, "TPU_MEMORY_BYTES", engine.engine.models["words"].model.size_bytes)
    fake = Fake("pci-0")
    stand_in.tell(fake)
    engine.tpus(fake).until_open(1)
    first = engine.ask(model="words", texts=["one"]).outputs
    for _ in range(3):
        opened = stand_in.heard("open", fake)
        assert engine.ask(tensors=TENSORS[:1]).ran_on == ["pci-0"]
        assert engine.ask(model="words", texts=["one"]).outputs == first
        assert stand_in.heard("open", fake) == opened + 2
        assert stand_in.heard("close", fake) >= stand_in.heard("open", fake) - 2


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ({}, "expected either texts or tensors"),
        ({"texts": ["a"], "tensors": [b"a"]}, "expected either texts or tensors"),
        ({"tensors": [b"a"]}, "tensor 0 has 1 bytes, and m takes 64"),
        ({"texts": ["a"]}, "m takes tensors, no texts"),
    ],
    ids=str,
)
def test_what_is_refused(engine: Engine, inputs: dict[str, Any], why: str) -> None:
    assert engine.cpu().refused(**inputs).startswith(f"bad_input: {why}")
    assert engine.ask(tensors=TENSORS[:1]).ran_on == ["cpu"]  # nobody was harmed


@pytest.mark.parametrize(
    ("error", "code"), [(RuntimeError("no"), "engine_error: no"), (ValueError("x"), "engine_error: internal")]
)
def test_the_cpu_goes_on_whatever_happens(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    code: str,
) -> None:
    """LiteRT says no to nothing that it has loaded: it is made to."""
    engine.cpu()

    def refuse(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("appliance.inference.tensor_models.Runner.run", refuse)
        assert engine.refused(tensors=TENSORS).startswith(code)
    assert engine.ask(tensors=TENSORS[:1]).ran_on == ["cpu"]


def test_a_model_that_is_not_there(engine: Engine) -> None:
    assert engine.cpu().refused(model="x", tensors=TENSORS) == (
        "model_unknown: no model is called 'x' here; there are: m, words"
    )


def test_too_much(engine: Engine, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_engine, "WAITING_LIMIT", 100)
    fake = Fake("pci-0", ms=5)
    stand_in.tell(fake)
    engine.tpus(fake).until_open(1)
    engine.send("first", tensors=TENSORS)
    assert engine.refused(tensors=TENSORS).startswith("too_many")
    assert engine.answers.get(timeout=WAIT_S).request_id == "first"
    engine.ask(tensors=TENSORS)


def test_who_is_gone_gets_nothing(engine: Engine, stand_in: StandIn) -> None:
    fake = Fake("pci-0", ms=5)
    stand_in.tell(fake)
    engine.tpus(fake).until_open(1)
    engine.send("gone", tensors=TENSORS)
    assert engine.request is not None
    engine.engine.withdraw([engine.request])
    assert engine.ask("here", tensors=TENSORS[:1]).request_id == "here"
    assert engine.answers.empty()
    assert stand_in.heard("invoke", fake) < len(TENSORS)
