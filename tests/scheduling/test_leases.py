"""The lease table, against what must hold whatever happens in whatever order."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appliance.scheduling.errors import (
    Draining,
    DuplicateRequest,
    NothingServed,
    QueueFull,
    SchedulingError,
    UnknownAdapter,
    UnknownModel,
)
from appliance.scheduling.leases import SESSIONS_LIMIT, LeaseTable
from appliance.scheduling.lines import Lease, Request
from appliance.scheduling.placement import Placement, affinity, least_loaded, round_robin

QUEUE_LIMIT = 6

#: model, slots, adapters. Those of "plain" are alike, so that each choice among them is known exactly.
WORKERS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "p1": ("plain", 1, ()),
    "p2": ("plain", 2, ()),
    "p3": ("plain", 2, ()),
    "a1": ("many", 2, ("x", "y")),
    "a2": ("many", 1, ("y",)),
}
ADAPTERS = {"plain": {""}, "many": {"", "x", "y"}}
DEFAULT = "plain"

Key = tuple[object, str]


class Machine(RuleBasedStateMachine):
    """A table, and beside it what we were told: every statement of the table is compared with it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable(queue_limit=QUEUE_LIMIT)
        self.open: set[str] = set()
        self.waiting: list[Request] = []
        self.leases: dict[Key, Lease] = {}
        self.last: dict[str, str] = {}
        self.turns: dict[str, int] = {}
        self.ids: set[str] = set()
        self.draining = False

    @initialize(placement=st.sampled_from([affinity, least_loaded, round_robin]))
    def begin(self, placement: Placement) -> None:
        self.table.placement = placement
        self.table.set_default_model(DEFAULT)
        for name, (model, _, adapters) in WORKERS.items():
            assert self.table.worker_expected(name, model=model, adapters=adapters) == []

    # --- what follows from a call ----------------------------------------------------------------------------

    def running(self, worker: str) -> list[Lease]:
        return [lease for lease in self.leases.values() if lease.worker == worker]

    def can_run(self, request: Request) -> list[str]:
        """Workers with a free place for a request; none while another of its session has a lease or came earlier."""
        session = request.session_id
        if any(lease.request.session_id == session for lease in self.leases.values()):
            return []
        waiting = [each for each in self.waiting if each.session_id == session]
        if waiting and waiting[0] != request:
            return []
        found = []
        for name in sorted(self.open):
            model, slots, adapters = WORKERS[name]
            running = self.running(name)
            if (
                (request.model or DEFAULT) == model
                and request.adapter in ("", *adapters)
                and len(running) < slots
                and all(lease.request.adapter == request.adapter for lease in running)
            ):
                found.append(name)
        return found

    def can_run_now(self, request: Request) -> list[str]:
        """Without the workers that are wanted for another adapter."""
        return [name for name in self.can_run(request) if self.table._workers[name].wanted is None]

    def take(self, granted: list[Lease]) -> None:
        """Each grant is the oldest request of its line that could run, on a worker that could take it."""
        for lease in granted:
            request = lease.request
            assert lease.lease_id not in self.ids
            self.ids.add(lease.lease_id)
            assert self.waiting.count(request) == 1
            able = self.can_run(request)
            assert lease.worker in able
            line = (request.model or DEFAULT, request.adapter)
            older = self.waiting[: self.waiting.index(request)]
            for each in older:
                if (each.model or DEFAULT, each.adapter) == line:
                    assert not self.can_run(each), "overtook one that could run"
            if line[0] == "plain":
                assert lease.worker == self.choice(request, able)
            self.waiting.remove(request)
            self.leases[request.owner, request.request_id] = lease
            self.last[request.session_id] = lease.worker
            self.turns[lease.worker] = len(self.ids)

    def choice(self, request: Request, able: list[str]) -> str:
        last = self.last.get(request.session_id, "")
        if self.table.placement is affinity and last in able:
            return last
        if self.table.placement is round_robin:
            return min(able, key=lambda name: (self.turns.get(name, 0), name))
        return min(able, key=lambda name: (len(self.running(name)), self.turns.get(name, 0), name))

    # --- rules --------------------------------------------------------------------------------------------------

    @rule(
        owner=st.sampled_from("AB"),
        request_id=st.sampled_from("12345678"),
        session=st.sampled_from(["s1", "s2", "s3", "s4", "s5", "s6"]),
        model=st.sampled_from(["", "plain", "many", "many", "unknown"]),
        adapter=st.sampled_from(["", "", "x", "y", "z"]),
    )
    def request(self, owner: str, request_id: str, session: str, model: str, adapter: str) -> None:
        request = Request(owner, request_id, session, model, adapter)
        key = (owner, request_id)
        expected: type[SchedulingError] | None = None
        if self.draining:
            expected = Draining
        elif key in self.leases or any((each.owner, each.request_id) == key for each in self.waiting):
            expected = DuplicateRequest
        elif model == "unknown":
            expected = UnknownModel
        elif adapter not in ADAPTERS[model or DEFAULT]:
            expected = UnknownAdapter
        elif len(self.waiting) >= QUEUE_LIMIT and not self.can_run_now(request):
            expected = QueueFull
        if expected is not None:
            with pytest.raises(expected):
                self.table.request(request)
            return
        self.waiting.append(request)
        self.take(self.table.request(request))

    @rule(owner=st.sampled_from("ABC"), request_id=st.sampled_from("12345678"))
    def settle(self, owner: str, request_id: str) -> None:
        self.leases.pop((owner, request_id), None)
        self.waiting = [each for each in self.waiting if (each.owner, each.request_id) != (owner, request_id)]
        self.take(self.table.settle(owner, request_id))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def settle_one_that_runs(self, data: st.DataObject) -> None:
        owner, request_id = data.draw(st.sampled_from(sorted(self.leases, key=str)))
        assert isinstance(owner, str)
        self.settle(owner, request_id)

    @rule(owner=st.sampled_from("ABC"))
    def owner_gone(self, owner: str) -> None:
        self.leases = {key: lease for key, lease in self.leases.items() if key[0] != owner}
        self.waiting = [each for each in self.waiting if each.owner != owner]
        granted = self.table.owner_gone(owner)
        assert all(lease.request.owner != owner for lease in granted)
        self.take(granted)

    @rule(name=st.sampled_from(sorted(WORKERS)))
    def worker_ready(self, name: str) -> None:
        if name in self.open or self.running(name):
            return  # a worker becomes ready once in its life, and `worker_gone` ends that
        model, slots, adapters = WORKERS[name]
        self.open.add(name)
        self.take(self.table.worker_ready(name, model=model, slots=slots, adapters=adapters))

    @rule(name=st.sampled_from(sorted(WORKERS)))
    def worker_gone(self, name: str) -> None:
        self.open.discard(name)
        self.leases = {key: lease for key, lease in self.leases.items() if lease.worker != name}
        self.take(self.table.worker_gone(name))

    @rule(name=st.sampled_from(sorted(WORKERS)))
    def worker_closing(self, name: str) -> None:
        self.open.discard(name)
        self.table.worker_closing(name)

    @precondition(lambda self: len(self.ids) > 12)
    @rule()
    def drain(self) -> None:
        assert self.table.drain() == self.waiting
        self.waiting = []
        self.draining = True

    # --- what always holds ----------------------------------------------------------------------------------------

    def positions(self) -> dict[Request, int]:
        found: dict[Request, int] = {}
        counts: dict[tuple[str, str], int] = {}
        for request in self.waiting:
            line = (request.model or DEFAULT, request.adapter)
            found[request] = counts[line] = counts.get(line, 0) + 1
        return found

    @invariant()
    def counts(self) -> None:
        assert self.table.leases == len(self.leases)
        assert self.table.waiting == len(self.waiting) <= QUEUE_LIMIT
        for name in WORKERS:
            assert self.table.leases_of(name) == len(self.running(name)) <= WORKERS[name][1]

    @invariant()
    def one_lease_a_session(self) -> None:
        sessions = [lease.request.session_id for lease in self.leases.values()]
        assert len(sessions) == len(set(sessions))

    @invariant()
    def one_adapter_a_worker(self) -> None:
        for name in WORKERS:
            adapters = {lease.request.adapter for lease in self.running(name)}
            assert len(adapters) <= 1
            assert not adapters or adapters == {self.table.adapter_of(name)}

    @invariant()
    def nothing_waits_while_a_place_is_free_for_it(self) -> None:
        assert [each for each in self.waiting if self.can_run_now(each)] == []
        for request in self.waiting:
            assert self.table.is_waiting(request.owner, request.request_id)

    @invariant()
    def positions_are_told(self) -> None:
        assert dict(self.table.positions()) == self.positions()

    @invariant()
    def workers_are_wanted_for_a_reason(self) -> None:
        for worker in self.table._workers.values():
            if worker.wanted is not None:
                assert worker.wanted.awaited is worker
                assert worker.wanted.head is not None
                assert worker.wanted.adapter != worker.adapter
                assert worker.leases
                assert worker.open
        for line in self.table._all_lines():
            assert line.awaited is None or line.awaited.wanted is line
            if line.head is not None and not line.serving and line.awaited is None:
                able = [self.table._workers[name] for name in line.kept if name in self.open]
                assert all(worker.wanted is not None for worker in able), "nobody will ever serve it"

    def teardown(self) -> None:
        """When all workers are there and replies end, nobody waits, and all is as in the beginning."""
        if not self.table._workers:
            return  # the machine was never begun
        for name in WORKERS:
            self.worker_gone(name)
            self.worker_ready(name)
        while self.leases:
            self.settle_oldest()
            self.workers_are_wanted_for_a_reason()
        assert self.waiting == []
        assert (self.table.leases, self.table.waiting) == (0, 0)
        assert not self.table._sessions
        assert not self.table._entries
        for line in self.table._all_lines():
            assert not line.arrivals
            assert len(line.pool.view().by_load) == len(line.kept)

    def settle_oldest(self) -> None:
        (owner, request_id), *_ = self.leases
        assert isinstance(owner, str)
        self.settle(owner, request_id)


def test_who_is_not_wanted_any_more_may_be_wanted_by_others() -> None:
    """One worker is to change to `y`, for which another comes first: `x` had to wait for that, and gets it."""
    table = LeaseTable(queue_limit=8)
    table.set_default_model("many")
    for name in ("a1", "a2"):
        table.worker_expected(name, model="many", adapters=WORKERS[name][2])
    for number, adapter in enumerate(("", "y", "x")):
        assert table.request(Request("A", str(number), f"s{number}", "many", adapter)) == []
    assert granted(table.worker_ready("a1", model="many", slots=2, adapters=("x", "y"))) == [("0", "a1")]
    assert granted(table.worker_ready("a2", model="many", slots=1, adapters=("y",))) == [("1", "a2")]
    assert table.request(Request("A", "3", "s3", "many")) == [], "a1 takes no more without an adapter"
    assert granted(table.settle("A", "0")) == [("2", "a1")]


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
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
    leases.request(Request("g", "r1", "another"))
    assert granted(leases.request(Request("g", "r2", "s"))) == [("r2", first.worker)]
    leases.settle("g", "r2")
    leases.worker_gone(first.worker)
    assert granted(leases.request(Request("g", "r3", "s"))) == [("r3", other)]


def test_the_queue_has_an_end() -> None:
    leases = LeaseTable(queue_limit=2)
    leases.worker_expected("w", model="m")
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
    for number in range(SESSIONS_LIMIT + 50):
        leases.request(Request("g", "r", f"s{number}"))
        leases.settle("g", "r")
    assert len(leases._last) == SESSIONS_LIMIT
    assert "s0" not in leases._last


def test_what_is_not_served_is_an_error_that_says_what_is() -> None:
    leases = LeaseTable(queue_limit=8)
    with pytest.raises(NothingServed, match="no model is served"):
        leases.request(Request("g", "r", "s"))
    leases.worker_expected("w1", model="m", adapters=["pirate", "chef"])
    leases.worker_expected("w2", model="n")
    with pytest.raises(UnknownModel, match=r"no worker serves the model 'o'; there are: m, n$"):
        leases.request(Request("g", "r", "s", "o"))
    with pytest.raises(
        UnknownAdapter, match=r"the model 'm' has no adapter 'poet'; there are: chef, pirate$"
    ):
        leases.request(Request("g", "r", "s", "", "poet"))
    with pytest.raises(UnknownAdapter, match=r"the model 'n' has no adapter 'chef'; there are: none$"):
        leases.request(Request("g", "r", "s", "n", "chef"))
    assert (leases.leases, leases.waiting) == (0, 0)
    assert not leases._entries


def test_a_model_that_is_known_is_waited_for() -> None:
    leases = LeaseTable(queue_limit=8)
    leases.worker_expected("w", model="m", adapters=["chef"])
    assert leases.request(Request("g", "r1", "s1", "m", "chef")) == []
    assert granted(leases.worker_ready("w", model="m", slots=1, adapters=["chef"])) == [("r1", "w")]
    assert leases.adapter_of("w") == "chef"
    leases.request(Request("g", "r2", "s2"))
    assert leases.worker_gone("w") == []
    assert leases.waiting == 1
    assert granted(leases.worker_ready("w", model="m", slots=1, adapters=["chef"])) == [("r2", "w")]


def test_adapters_take_turns_on_one_worker() -> None:
    """The second adapter gets the worker when those that run have ended, though the first goes on being asked for."""
    leases = LeaseTable(queue_limit=8)
    leases.worker_ready("w", model="m", slots=2, adapters=["x"])
    for number in (0, 1):
        assert leases.request(Request("g", f"r{number}", f"s{number}"))
    assert leases.request(Request("g", "x2", "s2", "m", "x")) == []
    assert leases.request(Request("g", "r3", "s3")) == []
    assert leases.request(Request("g", "x4", "s4", "m", "x")) == []
    assert leases.settle("g", "r0") == [], "it takes no more of what it runs"
    assert granted(leases.settle("g", "r1")) == [("x2", "w"), ("x4", "w")]
    assert leases.settle("g", "x2") == []
    assert granted(leases.settle("g", "x4")) == [("r3", "w")]


def test_who_gives_up_waiting_does_not_hold_the_worker_up() -> None:
    leases = LeaseTable(queue_limit=8)
    leases.worker_ready("w", model="m", slots=2, adapters=["x"])
    leases.request(Request("g", "r0", "s0"))
    leases.request(Request("g", "x1", "s1", "m", "x"))
    assert leases.request(Request("g", "r2", "s2")) == []
    assert granted(leases.settle("g", "x1")) == [("r2", "w")]


def test_one_of_two_workers_changes_its_adapter() -> None:
    leases = LeaseTable(queue_limit=8)
    for name in ("w1", "w2"):
        leases.worker_ready(name, model="m", slots=4, adapters=["x"])
    for number in range(3):
        leases.request(Request("g", f"r{number}", f"s{number}"))
    fewest = next(name for name in ("w1", "w2") if leases.leases_of(name) == 1)
    assert leases.request(Request("g", "x", "sx", "m", "x")) == []
    for number in range(3, 5):
        (lease,) = leases.request(Request("g", f"r{number}", f"s{number}"))
        assert lease.worker != fewest
    (on_it,) = leases._workers[fewest].leases
    assert granted(leases.settle("g", on_it.request.request_id)) == [("x", fewest)]


@given(
    adapters=st.integers(1, 4),
    slots=st.integers(1, 3),
    workers=st.integers(1, 3),
    clients=st.integers(1, 24),
    random=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_nobody_starves(adapters: int, slots: int, workers: int, clients: int, random: Random) -> None:
    """Clients that ask again at once, each for one adapter: between two replies of one, the others get a bounded number."""
    names = [f"a{number}" for number in range(adapters)]
    leases = LeaseTable(queue_limit=100)
    for number in range(workers):
        leases.worker_ready(f"w{number}", model="m", slots=slots, adapters=names)
    running: list[str] = []
    waited = dict.fromkeys(map(str, range(clients)), 0)

    def take(found: list[Lease]) -> None:
        for lease in found:
            running.append(lease.request.request_id)
            waited[lease.request.request_id] = 0

    def ask(client: str) -> None:
        take(leases.request(Request("g", client, f"s{client}", "m", names[int(client) % adapters])))

    for client in waited:
        ask(client)
    for _ in range(20 * clients):
        client = random.choice(running)
        running.remove(client)
        take(leases.settle("g", client))
        ask(client)
        for each in waited.keys() - set(running):
            waited[each] += 1
            # Each line in turn, a batch a time, and the replies that a batch waits for: generous, and finite.
            assert waited[each] <= 20 * (clients + adapters * workers * slots), "starved"


def test_the_default_model_changes_under_those_who_wait() -> None:
    leases = LeaseTable(queue_limit=8)
    leases.set_default_model("old")
    leases.worker_ready("w1", model="old", slots=1)
    leases.request(Request("g", "r0", "s0"))
    for number, model in ((1, ""), (2, "old"), (3, "")):
        assert leases.request(Request("g", f"r{number}", f"s{number}", model)) == []
    leases.worker_ready("w2", model="new", slots=1)
    assert granted(leases.set_default_model("new")) == [("r1", "w2")]
    assert dict(leases.positions()) == {
        Request("g", "r2", "s2", "old"): 1,
        Request("g", "r3", "s3"): 1,
    }
    leases.worker_retiring("w1")
    with pytest.raises(UnknownModel, match="there are: new"):
        leases.request(Request("g", "r4", "s4", "old"))
    assert leases.settle("g", "r0") == []
    leases.worker_removed("w1")
    assert leases.waiting == 2, "who asked for the old one waits until its time is up"
    assert granted(leases.settle("g", "r1")) == [("r3", "w2")]
    leases.settle("g", "r2")
    assert set(leases._lines) == {"new"}


def test_a_worker_that_retired_may_come_back() -> None:
    leases = table(w=1)
    leases.request(Request("g", "r0", "s0"))
    leases.request(Request("g", "r1", "s1"))
    leases.worker_retiring("w")
    assert leases.leases_of("w") == 1
    assert granted(leases.worker_ready("w", model="m", slots=1)) == [("r1", "w")], "it is another one now"
    assert not leases.is_leased("g", "r0")
    leases.worker_retiring("w")
    leases.settle("g", "r1")
    leases.worker_removed("w")
    with pytest.raises(NothingServed):
        leases.request(Request("g", "r2", "s2"))
    assert not leases._lines


def test_withdrawn_requests_do_not_pile_up() -> None:
    leases = LeaseTable(queue_limit=8)
    leases.worker_expected("w", model="m")
    leases.request(Request("g", "first", "s"))
    for number in range(1000):
        leases.request(Request("g", f"r{number}", f"s{number}"))
        leases.settle("g", f"r{number}")
    (line,) = leases._all_lines()
    assert len(line._heap) < 100
    assert granted(leases.worker_ready("w", model="m", slots=1)) == [("first", "w")]
