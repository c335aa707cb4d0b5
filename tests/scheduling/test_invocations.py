"""Which invocation runs on which device: nothing is lost, nothing runs twice, nobody waits for ever."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appliance.scheduling.invocations import (
    PASSES,
    PATIENCE,
    PIECE_LIMIT,
    Invocations,
    Work,
    pieces,
)
from appliance.wire.messages import Priority

SIZES = {"a": 3 << 20, "b": 4 << 20, "c": 5 << 20}


def table(*devices: str, **more: float) -> Invocations:
    """Devices that have loaded what they load at first."""
    found = Invocations(SIZES)
    for name in devices:
        found.add(name, 0.0, **more)  # type: ignore[arg-type]
        while found.done(name, 0.0):
            pass
    return found


class Machine(RuleBasedStateMachine):
    """Any sequence of what may happen. Work is told apart by its payload."""

    @initialize()
    def begin(self) -> None:
        self.table = Invocations(SIZES)
        self.now = 0.0
        self.count = 0
        self.submitted: set[int] = set()
        self.done: Counter[int] = Counter()
        self.withdrawn: set[int] = set()
        self.running: dict[str, Work] = {}

    def run(self, name: str | None, work: Work | None) -> None:
        """A device begins: it must be one that is idle and may work."""
        if name is None or work is None:
            return
        device = self.table.devices[name]
        assert device.work is work
        assert name not in self.running
        assert device.share > 0
        self.running[name] = work

    @rule(
        model=st.sampled_from(sorted(SIZES)),
        account=st.sampled_from("xyz"),
        priority=st.sampled_from(Priority),
    )
    def submit(self, model: str, account: str, priority: Priority) -> None:
        self.count += 1
        self.submitted.add(self.count)
        work = Work(model, account, priority, self.count)
        self.run(self.table.submit(work, self.now), work)

    @rule(
        name=st.sampled_from("pqrs"),
        share=st.sampled_from([0.0, 0.5, 1.0]),
        prefers=st.sets(st.sampled_from(sorted(SIZES))),
        reserve=st.booleans(),
    )
    def add(self, name: str, share: float, prefers: set[str], reserve: bool) -> None:
        if name not in self.table.devices:
            self.run(name, self.table.add(name, self.now, share=share, prefers=prefers, reserve=reserve))

    @precondition(lambda self: self.table.devices)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.table.devices)))
        work = self.table.remove(name)
        had = self.running.pop(name, None)
        assert work is (had if had is not None and had.payload is not None else None)
        if work is not None:
            assert work.tries > 0
            self.run(self.table.submit(work, self.now), work)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), took=st.floats(0.001, 1))
    def finish(self, data: st.DataObject, took: float) -> None:
        self.now += took
        name = data.draw(st.sampled_from(sorted(self.running)))
        work = self.running.pop(name)
        if work.payload is not None:
            self.done[work.payload] += 1
        self.run(name, self.table.done(name, self.now))

    @precondition(lambda self: self.table.devices)
    @rule(data=st.data(), share=st.sampled_from([0.0, 0.5, 1.0]), later=st.floats(0, 2))
    def change_share(self, data: st.DataObject, share: float, later: float) -> None:
        self.now += later
        name = data.draw(st.sampled_from(sorted(self.table.devices)))
        self.table.set_share(name, share)
        self.run(name, self.table.look(name, self.now))

    @rule(account=st.sampled_from("xyz"))
    def withdraw(self, account: str) -> None:
        gone = self.table.withdraw(lambda work: work.account == account)
        self.withdrawn |= {work.payload for work in gone}

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        assert all(count == 1 for count in self.done.values())
        waiting = [work.payload for line in self.table._lines.values() for work in line]
        running = [work.payload for work in self.running.values() if work.payload is not None]
        everywhere = Counter(chain(waiting, running, self.done, self.withdrawn))
        assert everywhere == Counter(self.submitted)
        assert self.table.waiting == len(waiting)

    @invariant()
    def nobody_idles_while_work_waits(self) -> None:
        idle = [
            device
            for device in self.table.devices.values()
            if not device.work and device.share > 0 and device.rest_until <= self.now
        ]
        for device in idle:  # it has rested since anybody looked, or it would be at work
            work = self.table.look(device.name, self.now)
            assert work is None or device.rest_until > 0
            self.run(device.name, work)

    @invariant()
    def a_device_holds_what_fits(self) -> None:
        for device in self.table.devices.values():
            used = sum(SIZES[model] for model in device.holds)
            assert used <= device.memory_bytes or len(device.holds) == 1


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def order(found: Invocations, name: str = "p") -> list[object]:
    """What a device runs, one after the other, until nothing waits."""
    ran: list[object] = []
    work = found.devices[name].work
    while work is not None:
        ran.append(work.payload)
        work = found.done(name, 0.0)
    return ran


def test_higher_priorities_first_and_bulk_last() -> None:
    found = table("p")
    for payload, priority in enumerate(
        [Priority.LOW, Priority.BULK, Priority.LOW, Priority.NORMAL, Priority.HIGH]
    ):
        found.submit(Work("a", "", priority, payload), 0.0)
    assert order(found) == [0, 4, 3, 2, 1]


@pytest.mark.parametrize("priority", list(PATIENCE))
def test_no_priority_but_bulk_starves(priority: Priority) -> None:
    found = table("p")
    found.submit(Work("a", "", Priority.HIGH, "first"), 0.0)
    found.submit(Work("a", "", priority, "patient"), 0.0)
    for number in range(100):
        found.submit(Work("a", "", Priority.HIGH, number), 0.0)
    assert order(found).index("patient") == PATIENCE[priority] + 1


def test_who_sends_a_thousand_waits_for_who_sends_one() -> None:
    found = table("p")
    for number in range(1000):
        found.submit(Work("a", "greedy", Priority.NORMAL, number), 0.0)
    found.submit(Work("a", "modest", Priority.NORMAL, "one"), 0.0)
    assert order(found).index("one") <= 2


def test_a_model_that_is_held_comes_first_but_none_starves() -> None:
    found = table("p")
    found.submit(Work("c", "", Priority.NORMAL, "swap"), 0.0)  # fills the memory
    assert set(found.devices["p"].holds) == {"c"}
    found.submit(Work("a", "other", Priority.NORMAL, "a"), 0.0)
    for number in range(20):
        found.submit(Work("c", f"account-{number}", Priority.NORMAL, number), 0.0)
    ran = order(found)
    assert ran[:2] == ["swap", 0]
    assert ran.index("a") == PASSES + 1


def test_idle_devices_by_model_role_heat_and_turn() -> None:
    found = Invocations(SIZES)
    found.add("hot", 0.0, share=0.5, prefers=["b"])
    found.add("mine", 0.0, prefers=["b"])
    found.add("other", 0.0, prefers=["a"])
    found.add("reserve", 0.0, reserve=True)
    found.add("resting", 0.0, share=0.0)
    now = 100.0
    for name in ("hot", "mine", "other", "reserve"):
        while found.done(name, now):
            pass
    now = 200.0
    assert all("b" in each.holds for name, each in found.devices.items() if name != "resting")
    chosen = [found.submit(Work("b", "", Priority.NORMAL, number), now) for number in range(5)]
    assert chosen == ["mine", "hot", "other", "reserve", None]


def test_a_hot_device_rests() -> None:
    found = table("p")
    found.set_share("p", 0.5)
    assert found.submit(Work("a", "", Priority.NORMAL, 1), 10.0) == "p"
    found.submit(Work("a", "", Priority.NORMAL, 2), 10.0)
    assert found.done("p", 12.0) is None  # 2 s of work, 2 s of rest
    assert found.look("p", 13.9) is None
    work = found.look("p", 14.0)
    assert work is not None
    assert work.payload == 2


def test_a_device_that_is_to_do_nothing() -> None:
    found = table("p")
    found.set_share("p", 0.0)
    assert found.submit(Work("a", "", Priority.NORMAL, 1), 0.0) is None
    assert found.look("p", 10.0) is None
    found.set_share("p", 1.0)
    assert found.look("p", 10.0) is not None


def test_models_are_loaded_when_nothing_else_is_to_be_done() -> None:
    found = Invocations(SIZES)
    work = found.add("p", 0.0, prefers=["b"])
    loaded = []
    while work is not None:
        assert work.payload is None
        loaded.append(work.model)
        if len(loaded) == 1:
            found.submit(Work("a", "", Priority.LOW, "asked"), 0.0)
            work = found.done("p", 0.0)
            assert work is not None
            assert work.payload == "asked"
        work = found.done("p", 0.0)
    assert loaded == ["b", "a"]  # c does not fit beside them


def test_a_reserve_that_takes_over_loads_what_its_role_needs() -> None:
    found = Invocations(SIZES)
    assert found.add("p", 0.0, reserve=True) is not None
    assert found.done("p", 0.0) is not None
    assert found.done("p", 0.0) is None
    assert set(found.devices["p"].holds) == {"a", "b"}
    found.set_role("p", prefers=["c"], reserve=False)
    work = found.look("p", 0.0)
    assert work is not None
    assert (work.model, work.payload) == ("c", None)
    found.set_role("p", prefers=[], reserve=True)
    assert found.devices["p"].reserve


def test_what_comes_back_goes_first() -> None:
    found = table("p")
    found.submit(Work("a", "x", Priority.NORMAL, 1), 0.0)
    for number in range(2, 5):
        found.submit(Work("a", "y", Priority.NORMAL, number), 0.0)
    work = found.remove("p")
    assert work is not None
    assert found.submit(work, 0.0) is None
    assert found.drain()[0] is work


@given(st.integers(1, 200), st.integers(0, 130))
def test_pieces(invocations: int, devices: int) -> None:
    found = pieces(invocations, devices)
    assert [number for part in found for number in part] == list(range(invocations))
    assert all(0 < len(part) <= PIECE_LIMIT for part in found)
    assert len(found) >= min(invocations, devices) or len(found[0]) > 1
    assert len(found) <= max(devices, -(-invocations // PIECE_LIMIT))
