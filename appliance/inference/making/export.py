"""What `student.save` wrote, as the .tflite file that ships; and running such a file here. Needs LiteRT, not PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from appliance.files import write_atomically
from appliance.inference import models
from appliance.inference.features import FeatureSpec
from appliance.inference.text_models import (
    CARD,
    WORD_WEIGHTS,
    Card,
    EmbeddingModel,
    Emotion,
    EmotionModel,
    open_text_model,
)

from .dense import Layer, tflite


def export(trained: Path, target: Path, kind: str, description: str, labels: Sequence[str] = ()) -> None:
    """Writes `target` from the .npz file of a training."""
    with np.load(trained) as saved:
        spec = msgspec.json.decode(saved["spec"].tobytes(), type=FeatureSpec)
        layers = [
            Layer(saved["first"], saved["first_bias"], relu=True),
            Layer(saved["second"], saved["second_bias"], relu=False),
        ]
        card = Card(kind=kind, features=spec, labels=tuple(labels))
        metadata = {CARD: msgspec.json.encode(card), WORD_WEIGHTS: saved["word_weights"].tobytes()}
        content = tflite(layers, spec.scale, saved["samples"], metadata, description)
    write_atomically(target, content)


def enter(path: Path, name: str, kind: str, description: str, context_tokens: int = 0) -> models.Entry:
    """Enters a model into the manifest beside it, in the place of the one of that name."""
    entry = models.Entry(
        name=name,
        kind=kind,
        file=path.name,
        sha256=models.digest(path),
        size_bytes=path.stat().st_size,
        context_tokens=context_tokens,
        description=description,
    )
    others = [each for each in models.read_manifest(path.parent) if each.name != name]
    manifest = msgspec.json.format(
        msgspec.json.encode(models.Manifest(sorted([*others, entry], key=lambda each: each.name)))
    )
    write_atomically(path.parent / "manifest.json", manifest + b"\n")
    return entry


class Runner:
    """A text model's file on this machine's CPU."""

    def __init__(self, path: Path) -> None:
        self.model = open_text_model(path)
        self._interpreter = Interpreter(model_path=str(path), num_threads=1)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int8]:
        """What the network says of each text: (n, outputs)."""
        found = np.empty((len(texts), self.model.outputs), np.int8)
        for start in range(0, len(texts), 64):
            for at, row in enumerate(self.model.prepare(texts[start : start + 64]), start):
                self._interpreter.set_tensor(self._input, row[None])
                self._interpreter.invoke()
                found[at] = self._interpreter.get_tensor(self._output["index"])[0]
        return found

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """L2-normalised vectors, (n, outputs)."""
        if not isinstance(self.model, EmbeddingModel):
            raise TypeError(f"a model for {self.model.kind}")
        return self.model.finish(self(texts), *self._output["quantization"])

    def feel(self, texts: Sequence[str]) -> list[Emotion]:
        """Emotions."""
        if not isinstance(self.model, EmotionModel):
            raise TypeError(f"a model for {self.model.kind}")
        return self.model.finish(self(texts), *self._output["quantization"])
