"""Adapters: which fit, and that each writes what it writes alone, whatever was written before."""

from __future__ import annotations

import gc
import random
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

import appliance.inference.preload  # noqa: F401  (how a worker imports the engine)
from appliance.inference.errors import AdapterUnknown, EngineFailed, ModelRefused
from appliance.inference.gguf import read_gguf, read_shapes
from appliance.inference.lora import Shapes, check_fits, write_null
from appliance.inference.text import TextEngine
from appliance.wire.messages import Generate, Sampling, Turn

from .gguf_files import LORA_METADATA, lora, shipped_model

MODEL: Shapes = {"a.weight": (8, 4), "b.weight": (4, 2), "token_embd.weight": (8, 100)}
FITS: Shapes = {"a.weight.lora_a": (8, 2), "a.weight.lora_b": (2, 4)}

QUESTIONS = ("What are you?", "What is a coral?", "Tell me of the sea.")


def test_one_that_fits(tmp_path: Path) -> None:
    check_fits(FITS, MODEL)
    check_fits({"token_embd.weight.lora_a": (100, 2), "token_embd.weight.lora_b": (2, 8)}, MODEL)
    path = tmp_path / "a.gguf"
    path.write_bytes(lora())
    model, adapter = read_shapes(shipped_model()), read_shapes(path)
    width, height = model["blk.0.attn_q.weight"]
    assert adapter == {"blk.0.attn_q.weight.lora_a": (width, 4), "blk.0.attn_q.weight.lora_b": (4, height)}
    check_fits(adapter, model)


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ({"a.weight": (8, 4)}, "tensors that are no LoRA's: 'a.weight'"),
        ({"a.weight.lora_a": (8, 2)}, "only one half of the pair for 'a.weight'"),
        (
            {"c.weight.lora_a": (8, 2), "c.weight.lora_b": (2, 4)},
            "another model: 1 of its tensors do not fit, as 'c.weight'",
        ),
        (FITS | {"a.weight.lora_a": (9, 2)}, "another model"),
        (FITS | {"a.weight.lora_a": (8, 3)}, "another model"),
        (FITS | {"a.weight.lora_b": (2, 5)}, "another model"),
        (FITS | {"a.weight.lora_b": (2,)}, "another model"),
        (
            {f"{name}.weight.lora_{half}": (8, 8) for name in "cdef" for half in "ab"},
            "4 of its tensors do not fit, as 'c.weight', 'd.weight', 'e.weight', ...",
        ),
        (
            {"token_embd.weight.lora_a": (100, 2), "token_embd.weight.lora_b": (2, 8)},
            "another model",
        ),
    ],
)
def test_one_that_does_not_fit(adapter: Shapes, words: str) -> None:
    model = {name: shape for name, shape in MODEL.items() if name != "token_embd.weight"}
    with pytest.raises(ModelRefused, match=words):
        check_fits(adapter, model)


def test_the_adapter_of_zeros(tmp_path: Path) -> None:
    path = tmp_path / "null.gguf"
    write_null(FITS, "llama", path)
    head = read_gguf(path)
    assert (head.kind, head.adapter, head.architecture, head.missing_bytes) == ("adapter", "lora", "llama", 0)
    assert read_shapes(path) == {"a.weight.lora_a": (8, 1), "a.weight.lora_b": (1, 4)}
    check_fits(read_shapes(path), MODEL)
    assert not any(path.read_bytes()[-64:])


@contextmanager
def loaded(adapters: Mapping[str, Path]) -> Iterator[TextEngine]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        engine = TextEngine(
            shipped_model(),
            Path(folder),
            slots=2,
            threads=1,
            context_tokens=512,
            batch_tokens=64,
            cache_mib=8,
            adapters=adapters,
        )
        yield engine
        del engine  # its threads end here, not while the interpreter does
        gc.collect()


def write(engine: TextEngine, adapter: str, question: str) -> str:
    turns = [Turn("system", "You are Coral."), Turn("user", question)]
    said: list[str] = []
    request = Generate(request_id="r", turns=turns, sampling=Sampling(max_tokens=12), adapter=adapter)
    engine.generate(request, said.append, lambda: False)
    return "".join(said)


def test_each_writes_what_it_writes_alone(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.gguf" for name in ("chef", "poet")}
    for seed, path in enumerate(files.values()):
        path.write_bytes(lora(seed))
    alone = {}
    with loaded({}) as engine:
        for question in QUESTIONS:
            alone["", question] = write(engine, "", question)
    for adapter, path in files.items():
        for question in QUESTIONS:
            with loaded({adapter: path}) as engine:
                alone[adapter, question] = write(engine, adapter, question)
    for adapter in files:
        heard = [question for question in QUESTIONS if alone[adapter, question] != alone["", question]]
        assert heard, "an adapter that nobody hears proves nothing"
    draw = random.Random(4)
    with loaded(files) as engine:
        for _ in range(60):
            adapter, question = draw.choice(list(alone))
            assert write(engine, adapter, question) == alone[adapter, question], (adapter, question)
        with pytest.raises(AdapterUnknown, match=r"no adapter 'monk' is loaded; there are: chef, poet"):
            write(engine, "monk", "Who?")


def test_one_that_the_engine_does_not_load(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(lora(metadata=LORA_METADATA[:2]))
    with pytest.raises(EngineFailed), loaded({"a": path}):
        pass
