"""From what is to what is wanted, on NetworkManagers that are made up."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.network.plan import (
    Activate,
    Filter,
    Make,
    Remove,
    Step,
    described,
    differences,
    in_order,
    plan,
)
from appliance.network.profiles import Current, Desired, Device, Found, Profile, Settings

ROLES = ("primary", "secondary", "management", "primary.vlan10", "primary.vlan20")
PARENTS = {"primary.vlan10": ("primary",), "primary.vlan20": ("primary",)}
DEVICES = ("eth0", "eth1", "eth2")


def settings_of(kind: str, interface: str, address: str) -> Settings:
    return {
        "connection": {"type": kind, "interface-name": interface},
        "ipv4": {"method": "manual", "address-data": [address]},
    }


ADDRESSES = st.sampled_from(["10.0.0.1/24", "10.0.1.1/24", "10.0.2.1/16"])


@st.composite
def profiles(draw: st.DrawFn) -> tuple[Profile, ...]:
    roles = draw(st.lists(st.sampled_from(ROLES), unique=True))
    found = []
    for role in roles:
        kind = "vlan" if "vlan" in role else "802-3-ethernet"
        interface = draw(st.sampled_from(DEVICES)) + (".10" if kind == "vlan" else "")
        needs = tuple(each for each in PARENTS.get(role, ()) if each in roles)
        found.append(Profile(role, interface, settings_of(kind, interface, draw(ADDRESSES)), needs))
    return tuple(found)


@st.composite
def currents(draw: st.DrawFn) -> Current:
    """Ours, foreign ones, duplicates, some active, some not saved."""
    found = []
    busy: set[str] = set()
    for number in range(draw(st.integers(0, 6))):
        role = draw(st.sampled_from(("", *ROLES)))
        interface = draw(st.sampled_from(DEVICES))
        device = interface if interface not in busy and draw(st.booleans()) else ""
        busy.add(device)
        kind = "vlan" if "vlan" in role else "802-3-ethernet"
        settings = settings_of(kind, interface, draw(ADDRESSES))
        found.append(Found(f"u{number}", role, f"profile {number}", settings, draw(st.booleans()), device))
    devices = [Device(name, "ethernet") for name in DEVICES if draw(st.booleans())]
    return Current(tuple(found), tuple(devices), draw(st.sampled_from(["", "table a", "table b"])))


@st.composite
def desires(draw: st.DrawFn) -> Desired:
    return Desired(draw(profiles()), draw(st.sampled_from(["", "table a", "table b"])))


def carried_out(steps: tuple[Step, ...], current: Current) -> Current:
    """What NetworkManager has after the steps, all of them committed."""
    there = {each.uuid: each for each in current.profiles}
    fresh = itertools.count()
    firewall = current.firewall

    def idle(found: Found) -> Found:
        return Found(found.uuid, found.role, found.name, found.settings, found.saved)

    def use(device: str) -> None:
        for uuid, each in there.items():
            if each.device == device:
                there[uuid] = idle(each)

    for step in steps:
        match step:
            case Filter(rules, old):
                assert old == firewall
                firewall = rules
            case Remove(uuid, _):
                del there[uuid]
            case Activate(uuid, _, interface):
                use(interface)
                each = there[uuid]
                there[uuid] = Found(uuid, each.role, each.name, each.settings, each.saved, interface)
            case Make(profile, old_uuid, activate):
                if old_uuid:
                    del there[old_uuid]
                if activate:
                    use(profile.interface)
                uuid = f"n{next(fresh)}"
                device = profile.interface if activate else ""
                there[uuid] = Found(uuid, profile.role, profile.role, profile.settings, True, device)
    return Current(tuple(there.values()), current.devices, firewall)


def ours(current: Current) -> dict[str, Settings]:
    found = [each for each in current.profiles if each.role]
    assert len({each.role for each in found}) == len(found)
    return {each.role: each.settings for each in found}


def foreign(current: Current) -> list[tuple[str, Settings, bool]]:
    """Without where they are active: ours take their devices."""
    return [(each.uuid, each.settings, each.saved) for each in current.profiles if not each.role]


@given(desires(), currents())
def test_what_was_wanted_is_so_and_the_rest_is_as_it_was(desired: Desired, current: Current) -> None:
    after = carried_out(plan(desired, current), current)
    assert ours(after) == {each.role: each.settings for each in desired.profiles}
    assert after.firewall == desired.firewall
    assert foreign(after) == foreign(current)
    assert all(each.saved for each in after.profiles if each.role)


@given(desires(), currents())
def test_a_second_plan_only_finds_what_shares_a_device(desired: Desired, current: Current) -> None:
    """Each with a device of its own, there is nothing left to do."""
    interfaces = [each.interface for each in desired.profiles]
    after = carried_out(plan(desired, current), current)
    left = plan(desired, after)
    if len(set(interfaces)) == len(interfaces):
        assert left == ()
    assert all(isinstance(step, Activate) for step in left)


@given(desires(), currents())
def test_parents_come_first_and_the_firewall_before_all(desired: Desired, current: Current) -> None:
    steps = plan(desired, current)
    made = [step.profile.role for step in steps if isinstance(step, Make)]
    for child, parents in PARENTS.items():
        if child not in made:
            continue
        before = made[: made.index(child)]
        assert all(parent in before for parent in parents if parent in made)
    assert not any(isinstance(step, Filter) for step in steps[1:])


@given(desires(), currents())
def test_who_reads_the_plan_sees_each_step(desired: Desired, current: Current) -> None:
    steps = plan(desired, current)
    lines = [line for line in described(steps, current) if not line.startswith(" ")]
    assert len(lines) == len(steps)


def test_what_stands_on_something_new_is_made_anew() -> None:
    parent = Profile("primary", "eth0", settings_of("802-3-ethernet", "eth0", "10.0.0.1/24"))
    vlan = Profile("primary.vlan10", "eth0.10", settings_of("vlan", "eth0.10", "10.0.1.1/24"), ("primary",))
    current = Current(
        (
            Found("a", "primary", "", settings_of("802-3-ethernet", "eth0", "10.9.0.1/24"), True, "eth0"),
            Found("b", "primary.vlan10", "", vlan.settings, True, "eth0.10", True),
        ),
        (Device("eth0", "ethernet"), Device("eth0.10", "vlan")),
    )
    assert plan(Desired((vlan, parent)), current) == (Make(parent, "a"), Make(vlan, "b"))


def test_a_device_that_is_not_there_yet() -> None:
    profile = Profile("primary", "eth0", settings_of("802-3-ethernet", "eth0", "10.0.0.1/24"))
    current = Current()
    assert plan(Desired((profile,)), current) == (Make(profile, "", activate=False),)
    assert described(plan(Desired((profile,)), current), current) == [
        "add primary on eth0 (when the hardware is there)",
        "    + connection.type: 802-3-ethernet",
        "    + connection.interface-name: eth0",
        "    + ipv4.method: manual",
        "    + ipv4.address-data: 10.0.0.1/24",
    ]


def test_differences() -> None:
    before: Settings = {"ipv4": {"method": "manual", "address-data": ["10.0.0.1/24"]}, "vlan": {"id": 1}}
    after: Settings = {"ipv4": {"method": "manual", "address-data": ["10.0.0.1/24", "10.0.0.2/24"]}}
    assert differences(before, after) == [
        "- ipv4.address-data: 10.0.0.1/24",
        "+ ipv4.address-data: 10.0.0.1/24, 10.0.0.2/24",
        "- vlan.id: 1",
    ]


def test_who_need_one_another() -> None:
    one = Profile("a", "eth0", {"connection": {}}, ("b",))
    other = Profile("b", "eth1", {"connection": {}}, ("a",))
    with pytest.raises(ValueError, match="need one another"):
        list(in_order([one, other]))
    with pytest.raises(ValueError, match="one role"):
        plan(Desired((Profile("a", "eth0", {}), Profile("a", "eth1", {}))), Current())
