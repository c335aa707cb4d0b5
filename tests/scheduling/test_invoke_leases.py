"""Which worker runs the invocations of a request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.scheduling.errors import DuplicateRequest, NoWorker, QueueFull, SchedulingError, UnknownModel
from appliance.scheduling.invoke_leases import InvokeLeases


def table(*, limit: int = 100) -> InvokeLeases:
    found = InvokeLeases(limit=limit)
    found.expect({"small": "embedding", "smaller": "embedding", "mood": "emotion"})
    return found


def worker(found: InvokeLeases, name: str, *models: str, capacity: int = 4, tpu: bool = True) -> None:
    found.worker(name, models=models or ("small", "mood"), capacity=capacity, tpu=tpu)


def test_tpus_before_the_cpu() -> None:
    found = table()
    worker(found, "cpu-1", tpu=False)
    assert found.request("g", "1", kind="embedding", invocations=8) == ("cpu-1", "small")
    worker(found, "tpu-1")
    assert [
        found.request("g", f"t{number}", kind="embedding", invocations=100)[0] for number in range(3)
    ] == ["tpu-1"] * 3


def test_the_least_loaded_for_what_it_can_do() -> None:
    found = table()
    worker(found, "small", capacity=1)
    worker(found, "large", capacity=3)
    chosen = [found.request("g", str(number), kind="embedding", invocations=10)[0] for number in range(8)]
    assert chosen.count("large") == 6
    assert chosen.count("small") == 2


def test_equals_in_turns() -> None:
    found = table()
    for name in ("a", "b", "c"):
        worker(found, name)
    chosen = []
    for number in range(6):
        chosen.append(found.request("g", str(number), kind="emotion", invocations=1)[0])
        found.settle("g", str(number))
    assert chosen[:3] == chosen[3:]
    assert set(chosen) == {"a", "b", "c"}


def test_one_that_was_lost_is_avoided_while_there_is_another() -> None:
    found = table()
    worker(found, "tpu-1")
    assert found.request("g", "1", kind="embedding", invocations=1, avoid="tpu-1")[0] == "tpu-1"
    worker(found, "cpu-1", tpu=False)
    assert found.request("g", "2", kind="embedding", invocations=1, avoid="tpu-1")[0] == "cpu-1"


def test_what_is_refused() -> None:
    found = table(limit=1)
    with pytest.raises(NoWorker):
        found.request("g", "1", kind="embedding", invocations=1)
    worker(found, "tpu-1", capacity=0)
    with pytest.raises(NoWorker):
        found.request("g", "1", kind="embedding", invocations=1)
    worker(found, "tpu-1")
    for kind, model in (("embedding", "mood"), ("embedding", "none"), ("relevance", "")):
        with pytest.raises(UnknownModel):
            found.request("g", "1", kind=kind, model=model, invocations=1)
    found.request("g", "1", kind="embedding", model="small", invocations=1)
    with pytest.raises(DuplicateRequest):
        found.request("g", "1", kind="embedding", invocations=1)
    with pytest.raises(QueueFull):
        found.request("g", "2", kind="embedding", invocations=1)
    assert not found.settle("other", "1")
    assert found.settle("g", "1")
    assert not found.settle("g", "1")


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("request"),
            st.sampled_from("gh"),
            st.integers(0, 8),
            st.integers(1, 20),
            st.sampled_from("abc"),
        ),
        st.tuples(st.just("settle"), st.sampled_from("gh"), st.integers(0, 8)),
        st.tuples(st.just("owner_gone"), st.sampled_from("gh")),
        st.tuples(st.just("worker"), st.sampled_from("abc"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("worker_gone"), st.sampled_from("abc")),
    ),
    max_size=60,
)


@given(OPERATIONS)
def test_any_sequence(operations: list[tuple[object, ...]]) -> None:
    found = table(limit=5)
    leases: dict[tuple[str, str], str] = {}
    workers: dict[str, int] = {}
    for operation in operations:
        match operation:
            case ("request", str(owner), int(number), int(count), str(avoid)):
                try:
                    name, _ = found.request(
                        owner, str(number), kind="emotion", invocations=count, avoid=avoid
                    )
                except SchedulingError:
                    usable = [name for name, capacity in workers.items() if capacity]
                    assert not usable or len(leases) >= 5 or (owner, str(number)) in leases
                    continue
                assert workers[name] > 0
                leases[owner, str(number)] = name
            case ("settle", str(owner), int(number)):
                assert found.settle(owner, str(number)) == ((owner, str(number)) in leases)
                leases.pop((owner, str(number)), None)
            case ("owner_gone", str(owner)):
                found.owner_gone(owner)
                leases = {key: name for key, name in leases.items() if key[0] != owner}
            case ("worker", str(name), int(capacity), bool(tpu)):
                found.worker(name, models=["mood"], capacity=capacity, tpu=tpu)
                workers[name] = capacity
            case ("worker_gone", str(name)):
                found.worker_gone(name)
                workers.pop(name, None)
                leases = {key: each for key, each in leases.items() if each != name}
        assert found.leases == len(leases)
        for name in "abc":
            assert found.leases_of(name) == sum(each == name for each in leases.values())
    for owner in "gh":
        found.owner_gone(owner)
    assert all(each.invocations == 0 for each in found._workers.values())
