"""What both small networks are made of: hashed words as sparse vectors, two layers over them, and int8 as it will ship."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor, nn

from appliance.inference.features import WEIGHTS, Features, weight_place, words

#: Vectors that `export` measures ranges with.
SAMPLES = 2_000


class Bags:
    """Texts as sparse int8 vectors, one after another."""

    def __init__(self, features: Features, texts: Sequence[str]) -> None:
        places, values, starts = [], [], [0]
        for start in range(0, len(texts), 256):
            rows = features.prepare(texts[start : start + 256])
            for row in rows:
                filled = np.flatnonzero(row)
                places.append(filled.astype(np.int32))
                values.append(row[filled])
                starts.append(starts[-1] + len(filled))
        self.starts = np.array(starts)
        self.places, self.values = np.concatenate(places), np.concatenate(values)
        self.scale = features.spec.scale

    def __len__(self) -> int:
        return len(self.starts) - 1

    def pick(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Places, offsets and values of some rows, as `functional.embedding_bag` takes them."""
        lengths = self.starts[rows + 1] - self.starts[rows]
        offsets = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        index = np.repeat(self.starts[rows] - offsets, lengths) + np.arange(lengths.sum())
        return (
            torch.from_numpy(self.places[index].astype(np.int64)),
            torch.from_numpy(offsets),
            torch.from_numpy(self.values[index].astype(np.float32) * self.scale),
        )


class Network(nn.Module):
    """Hashed words -> hidden (ReLU) -> outputs. `rounded`: with the int8 weights that will ship."""

    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(width, hidden) * (1 / math.sqrt(hidden)))
        self.first_bias = nn.Parameter(torch.zeros(hidden))
        self.second = nn.Parameter(torch.randn(outputs, hidden) * (1 / math.sqrt(hidden)))
        self.second_bias = nn.Parameter(torch.zeros(outputs))
        self.rounded = False

    def forward(self, bags: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return self.output(self.hidden(bags))

    def hidden(self, bags: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The hidden layer, (n, hidden)."""
        first = rounded(self.first) if self.rounded else self.first
        places, offsets, values = bags
        sums = functional.embedding_bag(places, first, offsets, mode="sum", per_sample_weights=values)
        return torch.relu(sums + self.first_bias)

    def output(self, hidden: Tensor) -> Tensor:
        """The last layer, (n, outputs)."""
        second = rounded(self.second) if self.rounded else self.second
        return functional.linear(hidden, second, self.second_bias)


def rounded(weights: Tensor) -> Tensor:
    """The weights as int8 with one scale will give them back; the gradient passes as if they had not been rounded."""
    with torch.no_grad():
        scale = clipped_scale(weights)
        error = torch.clamp(torch.round(weights / scale), -127, 127) * scale - weights
    return weights + error


def clipped_scale(weights: Tensor) -> Tensor:
    """The scale that rounds all but a few large weights well."""
    return weights.abs().max().minimum(8 * weights.std()) / 127


def word_weights(texts: Sequence[str]) -> NDArray[np.uint8]:
    """What words count: the logarithm of how rare they are among the texts, the rarest 255."""
    seen: Counter[int] = Counter()
    counts: Counter[bytes] = Counter()
    for text in texts:
        counts.update(set(words(text)))
    for word, count in counts.items():
        seen[weight_place(word)] = max(seen[weight_place(word)], count)
    rarity = np.array([math.log((len(texts) + 1) / (seen[place] + 1)) for place in range(WEIGHTS)])
    return np.clip(np.rint(255 * rarity / rarity.max()), 1, 255).astype(np.uint8)


def torn(text: str, rng: random.Random, chance: float) -> str:
    """The text without some of its words."""
    said = text.split(" ")
    left = [word for word in said if rng.random() >= chance]
    return " ".join(left) if len(left) >= 2 else text


def warm_cosine(step: int, steps: int, warmup: int) -> float:
    """A share of the learning rate: linear warm-up, then a cosine down to nearly nothing."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * done))


def save(path: Path, network: Network, features: Features, samples: Sequence[str]) -> None:
    """What `export` needs: the layers, the features with their word weights, and vectors of `samples` to measure ranges with."""
    np.savez(
        path,
        first=network.first.detach().numpy().T,
        first_bias=network.first_bias.detach().numpy(),
        second=network.second.detach().numpy(),
        second_bias=network.second_bias.detach().numpy(),
        samples=features.prepare(samples),
        spec=np.frombuffer(msgspec.json.encode(features.spec), np.uint8),
        word_weights=features.word_weights,
    )
