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

    steps: int = 5_400
    rows: int = 4
    warmup: int = 150
    learning_rate: float = 2.0e-3
    final_fraction: float = 0.02
    weight_decay: float = 0.05
    seed: int = 7
    #: From this step on, this share of the turns only asks to repeat words. By then the model has its language, and learns to
    #: copy what it was told (a query, a number, a name) within some hundred steps; without, it had not after two thousand.
    echo_from: int = 1_800
    echo_share: float = 0.12
    #: After these steps, a second and lower wave of the learning rate with more tool calls: what is copied becomes exact.
    finish_steps: int = 1_000
    finish_rate: float = 6.0e-4
    finish_echo_share: float = 0.06
    finish_call_share: float = 0.2

    @property
    def all_steps(self) -> int:
        return self.steps + self.finish_steps


def learning_rate(plan: Plan, step: int) -> float:
    """Linear warm-up, then a cosine down to `final_fraction` of the peak; then the same once more for the finish."""
    peak, steps, warmup = plan.learning_rate, plan.steps, plan.warmup
    if step >= plan.steps:
        peak, steps, warmup, step = plan.finish_rate, plan.finish_steps, plan.warmup // 3, step - plan.steps
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    low = plan.final_fraction
    return peak * (low + (1 - low) * (0.5 + 0.5 * math.cos(math.pi * done)))
