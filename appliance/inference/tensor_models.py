"""The models that TPU workers run, as one worker has them: how texts become their input, and interpreters of both their files."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from appliance.wire.messages import EmotionOutput, TensorModel

from . import models
from .edgetpu import Found, Runtime
from .errors import (
    BadInput,
    EngineFailed,
    InferenceError,
    ModelCorrupt,
    ModelRefused,
    TextTooLong,
    TfliteBroken,
)
from .text_models import EmbeddingModel, EmotionModel, text_model
from .tflite import Tensor, Tflite, read_tflite

_pack = msgspec.msgpack.Encoder().encode

Rows = NDArray[np.int8]


def check_pair(model: TensorModel) -> Tflite:
    """Reads what the twin says of itself. ModelRefused, with the remedy, for a compiled model without a twin."""
    twin = _read(Path(model.twin), model.name)
    if twin.compiled:
        raise ModelRefused(
            f"{model.name} is compiled for Edge TPUs, and its file for the CPU is missing: put the .tflite file that "
            "edgetpu_compiler was given beside it, under the same name without _edgetpu"
        )
    for name in [model.compiled] if model.compiled else model.segments:
        if not _read(Path(name), model.name).compiled:
            raise ModelRefused(
                f"{Path(name).name} has nothing that runs on an Edge TPU: compile it again (make models-tpu)"
            )
    if model.on_tpus:
        files = [_read(Path(name), model.name) for name in model.segments or [model.compiled]]
        ends = [_ends(twin.inputs), *(_ends(file.outputs) for file in files)]
        if ends != [*(_ends(file.inputs) for file in files), _ends(twin.outputs)]:
            first = Path(model.compiled or model.segments[0]).name
            raise ModelRefused(
                f"{first} was not made from {Path(model.twin).name}: compile it again (make models-tpu)"
            )
    return twin


def _ends(tensors: Sequence[Tensor]) -> list[tuple[tuple[int, ...], str]]:
    return [(tensor.shape, tensor.type) for tensor in tensors]


def _read(path: Path, name: str) -> Tflite:
    try:
        return read_tflite(path)
    except TfliteBroken as error:
        raise ModelRefused(f"{name}: {path.name}: {error}") from error
    except OSError as error:
        raise ModelRefused(f"{name}: {path.name} cannot be read: {error.strerror}") from error


def _verify(path: Path, sha256: str, name: str) -> None:
    """ModelCorrupt when a compiled file is not what the manifest says."""
    try:
        found = models.digest(path)
    except OSError as error:
        raise ModelCorrupt(f"{name}: {path.name} cannot be read: {error.strerror}") from error
    if found != sha256:
        raise ModelCorrupt(
            f"{name}: {path.name} has the SHA-256 {found}, the manifest says {sha256}: compile it again (make models-tpu)"
        )


class Loaded:
    """One model: verified, read, and open for interpreters on any device."""

    def __init__(self, model: TensorModel) -> None:
        """ModelCorrupt, ModelRefused."""
        path = Path(model.twin)
        entry = models.Entry(
            name=model.name, kind=model.kind, file=path.name, sha256=model.sha256, size_bytes=model.size_bytes
        )
        models.verify(models.Model(entry=entry, path=path, shipped=False))
        if model.compiled_sha256:
            _verify(Path(model.compiled), model.compiled_sha256, model.name)
        file = check_pair(model)
        self.model = model
        if len(file.inputs) != 1 or len(file.outputs) != 1 or file.inputs[0].type != "int8":
            raise ModelRefused(f"{model.name}: expected one input of int8 and one output")
        self.shape = file.inputs[0].shape
        self.input_bytes = int(np.prod(self.shape))
        self._texts: EmbeddingModel | EmotionModel | None = None
        try:
            self._texts = text_model(file)
        except TfliteBroken as error:
            self._why = f"{model.name} takes tensors, no texts: {error}"
        # The features remember words they have seen: one thread at a time.
        self._lock = threading.Lock()

    def rows_of_texts(self, texts: Sequence[str]) -> Rows:
        """int8 (n, width). BadInput for a text that is too long, or a model that takes none."""
        if self._texts is None:
            raise BadInput(self._why)
        try:
            with self._lock:
                return self._texts.prepare(texts)
        except TextTooLong as error:
            raise BadInput(str(error)) from error

    def rows_of_tensors(self, tensors: Sequence[bytes]) -> Rows:
        """int8 (n, input_bytes). BadInput for one of another length."""
        for number, tensor in enumerate(tensors):
            if len(tensor) != self.input_bytes:
                raise BadInput(
                    f"tensor {number} has {len(tensor)} bytes, and {self.model.name} takes {self.input_bytes}"
                )
        return np.frombuffer(b"".join(tensors), np.int8).reshape(len(tensors), self.input_bytes)

    def finished(self, output: Rows, scale: float, zero_point: int) -> list[bytes]:
        """What the rows of the output say of texts, packed for the wire."""
        match self._texts:
            case EmbeddingModel() as embedding:
                vectors = embedding.finish(output, scale, zero_point).astype("<f4", copy=False)
                return [vector.tobytes() for vector in vectors]
            case EmotionModel() as emotion:
                return [
                    _pack(
                        EmotionOutput(
                            label=each.label, intensity=each.intensity, probabilities=each.probabilities
                        )
                    )
                    for each in emotion.finish(output, scale, zero_point)
                ]
        raise BadInput(self._why)


class Runner:
    """A model on one device: rows in, rows out. Of one thread."""

    def __init__(self, interpreter: Any, *, batches: bool) -> None:
        """`batches`: it may run several rows at once; a TPU's shapes are fixed."""
        self._interpreter, self._batches = interpreter, batches
        source = interpreter.get_input_details()[0]
        self._input, self._shape = int(source["index"]), tuple(source["shape"])
        output = interpreter.get_output_details()[0]
        self._output = int(output["index"])
        scale, zero_point = output["quantization"]
        self.scale, self.zero_point = float(scale), int(zero_point)
        self._rows = 1

    def run(self, rows: Rows, before_each: Any) -> NDArray[Any]:
        """(n, ...) of the output's type. RuntimeError when the device fails. `before_each` is called before each invoke."""
        interpreter = self._interpreter
        if self._batches:
            if len(rows) != self._rows:
                interpreter.resize_tensor_input(self._input, [len(rows), *self._shape[1:]])
                interpreter.allocate_tensors()
                self._rows = len(rows)
            interpreter.set_tensor(self._input, rows.reshape(len(rows), *self._shape[1:]))
            before_each()
            interpreter.invoke()
            return np.asarray(interpreter.get_tensor(self._output))
        outputs = []
        for row in rows:
            interpreter.set_tensor(self._input, row.reshape(self._shape))
            before_each()
            interpreter.invoke()
            outputs.append(interpreter.get_tensor(self._output)[0])
        return np.stack(outputs)


def on_cpu(loaded: Loaded) -> Runner:
    """The twin, through XNNPACK. EngineFailed when LiteRT does not take it."""
    try:
        interpreter = Interpreter(model_path=loaded.model.twin, num_threads=1)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise EngineFailed(f"{loaded.model.name}: {str(error)[:500]}") from error
    return Runner(interpreter, batches=loaded.shape[:1] == (1,))


def start_quietly(loaded: Loaded) -> None:
    """Uses a model once. At its first use in a process LiteRT greets on standard error, which is nothing for the owner's log.
    To be called before there are threads, whose words would be lost too."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nothing, 2)
    try:
        with contextlib.suppress(EngineFailed):  # whoever asks for it is told
            on_cpu(loaded)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def on_tpu(compiled: str, runtime: Runtime, tpu: Found) -> Runner:
    """A compiled file on a TPU. EdgeTpuFailed."""
    return Runner(runtime.interpreter(tpu, Path(compiled)), batches=False)


def load(wanted: Sequence[TensorModel]) -> tuple[dict[str, Loaded], dict[str, str]]:
    """The models of a worker by name, and why the others cannot be used."""
    loaded, refused = {}, {}
    for model in wanted:
        try:
            loaded[model.name] = Loaded(model)
        except InferenceError as error:
            refused[model.name] = str(error)[:1024]
    return loaded, refused
