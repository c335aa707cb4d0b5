"""The pair of files of a model, and what it takes."""

from __future__ import annotations

import hashlib
from array import array
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.inference.errors import BadInput, ModelCorrupt, ModelRefused
from appliance.inference.tensor_models import Loaded, check_pair, load, on_cpu
from appliance.wire.messages import EmotionOutput
from tests.edgetpu import models
from tests.edgetpu.stand_in import write_model


def test_a_pair(tmp_path: Path) -> None:
    assert not check_pair(write_model(tmp_path)).compiled


def test_a_compiled_model_without_its_twin(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    alone = msgspec.structs.replace(model, twin=model.compiled, compiled="")
    with pytest.raises(
        ModelRefused, match=r"file for the CPU is missing: put the .tflite file that"
    ) as refused:
        check_pair(alone)
    assert "m is compiled for Edge TPUs" in str(refused.value)


def test_a_compiled_model_that_is_none(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    with pytest.raises(ModelRefused, match="nothing that runs on an Edge TPU"):
        check_pair(msgspec.structs.replace(model, compiled=model.twin))


def test_the_compiled_model_of_another(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    other = write_model(tmp_path, "other", content=models.fully_connected((32, 16)))
    with pytest.raises(ModelRefused, match=r"other_edgetpu.tflite was not made from m.tflite"):
        check_pair(msgspec.structs.replace(model, compiled=other.compiled))


@pytest.mark.parametrize("which", ["twin", "compiled"])
@pytest.mark.parametrize("trouble", ["missing", "garbage", "cut"])
def test_a_file_that_is_damaged(tmp_path: Path, which: str, trouble: str) -> None:
    model = write_model(tmp_path)
    path = Path(getattr(model, which))
    if trouble == "missing":
        path.unlink()
    else:
        path.write_bytes(b"garbage" * 99 if trouble == "garbage" else path.read_bytes()[:200])
    with pytest.raises(ModelRefused, match=path.name):
        check_pair(model)


def test_a_compiled_file_that_is_not_what_the_manifest_says(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    digest = hashlib.sha256(Path(model.compiled).read_bytes()).hexdigest()
    assert Loaded(msgspec.structs.replace(model, compiled_sha256=digest)).model.on_tpus
    with pytest.raises(ModelCorrupt, match=r"m_edgetpu\.tflite has the SHA-256 .*make models-tpu"):
        Loaded(msgspec.structs.replace(model, compiled_sha256="0" * 64))


def test_one_bad_model_does_not_hide_the_others(tmp_path: Path) -> None:
    good, bad = write_model(tmp_path, "good"), write_model(tmp_path, "bad")
    Path(bad.twin).write_bytes(Path(good.twin).read_bytes() + b"\0")
    loaded, refused = load([good, bad])
    assert list(loaded) == ["good"]
    assert "manifest says" in refused["bad"]


def text_model(folder: Path, kind: str) -> Loaded:
    return Loaded(write_model(folder, kind, content=models.text_model(kind), kind=kind))


def test_texts_become_vectors(tmp_path: Path) -> None:
    model = text_model(tmp_path, "embedding")
    rows = model.rows_of_texts(["the sea", "a ship on the sea", "!"])
    runner = on_cpu(model)
    outputs = model.finished(runner.run(rows, lambda: None), runner.scale, runner.zero_point)
    lengths = [sum(each * each for each in array("f", output)) for output in outputs]
    assert lengths[:2] == pytest.approx([1, 1])
    one_by_one = [runner.run(rows[number : number + 1], lambda: None)[0] for number in range(3)]
    assert (np.stack(one_by_one) == runner.run(rows, lambda: None)).all()


def test_texts_become_emotions(tmp_path: Path) -> None:
    model = text_model(tmp_path, "emotion")
    runner = on_cpu(model)
    (output,) = model.finished(
        runner.run(model.rows_of_texts(["so glad"]), lambda: None), runner.scale, runner.zero_point
    )
    found = msgspec.msgpack.decode(output, type=EmotionOutput)
    assert found.label in models.EMOTIONS
    assert sum(found.probabilities.values()) == pytest.approx(1)


def test_texts_for_a_model_of_tensors(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="m takes tensors, no texts"):
        Loaded(write_model(tmp_path)).rows_of_texts(["a"])


def test_a_text_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="split it into smaller ones"):
        text_model(tmp_path, "embedding").rows_of_texts(["x" * 200_000])


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(write_model(tmp_path_factory.mktemp("models")))


@given(
    tensors_sent=st.lists(
        st.binary(min_size=64, max_size=64) | st.binary(max_size=80), min_size=1, max_size=4
    )
)
def test_any_tensors(tensors: Loaded, tensors_sent: list[bytes]) -> None:
    if any(len(each) != 64 for each in tensors_sent):
        with pytest.raises(BadInput, match="takes 64"):
            tensors.rows_of_tensors(tensors_sent)
    else:
        assert [row.tobytes() for row in tensors.rows_of_tensors(tensors_sent)] == tensors_sent
