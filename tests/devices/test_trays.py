"""Layouts, roles, and the reserve."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config.appliance import Devices, LayoutName, Tray
from appliance.devices.trays import (
    LANGUAGE,
    MEMORY,
    PERCEPTION,
    RESERVE,
    ROLES,
    UNPLACED,
    Layout,
    Member,
    Place,
    shipped_ports,
    stand_ins,
)
from appliance.wire.messages import TpuRole

SHIPPED = [name for name in LayoutName if name is not LayoutName.ONE_TRAY]


@pytest.mark.parametrize(("slots", "split"), [(16, (10, 3, 2, 1)), (12, (7, 2, 2, 1)), (8, (5, 1, 1, 1))])
def test_roles_of_a_tray(slots: int, split: tuple[int, ...]) -> None:
    counts = Counter(ROLES[slots])
    assert tuple(counts[role] for role in (LANGUAGE, PERCEPTION, MEMORY, RESERVE)) == split
    # A hub of four that fails takes no role with it, but the reserve.
    for hub in range(0, slots, 4):
        left = {*ROLES[slots][:hub], *ROLES[slots][hub + 4 :]}
        assert {LANGUAGE} <= left
        if slots == 16:
            assert {LANGUAGE, PERCEPTION, MEMORY} <= left


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_layouts(name: LayoutName) -> None:
    layers, slots = map(int, name.split("x"))
    layout = Layout.of(Devices(layout=name))
    assert [tray for tray in layout.trays if tray != UNPLACED] == [f"tray-{n}" for n in range(1, layers + 1)]
    places = {
        layout.place(f"usb-2-{layer}.{hub}.{port}")
        for layer in range(1, 9)
        for hub in range(1, 5)
        for port in range(1, 5)
    }
    assert places - {None} == {
        Place(f"tray-{layer}", slot) for layer in range(1, layers + 1) for slot in range(1, slots + 1)
    }
    for layer in range(1, layers + 1):
        roles = Counter(layout.role(Place(f"tray-{layer}", slot)) for slot in range(1, slots + 1))
        assert roles == Counter(ROLES[slots])
    assert layout.place("pci-0000:03:00.0") is None
    assert layout.place("usb-1-1.1") is None


def test_shipped_ports() -> None:
    assert shipped_ports(3, 8) == (
        *(f"usb-*-3.1.{port}" for port in range(1, 5)),
        *(f"usb-*-3.2.{port}" for port in range(1, 5)),
    )


def test_trays_of_ones_own() -> None:
    layout = Layout.of(
        Devices(
            identity="/etc/tray-{tray}.json",
            trays=[
                Tray(name="top", slots=["usb-1-2.1", "usb-*-2.2", "pci-0000:03:00.0"], identity="/sys/x"),
                Tray(name="low", slots=["usb-*-2.1", "usb-3-4"], persona="pike"),
            ],
        )
    )
    assert layout.place("usb-1-2.1") == ("top", 1)
    assert layout.place("usb-2-2.1") == ("low", 1)  # any other bus
    assert layout.place("usb-7-2.2") == ("top", 2)
    assert layout.place("pci-0000:03:00.0") == ("top", 3)
    assert layout.place("usb-3-4") == ("low", 2)
    assert layout.place("usb-4-4") is None
    assert [(plan.name, plan.identity, plan.persona) for plan in layout.trays.values()] == [
        ("top", "/sys/x", ""),
        ("low", "/etc/tray-2.json", "pike"),
        (UNPLACED, "", ""),
    ]
    # Of a port that stands twice, the first place counts.
    twice = Layout.of(Devices(trays=[Tray(name="a", slots=["usb-1-1"]), Tray(name="b", slots=["usb-1-1"])]))
    assert twice.place("usb-1-1") == ("a", 1)


def test_one_tray_takes_everything() -> None:
    layout = Layout.of(Devices(identity="/tray-{tray}.json"))
    assert layout.rest == "tray-1"
    assert layout.trays["tray-1"].identity == "/tray-1.json"
    assert layout.place("usb-1-1") is None
    assert [layout.role(Place("tray-1", slot)) for slot in (1, 2, 3, 16, 17, 32)] == [
        LANGUAGE,
        PERCEPTION,
        MEMORY,
        RESERVE,
        LANGUAGE,
        RESERVE,
    ]


def tray(*broken: int, slots: int = 16) -> list[Member]:
    return [Member(str(slot), role, slot not in broken) for slot, role in enumerate(ROLES[slots], 1)]


def test_the_reserve_takes_over() -> None:
    assert stand_ins(tray()) == {}
    assert stand_ins(tray(1)) == {"16": LANGUAGE}
    assert stand_ins(tray(3)) == {"16": MEMORY}
    # Where it hurts most: half of the memory is more than a tenth of the language.
    assert stand_ins(tray(1, 3)) == {"16": MEMORY}
    assert stand_ins(tray(1, 16)) == {}
    two = [*tray(1, 3), *(each._replace(id=f"b{each.id}") for each in tray())]
    assert list(stand_ins(two).values()) == [MEMORY, LANGUAGE]


members = st.lists(st.tuples(st.sampled_from(list(TpuRole)), st.booleans()), max_size=40).map(
    lambda rows: [Member(str(number), role, works) for number, (role, works) in enumerate(rows)]
)


@given(members)
def test_stand_ins_are_just(found: list[Member]) -> None:
    taken = stand_ins(found)
    by_id = {each.id: each for each in found}
    assert all(by_id[each].role is RESERVE and by_id[each].works for each in taken)
    missing = Counter(each.role for each in found if not each.works and each.role is not RESERVE)
    filled = Counter(taken.values())
    assert all(filled[role] <= missing[role] for role in filled)
    spare = sum(each.role is RESERVE and each.works for each in found)
    assert len(taken) == min(spare, missing.total())
