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
    #: After these steps, lower waves of the learning rate (steps, peak) with more tool calls: what is copied becomes exact.
    finish: tuple[tuple[int, float], ...] = ((1_000, 6.0e-4), (500, 3.0e-4))
    finish_echo_share: float = 0.06
    finish_call_share: float = 0.2

    @property
    def all_steps(self) -> int:
        return self.steps + sum(steps for steps, _ in self.finish)


def learning_rate(plan: Plan, step: int) -> float:
    """Linear warm-up, then a cosine down to `final_fraction` of the peak; then the same for each wave of the finish."""
    peak, steps, warmup = plan.learning_rate, plan.steps, plan.warmup
    for wave in plan.finish:
        if step < steps:
            break
        step -= steps
        (steps, peak), warmup = wave, plan.warmup // 3
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    low = plan.final_fraction
    return peak * (low + (1 - low) * (0.5 + 0.5 * math.cos(math.pi * done)))
