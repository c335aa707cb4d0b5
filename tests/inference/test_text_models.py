"""Texts to tensors and tensors to what was asked for, with LiteRT between them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from appliance.inference.errors import TextTooLong, TfliteBroken
from appliance.inference.features import VERSION, WEIGHTS, Features
from appliance.inference.making.export import Runner
from appliance.inference.text_models import (
    CARD,
    WORD_WEIGHTS,
    Card,
    EmbeddingModel,
    EmotionModel,
    count_words,
    open_text_model,
    text_model,
)
from appliance.inference.tflite import parse_tflite

from .tflite_files import OUTPUTS, SPEC, metadata, text_model_file

LABELS = tuple(f"label {number}" for number in range(OUTPUTS - 1))
EVEN = np.full(WEIGHTS, 100, np.uint8)


def test_an_embedding(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(text_model_file())
    runner = Runner(tmp_path / "m.tflite")
    assert isinstance(runner.model, EmbeddingModel)
    assert (runner.model.width, runner.model.outputs) == (SPEC.width, OUTPUTS)
    vectors = runner.embed(["one text", "another", ""])
    assert vectors.shape == (3, OUTPUTS)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    assert vectors[0] @ vectors[1] < 0.999
    with pytest.raises(TypeError, match="a model for embedding"):
        runner.feel(["x"])


def test_the_file_computes_what_was_trained(tmp_path: Path) -> None:
    """int8 against float32, from the same weights."""
    rng = np.random.default_rng(1)
    first, first_bias = rng.normal(size=(16, SPEC.width)), rng.normal(size=16)
    second, second_bias = rng.normal(size=(OUTPUTS, 16)), rng.normal(size=OUTPUTS)
    (tmp_path / "m.tflite").write_bytes(text_model_file())
    texts = ["one text", "another", "a third that is longer"]
    rows = Features(SPEC, EVEN).prepare(texts) * SPEC.scale
    expected = np.maximum(rows @ first.T + first_bias, 0) @ second.T + second_bias
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert (Runner(tmp_path / "m.tflite").embed(texts) * expected).sum(axis=1) == pytest.approx(1, abs=0.01)


def test_emotions(tmp_path: Path) -> None:
    card = Card(kind="emotion", features=SPEC, labels=LABELS)
    (tmp_path / "m.tflite").write_bytes(text_model_file(metadata(card)))
    runner = Runner(tmp_path / "m.tflite")
    assert isinstance(runner.model, EmotionModel)
    for emotion in runner.feel(["one text", "another", ""]):
        assert tuple(emotion.probabilities) == LABELS
        assert sum(emotion.probabilities.values()) == pytest.approx(1)
        assert emotion.probabilities[emotion.label] == max(emotion.probabilities.values())
        assert 0 <= emotion.intensity <= 1


@given(arrays.arrays(np.int8, (3, OUTPUTS)), st.floats(1e-6, 1e6, allow_nan=False), st.integers(-128, 127))
def test_whatever_a_network_gives(output: np.ndarray, scale: float, zero_point: int) -> None:
    features = Features(SPEC, EVEN)
    lengths = np.linalg.norm(EmbeddingModel(features, OUTPUTS).finish(output, scale, zero_point), axis=1)
    assert np.all((np.abs(lengths - 1) < 1e-4) | (lengths == 0))
    for emotion in EmotionModel(features, LABELS).finish(output, scale, zero_point):
        assert sum(emotion.probabilities.values()) == pytest.approx(1)
        assert 0 <= emotion.intensity <= 1


def test_usage() -> None:
    assert count_words(["Two words,", "", "and three more!"]) == 5
    with pytest.raises(TextTooLong):
        count_words(["x" * 200_000])


def spoilt(change: Callable[[dict[str, bytes]], object]) -> bytes:
    said = metadata()
    change(said)
    return text_model_file(said)


def card(**changes: object) -> Callable[[dict[str, bytes]], object]:
    whole = {"kind": "embedding", "features": msgspec.to_builtins(SPEC)} | changes
    return lambda said: said.update({CARD: msgspec.json.encode(whole)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda said: said.pop(CARD),
            "it has no metadata 'coral-reef-card': it is not a text model made for",
        ),
        (lambda said: said.pop(WORD_WEIGHTS), "it has no metadata 'coral-reef-word-weights'"),
        (lambda said: said.update({CARD: b"{"}), "its metadata coral-reef-card: "),
        (lambda said: said.update({WORD_WEIGHTS: b"12"}), "have 2 entries, expected 32768"),
        (card(kind="taste"), "it is a model for 'taste'"),
        (card(kind="emotion", labels=["joy"]), "with 1 labels"),
        (card(more=1), "unknown field"),
        (
            card(features=msgspec.to_builtins(msgspec.structs.replace(SPEC, version=VERSION + 1))),
            "of version 2, and this software makes version 1: use the models that came with this version",
        ),
        (
            card(features=msgspec.to_builtins(msgspec.structs.replace(SPEC, width=128, words=128))),
            "expected one int8 of (1, 128)",
        ),
    ],
)
def test_files_that_do_not_fit(
    tmp_path: Path, change: Callable[[dict[str, bytes]], object], words: str
) -> None:
    (tmp_path / "m.tflite").write_bytes(spoilt(change))
    with pytest.raises(TfliteBroken, match=re.escape(words)):
        open_text_model(tmp_path / "m.tflite")


@given(st.binary(max_size=200))
def test_any_card(content: bytes) -> None:
    file = parse_tflite(text_model_file())
    with pytest.raises(TfliteBroken):
        text_model(msgspec.structs.replace(file, metadata={**file.metadata, CARD: content}))


def test_no_engine_is_loaded() -> None:
    code = "import sys, appliance.inference.text_models; print(*(name for name in sys.modules if 'litert' in name))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "\n"
