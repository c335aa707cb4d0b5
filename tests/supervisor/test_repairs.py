"""Repairs: opened once, closed when over, worst first."""

from __future__ import annotations

import pytest

from appliance.supervisor.errors import NoSuchRepair, NotFixable
from appliance.supervisor.repairs import SORTS, Kind, Repairs
from appliance.wire.messages import Repair, Severity


class Clock:
    """A clock that is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def told() -> list[tuple[str, bool]]:
    return []


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def repairs(told: list[tuple[str, bool]], clock: Clock) -> Repairs:
    def changed(repair: Repair, gone: bool) -> None:
        told.append((repair.what, gone))

    return Repairs(changed, clock)


async def nothing() -> str:
    return "done"


def test_every_kind_says_what_to_do() -> None:
    assert set(SORTS) == set(Kind)
    assert all(sort.advice.endswith(".") for sort in SORTS.values())


def test_told_once_and_gone_when_it_is_gone(
    repairs: Repairs, told: list[tuple[str, bool]], clock: Clock
) -> None:
    repairs.open(Kind.WORKER_MEMORY, "w", "too big")
    clock.now = 200.0
    repairs.open(Kind.WORKER_MEMORY, "w", "too big")
    repairs.open(Kind.WORKER_MEMORY, "w", "far too big")
    (repair,) = repairs.all()
    assert (repair.since, repair.what) == (100.0, "far too big")
    repairs.close(Kind.WORKER_MEMORY, "w")
    repairs.close(Kind.WORKER_MEMORY, "w")
    assert repairs.all() == []
    assert told == [("too big", False), ("far too big", False), ("far too big", True)]


def test_worst_first_then_oldest(repairs: Repairs, clock: Clock) -> None:
    for number, kind in enumerate((Kind.MODE_NOT_IN_EFFECT, Kind.WORKER_MEMORY, Kind.WORKER_CRASH_LOOP)):
        clock.now += number
        repairs.open(kind, "b", "b")
        clock.now += 1
        repairs.open(kind, "a", "a")
    assert [repair.severity for repair in repairs.all()] == [
        *[Severity.CRITICAL] * 2,
        *[Severity.ERROR] * 2,
        *[Severity.WARNING] * 2,
    ]
    assert [repair.subject for repair in repairs.all()] == ["b", "a"] * 3


def test_exactly_these(repairs: Repairs, told: list[tuple[str, bool]]) -> None:
    repairs.open(Kind.WORKER_MEMORY, "w", "another kind")
    repairs.only(Kind.CONFIGURATION_WARNING, [("a:1", "one"), ("a:2", "two")])
    repairs.only(Kind.CONFIGURATION_WARNING, [("a:2", "two"), ("a:3", "three")])
    assert {repair.subject for repair in repairs.all()} == {"w", "a:2", "a:3"}
    assert told[-2:] == [("one", True), ("three", False)]
    repairs.when(Kind.WORKER_MEMORY, "w", "")
    repairs.when(Kind.WORKER_MEMORY, "v", "grew")
    assert {repair.subject for repair in repairs.all()} == {"v", "a:2", "a:3"}


async def test_fixes(repairs: Repairs) -> None:
    repairs.open(Kind.MODEL_UNUSABLE, "m", "gone", nothing)
    repairs.open(Kind.WORKER_MEMORY, "w", "too big")
    with_fix, without = repairs.all()
    assert with_fix.fix == SORTS[Kind.MODEL_UNUSABLE].fix
    assert await repairs.fix(with_fix.id) == "done"
    assert without.fix == ""
    with pytest.raises(NotFixable, match="memory_limit_mib"):
        await repairs.fix(without.id)
    with pytest.raises(NoSuchRepair, match="'else'"):
        await repairs.fix("else")
