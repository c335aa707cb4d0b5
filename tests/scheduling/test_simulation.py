"""The simulated tower: whatever fails, every request is answered once, and TPUs and accounts get their share."""

from __future__ import annotations

import statistics
from functools import cache

import pytest

from appliance.wire.messages import Priority

from .simulation import GREEDY, Report, Tower, describe, quantile


@cache
def report(load: float, seed: int) -> Report:
    return Tower(seconds=8, load=load, seed=seed).run()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("load", [0.3, 0.8])
def test_everybody_is_answered_once(load: float, seed: int) -> None:
    found = report(load, seed)
    assert len(found.requests) > 5000
    assert found.failures["fails"] > 3
    assert found.replays["pieces"] > 0
    assert {request.answers for request in found.requests} == {1}
    assert all(request.ended > request.began for request in found.requests)


def test_the_load_is_spread() -> None:
    found = report(0.8, 1)
    use = found.utilisation()
    assert found.fairness_of_tpus() > 0.95
    assert 0.5 < statistics.mean(use.values()) <= 1


def test_who_sends_half_of_it_holds_nobody_up() -> None:
    found = report(0.8, 1)
    modest = found.latencies(lambda each: each.account != GREEDY and each.size > 1)
    greedy = found.latencies(lambda each: each.account == GREEDY and each.size > 1)
    assert quantile(modest, 0.95) <= 1.2 * quantile(greedy, 0.95)
    high = found.latencies(lambda each: each.priority is Priority.HIGH and each.size == 1)
    assert quantile(high, 0.95) <= quantile(modest, 0.95)


def test_a_killed_worker_costs_its_requests_seconds_at_most() -> None:
    found = max((report(0.8, seed) for seed in (1, 2)), key=lambda each: each.failures["killed"])
    assert found.failures["killed"] > 0
    slowest = max(request.ended - request.began for request in found.requests)
    assert slowest < 6  # stuck for 2 s, perhaps twice, and begun again


def test_it_can_be_told() -> None:
    text = describe(report(0.3, 1))
    assert "answered exactly once: True" in text
    assert text.count("tray ") == 8
