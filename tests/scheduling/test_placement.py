"""The ways to choose a worker, against a search through all of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config.appliance import PlacementName
from appliance.scheduling.placement import PLACEMENTS, Load, Pool, affinity, least_loaded, round_robin

loads = st.builds(
    Load,
    leases=st.integers(0, 3),
    switches=st.booleans(),
    turn=st.integers(0, 5),
    worker=st.sampled_from([f"w{number}" for number in range(8)]),
)


@given(
    entered=st.lists(loads, min_size=1, max_size=30), last=st.none() | st.sampled_from(["w0", "w1", "gone"])
)
def test_decisions(entered: list[Load], last: str | None) -> None:
    """A later entry of the same worker takes the place of the earlier one."""
    pool, there = Pool(), dict[str, Load]()
    for load in entered:
        if load.worker in there:
            pool.leave(load.worker)
        pool.enter(load)
        there[load.worker] = load
    view = pool.view(last)
    fewest = min(there.values(), key=lambda load: (load.leases, load.switches, load.turn, load.worker))
    assert least_loaded(view) == fewest.worker
    assert round_robin(view) == min(there.values(), key=lambda load: (load.turn, load.worker)).worker
    assert affinity(view) == (last if last in there else fewest.worker)
    assert [load.worker for load in view.by_load] == sorted(there, key=lambda worker: there[worker])
    for worker in there:
        pool.leave(worker)
    assert not pool
    assert view == ([], [], view.last)


@given(count=st.integers(1, 12), rounds=st.integers(1, 4))
def test_round_robin_visits_each_once_a_round(count: int, rounds: int) -> None:
    pool = Pool()
    for number in range(count):
        pool.enter(Load(0, False, 0, f"w{number}"))
    chosen = []
    for turn in range(1, count * rounds + 1):
        worker = round_robin(pool.view())
        pool.leave(worker)
        pool.enter(Load(0, False, turn, worker))
        chosen.append(worker)
    assert all(chosen[number::count] == [chosen[number]] * rounds for number in range(count))
    assert len(set(chosen)) == count


@pytest.mark.parametrize("name", PlacementName)
def test_each_can_be_chosen(name: PlacementName) -> None:
    assert PLACEMENTS[name].__name__ == name
