"""Quantiles out of buckets, against those of the durations themselves."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.telemetry.histogram import (
    BUCKETS,
    ERROR,
    LONGEST_S,
    PER_DECADE,
    SHORTEST_S,
    bucket_of,
    quantile_s,
    upper_edge_s,
)

DURATIONS = st.floats(SHORTEST_S, LONGEST_S)


@given(st.lists(DURATIONS, min_size=1, max_size=300), st.sampled_from([0.0, 0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_within_the_stated_error(durations: list[float], share: float) -> None:
    counts = [0] * BUCKETS
    for each in durations:
        counts[bucket_of(each)] += 1
    exact = sorted(durations)[max(1, ceil(share * len(durations))) - 1]
    found = quantile_s(counts, share)
    assert found is not None
    assert exact / (1 + ERROR) * 0.999999 <= found <= exact * (1 + ERROR) * 1.000001


@given(st.floats(min_value=0, allow_nan=False))
def test_every_duration_has_a_bucket(seconds: float) -> None:
    bucket = bucket_of(seconds)
    assert 0 <= bucket < BUCKETS
    if seconds <= LONGEST_S:
        assert seconds <= upper_edge_s(bucket) * 1.000001
    if seconds > SHORTEST_S * 1.01 and bucket:
        assert upper_edge_s(bucket - 1) <= seconds * 1.000001


def test_the_bounds_that_are_asked_for() -> None:
    for bound in (0.01, 0.1, 1.0):
        assert min(abs(upper_edge_s(each) / bound - 1) for each in range(BUCKETS)) < 1e-9
    assert min(abs(upper_edge_s(each) / 0.05 - 1) for each in range(BUCKETS)) < 0.003
    assert ERROR < 0.06
    assert BUCKETS == 7 * PER_DECADE


def test_nothing_counted_and_nonsense() -> None:
    assert quantile_s([0] * BUCKETS, 0.5) is None
    with pytest.raises(ValueError, match="0 to 1"):
        quantile_s([1], 2)
