"""The text models that run on TPUs, or on the CPU, as their worker sees them: texts to a tensor, a tensor to what was asked for.

A model is one .tflite file whose metadata say what it is for and how texts become its input (`Card`), so that a model and its
features cannot be mismatched. A file compiled for Edge TPUs is made from its twin and goes by the twin's metadata: always open
the twin. Nothing here imports LiteRT.

    model = open_text_model(path)                     # of the CPU twin
    tensor = model.prepare(["a text", "another"])     # int8 (2, model.width); rows are fed one by one as (1, width)
    vectors = model.finish(output, scale, zero_point)   # output: int8 (2, model.outputs), as the interpreter gave the rows
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from .errors import TfliteBroken
from .features import WEIGHTS, Features, FeatureSpec, words
from .tflite import Tflite, read_tflite

#: The names of what we put into a .tflite file's metadata.
CARD, WORD_WEIGHTS = "coral-reef-card", "coral-reef-word-weights"


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a text model's file says of itself. `kind` is embedding or emotion; `labels` are an emotion model's, in order."""

    kind: str
    features: FeatureSpec
    labels: tuple[str, ...] = ()


class Emotion(msgspec.Struct, frozen=True, kw_only=True):
    """What a text expresses: the likeliest label, how strongly (0..1), and each label's probability (their sum is 1)."""

    label: str
    intensity: float
    probabilities: dict[str, float]


def count_words(texts: Sequence[str]) -> int:
    """What `usage` counts: the words that a model reads in these texts. TextTooLong as `prepare` raises it."""
    return sum(len(words(text)) for text in texts)


class EmbeddingModel:
    """Texts to vectors whose inner products are cosines."""

    kind = "embedding"

    def __init__(self, features: Features, outputs: int) -> None:
        #: Elements of the model's int8 input and output rows; `outputs` is the number of dimensions.
        self.width, self.outputs = features.spec.width, outputs
        self._features = features

    def prepare(self, texts: Sequence[str]) -> NDArray[np.int8]:
        """(n, width). TextTooLong for a text over `features.TEXT_LIMIT_BYTES`."""
        return self._features.prepare(texts)

    def finish(self, output: NDArray[np.int8], scale: float, zero_point: int) -> NDArray[np.float32]:
        """int8 (n, outputs) to L2-normalised float32 (n, outputs). `scale` and `zero_point` are those of the output tensor of
        the file that ran. A row of zeros stays one."""
        vectors = (output.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.where(lengths == 0, 1, lengths), np.float32)


class EmotionModel:
    """Texts to emotions."""

    kind = "emotion"

    def __init__(self, features: Features, labels: tuple[str, ...]) -> None:
        #: Elements of the model's int8 input and output rows; the last output is the intensity.
        self.width, self.outputs = features.spec.width, len(labels) + 1
        self.labels = labels
        self._features = features

    def prepare(self, texts: Sequence[str]) -> NDArray[np.int8]:
        """(n, width). TextTooLong for a text over `features.TEXT_LIMIT_BYTES`."""
        return self._features.prepare(texts)

    def finish(self, output: NDArray[np.int8], scale: float, zero_point: int) -> list[Emotion]:
        """int8 (n, outputs) to one Emotion a row. `scale` and `zero_point` are those of the output of the file that ran."""
        logits = (output.astype(np.float64) - zero_point) * scale
        powers = np.exp(logits[:, :-1] - logits[:, :-1].max(axis=1, keepdims=True))
        shares = powers / powers.sum(axis=1, keepdims=True)
        strengths = 0.5 + 0.5 * np.tanh(logits[:, -1] / 2)  # the logistic function, without its overflow
        return [
            Emotion(
                label=self.labels[int(row.argmax())],
                intensity=float(strength),
                probabilities=dict(zip(self.labels, map(float, row), strict=True)),
            )
            for row, strength in zip(shares, strengths, strict=True)
        ]


def open_text_model(path: Path) -> EmbeddingModel | EmotionModel:
    """Reads what a .tflite file says of itself. TfliteBroken when it is no text model of ours or needs other features than this
    software makes, OSError when it cannot be read."""
    return text_model(read_tflite(path))


def text_model(file: Tflite) -> EmbeddingModel | EmotionModel:
    """`open_text_model` of a file that was read already."""
    try:
        card = msgspec.json.decode(file.metadata[CARD], type=Card)
        weights = np.frombuffer(file.metadata[WORD_WEIGHTS], np.uint8)
    except KeyError as error:
        raise TfliteBroken(
            f"it has no metadata {error}: it is not a text model made for this software"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TfliteBroken(f"its metadata {CARD}: {error}") from None
    if problem := card.features.problem():
        raise TfliteBroken(f"{problem}: use the models that came with this version")
    if len(weights) != WEIGHTS:
        raise TfliteBroken(f"its metadata {WORD_WEIGHTS} have {len(weights)} entries, expected {WEIGHTS}")
    inputs = [(tensor.shape, tensor.type) for tensor in file.inputs]
    outputs = [(tensor.shape, tensor.type) for tensor in file.outputs]
    if inputs != [((1, card.features.width), "int8")]:
        raise TfliteBroken(f"its inputs are {inputs}, expected one int8 of (1, {card.features.width})")
    if len(outputs) != 1 or outputs[0][1] != "int8" or len(outputs[0][0]) != 2 or outputs[0][0][0] != 1:
        raise TfliteBroken(f"its outputs are {outputs}, expected one int8 of (1, n)")
    features = Features(card.features, weights)
    if card.kind == "embedding":
        return EmbeddingModel(features, outputs[0][0][1])
    if card.kind == "emotion" and outputs[0][0][1] == len(card.labels) + 1:
        return EmotionModel(features, card.labels)
    raise TfliteBroken(
        f"it is a model for {card.kind!r} with {len(card.labels)} labels and outputs {outputs}"
    )
