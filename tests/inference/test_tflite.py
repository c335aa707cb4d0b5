"""Reading .tflite files: what ships, what a compiler makes, and what nobody should believe."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.inference import models
from appliance.inference.errors import TfliteBroken
from appliance.inference.tflite import SIZE_LIMIT_BYTES, Tflite, parse_tflite, read_tflite

from .tflite_files import compiled_file, text_model_file

PUBLISHED = tomllib.loads((Path(__file__).parent / "edgetpu_operations.toml").read_text("utf-8"))
SHIPPED = [model.path for model in models.shipped().values() if model.path.suffix == ".tflite"]
SMALL = text_model_file()


def unfit_for_edge_tpus(file: Tflite) -> list[str]:
    """What keeps an Edge TPU from running it whole."""
    found = [f"operation {each}" for each in file.operations if each not in PUBLISHED["operations"]]
    for tensor in file.tensors:
        kinds = {"int8", "uint8", "int32"} if tensor.constant else {"int8", "uint8"}
        if tensor.type not in kinds:
            found.append(f"{tensor.name} is {tensor.type}")
        if tensor.dynamic:
            found.append(f"{tensor.name} has no constant size")
        if sum(size > 1 for size in tensor.shape[:-3]):
            found.append(f"{tensor.name} has more than three dimensions")
        if tensor.scales != 1:
            found.append(f"{tensor.name} has {tensor.scales} scales")
    if file.size_bytes > PUBLISHED["memory_bytes"]:
        found.append("its parameters do not fit the memory")
    return found


def test_both_kinds_ship() -> None:
    kinds = {model.entry.kind for model in models.shipped().values() if model.path in SHIPPED}
    assert kinds == {"embedding", "emotion"}
    assert sum(path.stat().st_size for path in SHIPPED) < 8_000_000


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_an_edge_tpu_runs_what_ships_whole(path: Path) -> None:
    file = read_tflite(path)
    assert unfit_for_edge_tpus(file) == []
    assert len(file.operations) >= 2
    assert [tensor.type for tensor in (*file.inputs, *file.outputs)] == ["int8", "int8"]
    assert file.parameters > 100_000


def test_a_file_that_an_edge_tpu_cannot_run_is_found() -> None:
    file = parse_tflite(compiled_file(before="Gather"))
    assert "operation custom:Gather" in unfit_for_edge_tpus(file)


def test_a_small_file() -> None:
    file = parse_tflite(SMALL)
    assert [tensor.shape for tensor in (*file.inputs, *file.outputs)] == [(1, 64), (1, 8)]
    assert file.operations == ["FULLY_CONNECTED", "FULLY_CONNECTED"]
    assert file.parameters == 64 * 16 + 16 + 16 * 8 + 8
    assert file.description == "for tests"
    assert file.metadata["min_runtime_version"] == b"1.14.0"
    assert not file.compiled


def test_a_compiled_file() -> None:
    file = parse_tflite(compiled_file())
    assert file.compiled
    assert file.operations == ["custom:edgetpu-custom-op"]
    (output,) = file.outputs
    assert (output.name, output.scale, output.zero_point) == ("output", 0.5, 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a TensorFlow Lite file"),
        (b"GGUF" * 10, "not a TensorFlow Lite file"),
        (b"\xff\xff\xff\xffTFL3", "points outside of itself"),
        (SMALL[:200], "TensorFlow Lite|outside of itself|copy it again"),
    ],
)
def test_what_is_no_model(content: bytes, words: str) -> None:
    with pytest.raises(TfliteBroken, match=words):
        parse_tflite(content)


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TfliteBroken, match="not a regular file"):
        read_tflite(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(SIZE_LIMIT_BYTES + 1)
    with pytest.raises(TfliteBroken, match="expected at most"):
        read_tflite(tmp_path / "huge")
    with pytest.raises(FileNotFoundError):
        read_tflite(tmp_path / "none")


def parse_or_refuse(data: bytes) -> None:
    """Any bytes give a description or TfliteBroken, nothing else."""
    try:
        file = parse_tflite(data)
    except TfliteBroken:
        return
    assert file.size_bytes == len(data)


@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    parse_or_refuse(data)
    parse_or_refuse(b"\x10\0\0\0TFL3" + data)


@settings(max_examples=500)
@given(st.data())
def test_a_file_with_wrong_bytes(data: st.DataObject) -> None:
    wrong = bytearray(compiled_file())
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(wrong) - 1))
        wrong[at] = data.draw(st.sampled_from([0, 1, 4, 127, 128, 255]) | st.integers(0, 255))
    parse_or_refuse(bytes(wrong))


@given(st.integers(0, len(SMALL)))
def test_a_file_cut_short(length: int) -> None:
    parse_or_refuse(SMALL[:length])
