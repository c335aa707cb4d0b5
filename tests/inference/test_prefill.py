"""The choice of the batch: pure arithmetic."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.inference.prefill import LARGEST, SMALLEST, STEP_S, Cost, Step, choose, cost_of

COSTS = st.builds(Cost, st.floats(0, 10), st.floats(0, 1e-3))


def steps_of(cost: Cost, count: int, tokens: int = 32) -> list[Step]:
    return [Step(n * tokens, tokens, cost.step_s(tokens, n * tokens)) for n in range(count)]


@given(token_s=st.floats(1e-6, 1), depth_s=st.floats(0, 1e-4), count=st.integers(2, 8))
def test_the_cost_is_found_again(token_s: float, depth_s: float, count: int) -> None:
    found = cost_of(steps_of(Cost(token_s, depth_s), count))
    assert abs(found.token_s - token_s) < 1e-6 + token_s * 1e-6
    assert abs(found.depth_s - depth_s) < 1e-8 + depth_s * 1e-6


def test_one_step_tells_nothing_of_the_depth() -> None:
    assert cost_of([Step(0, 32, 0.32)]) == Cost(0.01, 0.0)
    assert cost_of([]) == Cost(0.0, 0.0)


def test_a_measurement_that_gets_faster_counts_as_flat() -> None:
    found = cost_of([Step(0, 10, 1.0), Step(10, 10, 0.5)])
    assert found.depth_s == 0
    assert abs(found.token_s - 0.075) < 1e-9


@given(cost=COSTS, window=st.integers(64, 131_072), slots=st.integers(1, 128))
def test_a_step_takes_its_time_at_most_or_is_the_smallest(cost: Cost, window: int, slots: int) -> None:
    chosen = choose(cost, window=window, slots=slots)
    assert slots <= chosen <= max(LARGEST, slots)
    assert chosen >= SMALLEST
    if chosen > max(SMALLEST, slots):
        assert cost.step_s(chosen, max(window - chosen, 0)) <= STEP_S
    if chosen < LARGEST and chosen > slots:
        assert cost.step_s(2 * chosen, max(window - 2 * chosen, 0)) > STEP_S


def test_models_that_were_measured() -> None:
    """On one thread: the shipped one, in its window and in one of 8,192; one of a billion parameters on two."""
    small = Cost(0.021 / 128, (0.187 - 0.021) / 128 / 5000)
    assert choose(small, window=512, slots=16) == 128
    assert choose(small, window=8192, slots=16) == 64
    assert choose(Cost(0.6 / 128, 0.0), window=4096, slots=16) == 32
