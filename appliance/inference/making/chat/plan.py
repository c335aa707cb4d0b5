"""The network's sizes and the training's numbers, without PyTorch: what the model card says comes from here."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The network: sizes as llama.cpp names them."""

    embedding: int = 256
    blocks: int = 6
    heads: int = 8
    kv_heads: int = 4
    feed_forward: int = 704
    context: int = 1024
    vocabulary: int = 2_048
    rope_base: float = 10_000.0
    epsilon: float = 1e-5

    @property
    def head(self) -> int:
        return self.embedding // self.heads


@dataclass(frozen=True)
class Plan:
    """The training: everything that decides the result, so that it can be compared on resuming."""

    steps: int = 7_000
    step_tokens: int = 4_096
    #: Conversations are packed into rows of this length; every `long_every`-th step has rows as long as the window instead.
    row_tokens: int = 512
    long_every: int = 5
    warmup: int = 150
    learning_rate: float = 4.0e-3
    final_fraction: float = 0.01
    weight_decay: float = 0.05
    seed: int = 7
    #: This share of the turns only asks to repeat words, so that the model learns to copy what it was told (a query, a number,
    #: a name). It comes after the first steps, when the model has its language.
    echo_from: int = 400
    echo_share: float = 0.1

    def is_long(self, step: int) -> bool:
        """Whether the rows of this step are as long as the window."""
        return step % self.long_every == self.long_every - 1


def learning_rate(plan: Plan, step: int) -> float:
    """Linear warm-up, then a cosine down to `final_fraction` of the peak."""
    if step < plan.warmup:
        return plan.learning_rate * (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    low = plan.final_fraction
    return plan.learning_rate * (low + (1 - low) * (0.5 + 0.5 * math.cos(math.pi * done)))
