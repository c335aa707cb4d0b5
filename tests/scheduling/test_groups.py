"""Which worker has which TPUs open."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from appliance.scheduling.groups import group
from appliance.wire.messages import TPUS_LIMIT

TOWERS = st.dictionaries(
    st.integers(0, 60).map(lambda number: f"usb-{number}"), st.sampled_from(["tray-1", "tray-2", "tray-3"])
)


@given(st.lists(TOWERS, min_size=1, max_size=5), st.sets(st.sampled_from(["tpu-1", "tpu-2"])))
def test_any_sequence_of_towers(towers: list[dict[str, str]], taken: set[str]) -> None:
    workers: dict[str, str] = {}
    trays: dict[str, str] = {}
    for tower in towers:
        before, trays_before = workers, trays
        workers, trays = group(tower, before, taken), tower
        assert workers.keys() == tower.keys()
        assert max(Counter(workers.values()).values(), default=0) <= TPUS_LIMIT
        for worker in set(workers.values()):
            assert len({tower[tpu] for tpu, each in workers.items() if each == worker}) == 1
        if all(tower[tpu] == trays_before[tpu] for tpu in tower.keys() & trays_before.keys()):
            assert all(workers[tpu] == before[tpu] for tpu in tower.keys() & before.keys())
        assert not taken & (set(workers.values()) - set(before.values()))


def test_a_tower_of_eight_trays() -> None:
    tower = {f"pci-{number:03}": f"tray-{number // 16}" for number in range(128)}
    assert set(Counter(group(tower, {}).values()).values()) == {16}


def test_one_tray_of_everything() -> None:
    counts = Counter(group({f"usb-{number}": "tower" for number in range(96)}, {}).values())
    assert sorted(counts) == [f"tpu-{number}" for number in range(1, 7)]
    assert set(counts.values()) == {16}
