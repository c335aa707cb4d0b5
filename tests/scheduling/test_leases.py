"""The lease table, against what must hold whatever happens in whatever order."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.scheduling.errors import Draining, DuplicateRequest, QueueFull, SchedulingError
from appliance.scheduling.leases import Lease, LeaseTable, Request

QUEUE_LIMIT = 4
WORKERS = {"w1": ("small", 1), "w2": ("small", 3), "w3": ("large", 2)}

Key = tuple[object, str]


class Machine(RuleBasedStateMachine):
    """A table, and beside it what we were told: every statement of the table is compared with it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable(queue_limit=QUEUE_LIMIT)
        self.ready: dict[str, tuple[str, int]] = {}
        self.waiting: list[Request] = []
        self.leases: dict[Key, Lease] = {}
        self.last: dict[str, str] = {}
        self.ids: set[str] = set()
        self.draining = False

    # --- what follows from a call ----------------------------------------------------------------------------

    def can_run(self, request: Request, workers: list[str] | None = None) -> list[str]:
        """Workers with a free slot for a request; none when its session is busy."""
        if any(lease.request.session_id == request.session_id for lease in self.leases.values()):
            return []
        return [
            name
            for name, (model, slots) in self.ready.items()
            if request.model in ("", model)
            and sum(lease.worker == name for lease in self.leases.values()) < slots
            and (workers is None or name in workers)
        ]

    def take(self, granted: list[Lease]) -> None:
        """Each grant is the oldest request that could run, on the worker that it had last, or a least loaded one."""
        for lease in granted:
            request = lease.request
            assert lease.lease_id not in self.ids
            self.ids.add(lease.lease_id)
            assert request in self.waiting
            able = self.can_run(request)
            assert lease.worker in able
            older = self.waiting[: self.waiting.index(request)]
            assert not any(self.can_run(each) for each in older), "overtook one that could run"
            last = self.last.get(request.session_id)
            if last in able:
                assert lease.worker == last
            else:
                loads = {
                    name: sum(each.worker == name for each in self.leases.values()) for name in self.ready
                }
                assert loads[lease.worker] == min(loads[name] for name in able)
            self.waiting.remove(request)
            self.leases[request.owner, request.request_id] = lease
            self.last[request.session_id] = lease.worker

    # --- rules --------------------------------------------------------------------------------------------------

    @rule(
        owner=st.sampled_from("AB"),
        request_id=st.sampled_from("123456"),
        session=st.sampled_from(["s1", "s2", "s3", "s4", "s5"]),
        model=st.sampled_from(["", "", "small", "large", "unknown"]),
    )
    def request(self, owner: str, request_id: str, session: str, model: str) -> None:
        request = Request(owner, request_id, session, model)
        key = (owner, request_id)
        expected: type[SchedulingError] | None = None
        if self.draining:
            expected = Draining
        elif key in self.leases or any((each.owner, each.request_id) == key for each in self.waiting):
            expected = DuplicateRequest
        elif len(self.waiting) >= QUEUE_LIMIT and not self.can_run(request):
            expected = QueueFull
        if expected is not None:
            with pytest.raises(expected):
                self.table.request(request)
            return
        self.waiting.append(request)
        self.take(self.table.request(request))

    @rule(owner=st.sampled_from("ABC"), request_id=st.sampled_from("123456"))
    def settle(self, owner: str, request_id: str) -> None:
        self.leases.pop((owner, request_id), None)
        self.waiting = [each for each in self.waiting if (each.owner, each.request_id) != (owner, request_id)]
        self.take(self.table.settle(owner, request_id))

    @rule(owner=st.sampled_from("ABC"))
    def owner_gone(self, owner: str) -> None:
        self.leases = {key: lease for key, lease in self.leases.items() if key[0] != owner}
        self.waiting = [each for each in self.waiting if each.owner != owner]
        granted = self.table.owner_gone(owner)
        assert all(lease.request.owner != owner for lease in granted)
        self.take(granted)

    @rule(name=st.sampled_from(sorted(WORKERS)))
    def worker_ready(self, name: str) -> None:
        if name in self.ready:
            return  # a worker becomes ready once in its life, and `worker_gone` ends that
        model, slots = WORKERS[name]
        self.ready[name] = (model, slots)
        self.take(self.table.worker_ready(name, model=model, slots=slots))

    @rule(name=st.sampled_from(sorted(WORKERS)))
    def worker_gone(self, name: str) -> None:
        self.ready.pop(name, None)
        self.leases = {key: lease for key, lease in self.leases.items() if lease.worker != name}
        self.take(self.table.worker_gone(name))

    @precondition(lambda self: len(self.ids) > 8)
    @rule()
    def drain(self) -> None:
        assert self.table.drain() == self.waiting
        self.waiting = []
        self.draining = True

    # --- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def counts(self) -> None:
        assert self.table.leases == len(self.leases)
        assert self.table.waiting == len(self.waiting) <= QUEUE_LIMIT
        for name in WORKERS:
            running = sum(lease.worker == name for lease in self.leases.values())
            assert self.table.leases_of(name) == running
            assert running <= (self.ready[name][1] if name in self.ready else 0)

    @invariant()
    def one_lease_a_session(self) -> None:
        sessions = [lease.request.session_id for lease in self.leases.values()]
        assert len(sessions) == len(set(sessions))

    @invariant()
    def nothing_waits_while_a_place_is_free_for_it(self) -> None:
        assert [each for each in self.waiting if self.can_run(each)] == []
        for request in self.waiting:
            assert self.table.is_waiting(request.owner, request.request_id)


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLeaseTable = Machine.TestCase


def table(**slots: int) -> LeaseTable:
    found = LeaseTable(queue_limit=8)
    for name, count in slots.items():
        assert found.worker_ready(name, model="m", slots=count) == []
    return found


def granted(leases: list[Lease]) -> list[tuple[str, str]]:
    return [(lease.request.request_id, lease.worker) for lease in leases]


def test_a_place_at_once() -> None:
    assert granted(table(w=1).request(Request("g", "r", "s"))) == [("r", "w")]


def test_first_come_first_served() -> None:
    leases = table(w=1)
    leases.request(Request("g", "r0", "s0"))
    for number in (1, 2, 3):
        assert leases.request(Request("g", f"r{number}", f"s{number}")) == []
    order = [granted(leases.settle("g", f"r{number}")) for number in (0, 1, 2)]
    assert order == [[("r1", "w")], [("r2", "w")], [("r3", "w")]]


def test_a_busy_session_does_not_hold_up_the_others() -> None:
    leases = table(w=2)
    leases.request(Request("g", "r0", "same"))
    assert leases.request(Request("g", "r1", "same")) == []
    assert granted(leases.request(Request("g", "r2", "other"))) == [("r2", "w")]
    assert granted(leases.settle("g", "r0")) == [("r1", "w")]


def test_back_to_the_warm_worker() -> None:
    leases = table(w1=2, w2=2)
    (first,) = leases.request(Request("g", "r0", "s"))
    leases.settle("g", "r0")
    other = "w2" if first.worker == "w1" else "w1"
    leases.request(Request("g", "r1", "another"))  # on the same, least loaded and first named
    assert granted(leases.request(Request("g", "r2", "s"))) == [("r2", first.worker)]
    leases.settle("g", "r2")
    leases.worker_gone(first.worker)
    assert granted(leases.request(Request("g", "r3", "s"))) == [("r3", other)]


def test_the_queue_has_an_end() -> None:
    leases = LeaseTable(queue_limit=2)
    leases.request(Request("g", "r0", "s0"))
    leases.request(Request("g", "r1", "s1"))
    with pytest.raises(QueueFull, match="2 requests are waiting already"):
        leases.request(Request("g", "r2", "s2"))
    assert leases.waiting == 2


def test_same_id_of_two_gateways() -> None:
    leases = table(w=4)
    assert leases.request(Request("g1", "r", "s1"))
    assert leases.request(Request("g2", "r", "s2"))
    with pytest.raises(DuplicateRequest, match="the request id r is in use"):
        leases.request(Request("g1", "r", "s3"))


def test_a_session_is_free_again_when_its_worker_dies() -> None:
    leases = table(w=1)
    leases.request(Request("g", "r0", "s"))
    leases.worker_gone("w")
    assert leases.settle("g", "r0") == []
    assert leases.request(Request("g", "r1", "s")) == []
    assert granted(leases.worker_ready("w", model="m", slots=1)) == [("r1", "w")]


def test_draining() -> None:
    leases = table(w=1)
    leases.request(Request("g", "r0", "s0"))
    leases.request(Request("g", "r1", "s1"))
    assert [request.request_id for request in leases.drain()] == ["r1"]
    with pytest.raises(Draining):
        leases.request(Request("g", "r2", "s2"))
    assert leases.leases == 1
    assert leases.settle("g", "r0") == []
    assert leases.leases == 0


def test_sessions_are_remembered_but_not_without_end() -> None:
    leases = table(w=1)
    for number in range(10_050):
        leases.request(Request("g", "r", f"s{number}"))
        leases.settle("g", "r")
    assert len(leases._last) == 10_000


def test_a_closing_worker_keeps_its_leases_and_gets_no_more() -> None:
    table = LeaseTable(queue_limit=QUEUE_LIMIT)
    table.worker_ready("old", model="m", slots=2)
    table.request(Request("gateway", "r1", "s1"))
    table.worker_closing("old")
    assert table.request(Request("gateway", "r2", "s2")) == []
    (granted,) = table.worker_ready("new", model="m", slots=1)
    assert (granted.request.request_id, granted.worker) == ("r2", "new")
    table.settle("gateway", "r2")
    assert table.request(Request("gateway", "r3", "s1")) == [], "its session is busy on the old one"
    assert table.leases_of("old") == 1
    (granted,) = table.settle("gateway", "r1")
    assert granted.worker == "new", "the old one has a warm cache, but it closes"
    table.worker_closing("unknown")
