"""The text engine with the model that ships. Its words do not matter here, only how it writes them."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import appliance.inference.preload  # noqa: F401  (how a worker imports the engine)
from appliance.inference import models, prefill
from appliance.inference.errors import AdapterUnknown, EngineFailed, PromptTooLong
from appliance.inference.text import TextEngine
from appliance.paths import Paths
from appliance.wire.messages import Finished, FinishReason, Generate, Sampling, Turn
from tests.endless import add_endless_model

SYSTEM = Turn("system", "You are Coral, the host of the Coral-Reef tower. You are kind and clear.")
WINDOW = 512


@pytest.fixture(scope="module")
def engine() -> Iterator[TextEngine]:
    model = models.find(Paths.under(Path("/nonexistent")), "coral-reef-chat")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        found = TextEngine(
            model.path, Path(folder), slots=2, threads=1, context_tokens=WINDOW, batch_tokens=64, cache_mib=8
        )
        yield found
        del found._server  # its threads end here, not while the interpreter does
        gc.collect()


@pytest.fixture(scope="module")
def silent_engine() -> Iterator[TextEngine]:
    """Its model writes nothing but tokens without text, and does not stop."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        model = add_endless_model(Path(folder) / "models", window_tokens=WINDOW, silent=True)
        found = TextEngine(
            model, Path(folder), slots=2, threads=1, context_tokens=WINDOW, batch_tokens=64, cache_mib=8
        )
        yield found
        del found._server
        gc.collect()


class Written:
    """A reply and how it came."""

    def __init__(
        self,
        engine: TextEngine,
        turns: list[Turn],
        cancelled: Callable[[], bool] = lambda: False,
        **sampling: object,
    ) -> None:
        self.pieces: list[str] = []
        request = Generate(request_id="r", turns=turns, sampling=Sampling(**({"max_tokens": 12} | sampling)))  # type: ignore[arg-type]
        self.finished: Finished = engine.generate(request, self.pieces.append, cancelled)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def ask(message: str) -> list[Turn]:
    return [SYSTEM, Turn("user", message)]


def test_greedy_is_the_same_each_time(engine: TextEngine) -> None:
    first, second = Written(engine, ask("What are you?")), Written(engine, ask("What are you?"))
    assert first.text
    assert second.text == first.text
    assert second.finished.usage.cached_tokens > 0
    assert first.finished.request_id == "r"


def test_a_seed_repeats_a_draw(engine: TextEngine) -> None:
    def draw(seed: int) -> str:
        return Written(engine, ask("Tell me something."), temperature=1.5, seed=seed, max_tokens=16).text

    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(5)}) > 1


def test_max_tokens(engine: TextEngine) -> None:
    written = Written(
        engine, ask("Tell me a long story about the sea."), max_tokens=2, temperature=1.0, seed=1
    )
    assert written.finished.finish_reason is FinishReason.LENGTH
    assert written.finished.usage.completion_tokens == 2


def test_usage_is_what_the_tokenizer_counts(engine: TextEngine) -> None:
    turns = [*ask("one"), Turn("assistant", "two, said the crab"), Turn("user", "three \U0001f41a")]
    counted = engine.count(turns)
    assert Written(engine, turns, max_tokens=1).finished.usage.prompt_tokens == counted
    assert counted > engine.count(ask("one")) > engine.count([Turn("user", "one")])


def test_a_stop_string(engine: TextEngine) -> None:
    whole = Written(engine, ask("What are you?"), max_tokens=24).text
    word = whole.split()[1]
    stopped = Written(engine, ask("What are you?"), max_tokens=24, stop=[word])
    assert stopped.finished.finish_reason is FinishReason.STOP
    assert word not in stopped.text
    assert whole.startswith(stopped.text)


def test_cancelled_while_it_writes(engine: TextEngine) -> None:
    asked: list[bool] = []

    def cancelled() -> bool:
        asked.append(True)
        return len(asked) > 4

    written = Written(engine, ask("What are you?"), cancelled, max_tokens=200, temperature=2.0, seed=3)
    assert written.finished.finish_reason is FinishReason.CANCELLED
    assert len(written.pieces) == written.finished.usage.completion_tokens < 6


@pytest.mark.parametrize("stop", [[], ["never said"]], ids=["free", "with a stop string"])
def test_cancelled_while_it_writes_nothing_that_is_shown(silent_engine: TextEngine, stop: list[str]) -> None:
    """It is asked at each token, whether it has text or not, and counts as progress."""
    steps = silent_engine.steps
    asked: list[bool] = []

    def cancelled() -> bool:
        asked.append(True)
        return len(asked) == 50

    written = Written(silent_engine, ask("What are you?"), cancelled, max_tokens=400, stop=stop)
    assert written.finished.finish_reason is FinishReason.CANCELLED
    assert written.pieces == []
    assert 30 < written.finished.usage.completion_tokens < 50, "the rest was the prompt"
    assert silent_engine.steps == steps + 50


def test_text_that_may_become_a_stop_string_is_held_and_cancelled_all_the_same(engine: TextEngine) -> None:
    whole = Written(engine, ask("What are you?"), max_tokens=40).text
    asked: list[bool] = []

    def cancelled() -> bool:
        asked.append(True)
        return len(asked) == 12

    held = Written(engine, ask("What are you?"), cancelled, max_tokens=40, stop=[f"{whole[:40]} and no more"])
    assert held.finished.finish_reason is FinishReason.CANCELLED
    assert held.pieces == []
    assert 5 < held.finished.usage.completion_tokens < 12


def test_cancelled_while_it_reads(engine: TextEngine) -> None:
    written = Written(engine, ask("something that was never read before " * 8), lambda: True)
    assert written.finished.finish_reason is FinishReason.CANCELLED
    assert written.pieces == []
    assert written.finished.usage.prompt_tokens > 40


def test_a_prompt_that_is_too_long(engine: TextEngine) -> None:
    with pytest.raises(PromptTooLong, match="shorten it") as caught:
        Written(engine, ask("zq " * WINDOW))
    assert caught.value.code == "prompt_too_long"
    assert caught.value.tokens == engine.count(ask("zq " * WINDOW))
    assert caught.value.limit < WINDOW


def test_an_adapter_that_was_not_loaded(engine: TextEngine) -> None:
    """The engine itself would ignore it and answer without."""
    request = Generate(request_id="r", turns=ask("Who?"), sampling=Sampling(), adapter="chef")
    with pytest.raises(AdapterUnknown, match=r"no adapter 'chef' is loaded; there are: none"):
        engine.generate(request, lambda _: None, lambda: False)


def test_a_long_history_loses_its_oldest_turns(engine: TextEngine) -> None:
    history = [
        turn
        for number in range(40)
        for turn in (
            Turn("user", f"What is {number} plus {number}?"),
            Turn("assistant", f"It is {2 * number}."),
        )
    ]
    newest = Turn("user", "And now?")
    assert engine.count([SYSTEM, *history, newest]) > WINDOW
    fitted = engine._fit([SYSTEM, *history, newest], 50)
    assert fitted[0] == SYSTEM
    assert fitted[-1] == newest
    kept = fitted[1:-1]
    assert 0 < len(kept) < len(history)
    assert kept == history[-len(kept) :]
    assert kept[0].role == "user"
    assert engine.count(fitted) <= WINDOW - 50
    more = [SYSTEM, *history[-len(kept) - 2 :], newest]
    assert engine.count(more) > WINDOW - 50, "it left out more than it had to"
    usage = Written(engine, [SYSTEM, *history, newest], max_tokens=50).finished.usage
    assert usage.prompt_tokens == engine.count(fitted)


def test_a_short_conversation_is_left_alone(engine: TextEngine) -> None:
    turns = ask("hi")
    assert engine._fit(turns, 32_768) is turns


def test_a_reply_of_any_length_fits_the_window(engine: TextEngine) -> None:
    written = Written(engine, ask("go on " * 40), max_tokens=32_768, temperature=2.0, seed=2)
    usage = written.finished.usage
    assert usage.prompt_tokens + usage.completion_tokens <= WINDOW


@pytest.mark.parametrize("text", ["", " ", "\x00", "\U0001f41a" * 3, "<|im_end|>", "{{ 7 * 7 }}"], ids=repr)
def test_any_text(engine: TextEngine, text: str) -> None:
    assert Written(engine, ask(text), max_tokens=2).finished.usage.completion_tokens <= 2


@pytest.mark.parametrize(
    "roles", ["u", "s", "suu", "sua", "a", "stu", "uas"], ids=lambda roles: f"roles {roles}"
)
def test_turns_in_any_order(engine: TextEngine, roles: str) -> None:
    """A reply, or a refusal that is an error of ours: never anything else."""
    names = {"u": "user", "s": "system", "a": "assistant", "t": "tool"}
    turns = [Turn(names[role], "hello") for role in roles]
    try:
        finished: Finished | None = Written(engine, turns, max_tokens=2).finished
    except EngineFailed:
        finished = None
    assert finished is None or finished.usage.completion_tokens <= 2


@pytest.mark.parametrize(("step_s", "batch"), [(1000.0, prefill.LARGEST), (0.0, prefill.SMALLEST)])
def test_the_batch_is_measured(monkeypatch: pytest.MonkeyPatch, step_s: float, batch: int) -> None:
    """With all the time in the world, and with none: the model is then loaded a second time."""
    monkeypatch.setattr(prefill, "STEP_S", step_s)
    model = models.find(Paths.under(Path("/nonexistent")), "coral-reef-chat")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        engine = TextEngine(
            model.path, Path(folder), slots=2, threads=1, context_tokens=WINDOW, batch_tokens=0, cache_mib=8
        )
        assert engine.batch_tokens == batch
        assert engine.step_s > 0
        assert Written(engine, ask("What are you?")).text
        del engine._server
        gc.collect()


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EngineFailed, match=str(path)):
        TextEngine(path, tmp_path, slots=1, threads=1, context_tokens=64, batch_tokens=32, cache_mib=0)
