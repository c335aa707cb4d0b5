"""How many tokens of prompts the engine reads in one step.

Between two steps the other replies get their token and a cancel is seen, so a step shall take at most STEP_S. What a token costs
grows with what stands before it: on one thread, 128 tokens of the shipped model take 21 ms at the beginning of a window, 190 ms
after 5,000 tokens. So the cost is measured on a throw-away prompt while the model loads, and the batch is chosen for the far end
of the window.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

#: What one step may take.
STEP_S = 0.25

#: Longer steps hardly read faster.
LARGEST = 128

#: Below that, reading slows down more than waiting gets shorter.
SMALLEST = 8

#: The throw-away prompt: as many steps, unless they take longer than that together.
STEPS = 8
MEASURE_S = 2.0


class Step(msgspec.Struct, frozen=True):
    """One step of the measurement: `tokens` were read on top of `before` others."""

    before: int
    tokens: int
    seconds: float


class Cost(msgspec.Struct, frozen=True):
    """Seconds a token, and what each token before it adds."""

    token_s: float
    depth_s: float

    def step_s(self, tokens: int, before: int) -> float:
        """What a step of `tokens` takes on top of `before`."""
        return tokens * (self.token_s + self.depth_s * (before + tokens / 2))


def cost_of(steps: Sequence[Step]) -> Cost:
    """The line through the measured steps, by least squares. One step tells nothing of the depth."""
    points = [(step.before + step.tokens / 2, step.seconds / step.tokens) for step in steps if step.tokens]
    if not points:
        return Cost(0.0, 0.0)
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    slope = max(slope, 0.0)
    return Cost(max(mean_y - slope * mean_x, 0.0), slope)


def choose(cost: Cost, *, window: int, slots: int) -> int:
    """The most tokens a step that take at most STEP_S at the end of the window: a power of two, at least SMALLEST and `slots`."""
    tokens = LARGEST
    while tokens > SMALLEST and cost.step_s(tokens, max(window - tokens, 0)) > STEP_S:
        tokens //= 2
    return max(tokens, slots)
