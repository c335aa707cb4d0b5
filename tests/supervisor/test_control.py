"""The control socket: real peers, a real lease table."""

from __future__ import annotations

import asyncio
import shutil
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from appliance.devices.errors import NoSuchTpu
from appliance.inference.errors import ModelUnknown
from appliance.scheduling.invoke_leases import InvokeLeases
from appliance.scheduling.leases import LeaseTable
from appliance.supervisor.control import (
    BAD_MESSAGES_LIMIT,
    EVENTS_KEPT,
    PLACES_LIMIT,
    PLACES_PERIOD_S,
    ControlSocket,
)
from appliance.supervisor.errors import NoSuchWorker, NotFixable, SubsystemDead
from appliance.telemetry.interfaces import Interfaces
from appliance.wire.errors import Disconnected
from appliance.wire.frames import Connection, connect, encode
from appliance.wire.messages import (
    Done,
    EventsLost,
    Failure,
    FromSupervisor,
    Hello,
    LeaseGranted,
    LeaseQueued,
    LeaseRequest,
    LeaseSettled,
    Message,
    ModelLoad,
    ModelLoaded,
    ModelLoading,
    Reload,
    RepairFix,
    Status,
    StatusRequest,
    Subscribe,
    SystemChanged,
    Topic,
    TpuQuarantine,
    TpuReset,
    Traffic,
    TrafficRequest,
    WorkerRestart,
)
from tests.supervisor.some_logins import some_logins
from tests.supervisor.some_network import some_desk
from tests.waiting import look_until

STATUS = Status(
    version="0",
    mode="lan",
    pid=1,
    uptime_s=1.0,
    rss_bytes=1,
    ready=True,
    summary="fine",
    leases=0,
    waiting=0,
    requests=0,
    prompt_tokens=0,
    completion_tokens=0,
    repairs=[],
    workers=[],
    models=[],
)


class SomeOrders:
    """Carries out what it is told, or says that it cannot."""

    async def reload(self) -> str:
        await asyncio.sleep(0)
        return "nothing changed"

    async def restart_worker(self, name: str) -> str:
        if name != "w":
            raise NoSuchWorker(f"no worker is called {name!r}")
        return "ready again"

    async def fix(self, repair_id: str) -> str:
        raise NotFixable("x" * 10_000)

    async def reset_tpu(self, tpu_id: str) -> str:
        return f"{tpu_id} was reset"

    async def quarantine_tpu(self, tpu_id: str) -> str:
        raise NoSuchTpu(f"no TPU is called {tpu_id!r}")

    async def load_model(self, request: ModelLoad, tell: Callable[[Message], None]) -> ModelLoaded:
        if request.model != "mine":
            raise ModelUnknown(f"no model is called {request.model!r}")
        tell(
            ModelLoading(request_id=request.request_id, model="mine", worker="w", size_bytes=1, deadline_s=60)
        )
        return ModelLoaded(
            request_id=request.request_id, model="mine", worker="w", context_tokens=512, draining=0
        )


ORDERS = SomeOrders()


@dataclass
class Served:
    """A control socket, and who connects to it."""

    path: Path
    control: ControlSocket
    table: LeaseTable
    reasons: list[str]

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[Connection[Message]]:
        connection = await connect(str(self.path), FromSupervisor, name="gateway")
        try:
            yield connection
        finally:
            await connection.close()

    def worker(self, slots: int) -> None:
        self.control.granted(self.table.worker_ready("w", model="m", slots=slots, adapters=["chef"]))


@asynccontextmanager
async def serving(*, queue_limit: int = 2, queue_timeout_s: float = 60) -> AsyncIterator[Served]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    table = LeaseTable(queue_limit=queue_limit)
    table.worker_expected("w", model="m", adapters=["chef"])
    reasons: list[str] = []
    control = ControlSocket(
        folder / "control.sock",
        table,
        InvokeLeases(limit=queue_limit),
        status=lambda: STATUS,
        traffic=Interfaces().traffic,
        socket_of=lambda worker: (f"/run/{worker}.sock", "m"),
        orders=ORDERS,
        logins=some_logins(folder),
        network=some_desk(),
        why_none_is_ready=lambda: "; ".join(reasons),
        queue_timeout_s=queue_timeout_s,
    )
    await control.start()
    yield Served(folder / "control.sock", control, table, reasons)
    await control.close()
    shutil.rmtree(folder)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as found:
        yield found


@pytest.fixture
async def impatient() -> AsyncIterator[Served]:
    async with serving(queue_timeout_s=0.15) as found:
        yield found


def want(request_id: str, session_id: str = "s", *, model: str = "", adapter: str = "") -> LeaseRequest:
    return LeaseRequest(request_id=request_id, session_id=session_id, model=model, adapter=adapter)


async def answer(peer: Connection[Message]) -> Message:
    """The next message that is no place in the queue."""
    async with asyncio.timeout(20):
        while isinstance(message := await peer.receive(), LeaseQueued):
            pass
        return message


async def place(peer: Connection[Message]) -> tuple[str, int]:
    """The next message, a place in the queue."""
    async with asyncio.timeout(20):
        message = await peer.receive()
    assert isinstance(message, LeaseQueued)
    return message.request_id, message.position


async def test_status(served: Served) -> None:
    async with served.peer() as peer:
        await peer.send(StatusRequest())
        assert await answer(peer) == STATUS
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o660


async def test_traffic(served: Served) -> None:
    async with served.peer() as peer:
        await peer.send(TrafficRequest(request_id="t"))
        found = await answer(peer)
    assert isinstance(found, Traffic)
    assert (found.request_id, found.total.name, found.interfaces) == ("t", "", [])


async def test_a_lease_and_its_end(served: Served) -> None:
    served.worker(1)
    async with served.peer() as peer:
        await peer.send(want("r1"))
        assert await answer(peer) == LeaseGranted(
            request_id="r1", lease_id="lease-1", worker="w", socket="/run/w.sock", model="m"
        )
        await peer.send(want("r2", "s2"))
        await peer.send(LeaseSettled(request_id="r1", prompt_tokens=5, completion_tokens=7))
        granted = await answer(peer)
        assert isinstance(granted, LeaseGranted)
        assert granted.request_id == "r2"
        control = served.control
        assert (control.requests, control.prompt_tokens, control.completion_tokens) == (1, 5, 7)


async def test_a_place_when_a_worker_comes(served: Served) -> None:
    async with served.peer() as peer:
        await peer.send(want("r1"))
        await look_until("one waits", lambda: served.table.waiting == 1)
        served.worker(1)
        assert isinstance(await answer(peer), LeaseGranted)


async def test_waiting_has_an_end(impatient: Served) -> None:
    async with impatient.peer() as peer:
        await peer.send(want("r1"))
        assert await answer(peer) == Failure(
            code="unavailable",
            message="no worker was free within 0 s; try again in a moment",
            request_id="r1",
        )
        assert impatient.table.waiting == 0
        await peer.send(StatusRequest())
        assert await answer(peer) == STATUS


async def test_waiting_while_no_model_can_be_loaded(impatient: Served) -> None:
    impatient.reasons.append("the model mine: its file mine.gguf has 5 bytes")
    async with impatient.peer() as peer:
        await peer.send(want("r1"))
        assert await answer(peer) == Failure(
            code="unavailable",
            message="no model is loaded: the model mine: its file mine.gguf has 5 bytes",
            request_id="r1",
        )


async def test_loading_a_model(served: Served) -> None:
    async with served.peer() as peer:
        await peer.send(ModelLoad(request_id="r1", model="mine"))
        assert isinstance(await answer(peer), ModelLoading)
        loaded = await answer(peer)
        assert isinstance(loaded, ModelLoaded)
        assert (loaded.request_id, loaded.context_tokens) == ("r1", 512)
        await peer.send(ModelLoad(request_id="r2", model="other"))
        assert await answer(peer) == Failure(
            code="model_unknown", message="no model is called 'other'", request_id="r2"
        )
        await peer.send(StatusRequest())
        assert await answer(peer) == STATUS


async def test_orders_for_tpus(served: Served) -> None:
    async with served.peer() as peer:
        await peer.send(TpuReset(request_id="r1", id="usb-1-1"))
        assert await answer(peer) == Done(request_id="r1", detail="usb-1-1 was reset")
        await peer.send(TpuQuarantine(request_id="r2", id="usb-9-9"))
        assert await answer(peer) == Failure(
            code="unknown_tpu", message="no TPU is called 'usb-9-9'", request_id="r2"
        )


async def test_a_lease_outlives_the_time_allowed_for_waiting(impatient: Served) -> None:
    impatient.worker(1)
    async with impatient.peer() as peer:
        await peer.send(want("r1"))
        assert isinstance(await answer(peer), LeaseGranted)
        await peer.send(want("r2"))  # the same session: waits, and is turned away
        failure = await answer(peer)
        assert isinstance(failure, Failure)
        assert failure.request_id == "r2"
        assert impatient.table.leases == 1


async def test_a_full_queue_and_a_second_use_of_an_id(served: Served) -> None:
    async with served.peer() as peer:
        for number in (1, 2, 3):
            await peer.send(want(f"r{number}", f"s{number}"))
        full = await answer(peer)
        await peer.send(want("r1"))
        twice = await answer(peer)
        assert [(each.code, each.request_id) for each in (full, twice) if isinstance(each, Failure)] == [
            ("queue_full", "r3"),
            ("duplicate_request", "r1"),
        ]


async def test_what_a_peer_held_is_free_when_it_goes(served: Served) -> None:
    served.worker(1)
    async with served.peer() as stays:
        async with served.peer() as goes:
            await goes.send(want("r1"))
            assert isinstance(await answer(goes), LeaseGranted)
            await stays.send(want("r1"))
            await look_until("one waits", lambda: served.table.waiting == 1)
        assert isinstance(await answer(stays), LeaseGranted)


async def test_draining(served: Served) -> None:
    served.worker(1)
    async with served.peer() as peer:
        await peer.send(want("r1"))
        assert isinstance(await answer(peer), LeaseGranted)
        await peer.send(want("r2", "s2"))
        await look_until("one waits", lambda: served.table.waiting == 1)
        served.control.drain()
        waiting = await answer(peer)
        await peer.send(want("r3", "s3"))
        late = await answer(peer)
        assert [(each.code, each.request_id) for each in (waiting, late) if isinstance(each, Failure)] == [
            ("stopping", "r2"),
            ("stopping", "r3"),
        ]
        idle = asyncio.create_task(served.control.idle())
        await peer.send(LeaseSettled(request_id="r1"))
        async with asyncio.timeout(5):
            await idle


async def test_places_in_the_queue() -> None:
    async with serving(queue_limit=8) as served, served.peer() as peer:
        served.worker(1)
        await peer.send(want("r0"))
        assert isinstance(await answer(peer), LeaseGranted)
        for number in (1, 2, 3):
            await peer.send(want(f"r{number}", f"s{number}"))
            assert await place(peer) == (f"r{number}", number)
        await peer.send(LeaseSettled(request_id="r0"))
        granted = await peer.receive()
        assert isinstance(granted, LeaseGranted)
        assert granted.request_id == "r1"
        assert [await place(peer), await place(peer)] == [("r2", 1), ("r3", 2)]
        await peer.send(LeaseSettled(request_id="r2"))  # withdrawn
        assert await place(peer) == ("r3", 1)
        await peer.send(want("chef", "s4", adapter="chef"))
        assert await place(peer) == ("chef", 1)
        assert not served.control._places_timer, "all has been said"


async def test_a_short_wait_is_not_told(served: Served) -> None:
    served.worker(1)
    async with served.peer() as peer:
        await peer.send(want("r1"))
        assert isinstance(await peer.receive(), LeaseGranted)
        await peer.send(want("r2"))
        await peer.send(LeaseSettled(request_id="r1"))
        assert isinstance(await peer.receive(), LeaseGranted), "not its place in the queue"


async def test_places_of_many_are_told_sparingly() -> None:
    """Each of 1,000 moves up with each of 300 grants; nobody needs to hear of all of it, and what one hears never gets worse."""
    count, ends = 1000, 300
    async with serving(queue_limit=count, queue_timeout_s=600) as served, served.peer() as peer:
        served.worker(1)
        for number in range(count + 1):
            peer.post(want(f"r{number}", f"s{number}"))
        places: dict[str, int] = {}
        messages = 0
        began = asyncio.get_running_loop().time()
        for ended in range(ends):
            while not isinstance(message := await peer.receive(), LeaseGranted):
                assert isinstance(message, LeaseQueued)
                assert message.position < places.get(message.request_id, count + 1)
                places[message.request_id] = message.position
                messages += 1
            assert message.request_id == f"r{ended}"
            peer.post(LeaseSettled(request_id=message.request_id))
        rounds = (asyncio.get_running_loop().time() - began) / PLACES_PERIOD_S + 1
        assert messages <= count + rounds * PLACES_LIMIT
        async with asyncio.timeout(60):
            while places.get("r310", count) > 10 or places.get("r999", count) > 777:  # 10 and 699 now
                message = await peer.receive()
                if isinstance(message, LeaseQueued):
                    places[message.request_id] = message.position


async def test_what_nobody_serves_is_refused_at_once(served: Served) -> None:
    async with served.peer() as peer:
        await peer.send(want("r1", model="other"))
        await peer.send(want("r2", adapter="x" * 128))
        assert await answer(peer) == Failure(
            code="unknown_model",
            message="no worker serves the model 'other'; there are: m",
            request_id="r1",
        )
        failure = await answer(peer)
        assert isinstance(failure, Failure)
        assert (failure.code, failure.request_id) == ("unknown_adapter", "r2")
        assert failure.message.endswith("there are: chef")


async def test_an_adapter_travels_with_the_lease(served: Served) -> None:
    served.worker(1)
    async with served.peer() as peer:
        await peer.send(want("r1", model="m", adapter="chef"))
        granted = await answer(peer)
        assert isinstance(granted, LeaseGranted)
        assert (granted.model, granted.adapter) == ("m", "chef")


def raw(path: Path, data: bytes) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(str(path))
    client.sendall(data)
    return client


def body(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


HELLO = encode(Hello(name="raw"))
#: Whatever comes after these is lost: the connection ends.
NO_FRAMES = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "too long": b"\xff\xff\xff\xff",
    "too long later": HELLO + b"\xff\xff\xff\xff",
    "no hello": encode(StatusRequest()),
    "empty": b"\x00\x00\x00\x00",
}
#: Whole frames: refused, and the next one is read.
NO_MESSAGES = {
    "garbage": body(b"\xc1\xc1\xc1"),
    "empty": body(b""),
    "deep": body(b"\x81\xa1x" + b"\x91" * 100_000),
    "unknown": body(msgspec.msgpack.encode({"type": "Nothing"})),
    "long type": body(msgspec.msgpack.encode({"type": "A" * 5_000})),
    "not ours": encode(Failure(code="a", message="b")),
    "hello again": HELLO,
    "wrong type": body(msgspec.msgpack.encode({"type": "LeaseRequest", "request_id": 5})),
    "empty id": body(msgspec.msgpack.encode({"type": "LeaseRequest", "request_id": ""})),
}


async def messages_of(client: socket.socket) -> list[Message]:
    """All that is said until the end of the connection."""
    reader, writer = await asyncio.open_unix_connection(sock=client)
    connection: Connection[Message] = Connection(reader, writer, FromSupervisor)
    found: list[Message] = []
    try:
        while True:
            found.append(await answer(connection))
    except Disconnected:
        return found
    finally:
        await connection.close()


@pytest.mark.parametrize("data", NO_FRAMES.values(), ids=NO_FRAMES)
async def test_what_is_no_frame_is_answered_and_others_are_served(served: Served, data: bytes) -> None:
    async with served.peer() as peer:
        found = await messages_of(raw(served.path, data))
        assert [type(each) for each in found] == [Hello, Failure]
        failure = found[-1]
        assert isinstance(failure, Failure)
        assert failure.code == "protocol"
        await peer.send(StatusRequest())
        assert await answer(peer) == STATUS


@pytest.mark.parametrize("data", NO_MESSAGES.values(), ids=NO_MESSAGES)
async def test_what_is_no_message_is_answered_and_the_next_one_served(served: Served, data: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=raw(served.path, HELLO + data))
    peer: Connection[Message] = Connection(reader, writer, FromSupervisor)
    assert isinstance(await answer(peer), Hello)
    refusal = await answer(peer)
    assert isinstance(refusal, Failure)
    assert refusal.code == "protocol"
    await peer.send(StatusRequest())
    assert await answer(peer) == STATUS
    await peer.close()


async def test_who_sends_nothing_but_nonsense_is_sent_away(served: Served) -> None:
    found = await messages_of(raw(served.path, HELLO + body(b"\xc1") * 1_000))
    assert [type(each) for each in found] == [Hello, *[Failure] * BAD_MESSAGES_LIMIT]


async def test_another_version(served: Served) -> None:
    client = raw(served.path, encode(Hello(version=2, name="newer")))
    found = await messages_of(client)
    assert [type(each) for each in found] == [Hello, Failure]
    assert "version 2" in str(found[-1])


async def test_half_a_frame_holds_nobody_up(served: Served) -> None:
    with raw(served.path, (HELLO + encode(want("r1")))[:-3]):
        async with served.peer() as peer:
            await peer.send(StatusRequest())
            assert await answer(peer) == STATUS
    assert served.table.waiting == 0


async def test_a_peer_that_does_not_read_is_cut_off(served: Served) -> None:
    client = raw(served.path, HELLO)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await look_until("one is connected", lambda: len(served.control._peers) == 1)
    request = encode(StatusRequest()) * 2_000

    async def ask_without_end() -> None:
        while True:
            await loop.sock_sendall(client, request)

    with client, pytest.raises((BrokenPipeError, ConnectionResetError)):
        await asyncio.wait_for(ask_without_end(), 10)
    await look_until("all have gone", lambda: not served.control._peers)


async def test_a_dead_ones_socket_is_replaced(served: Served) -> None:
    path = served.path.with_name("other.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    control = ControlSocket(
        path,
        LeaseTable(queue_limit=1),
        InvokeLeases(limit=1),
        status=lambda: STATUS,
        traffic=Interfaces().traffic,
        socket_of=lambda _: ("", ""),
        orders=ORDERS,
        logins=some_logins(path.parent),
        network=some_desk(),
        why_none_is_ready=lambda: "",
        queue_timeout_s=1,
    )
    await control.start()
    connection = await connect(str(path), FromSupervisor, name="gateway")
    await connection.close()
    await control.close()
    assert not path.exists()


async def test_it_proves_that_it_answers(served: Served) -> None:
    await served.control.prove()
    await look_until("who proved it has gone", lambda: not served.control._peers)
    served.path.rename(served.path.with_name("elsewhere.sock"))
    with pytest.raises(SubsystemDead, match="the control socket does not answer: "):
        await served.control.prove()


async def test_orders_are_carried_out_or_refused(served: Served) -> None:
    async with served.peer() as peer:
        await peer.send(Reload(request_id="a"))
        assert await answer(peer) == Done(request_id="a", detail="nothing changed")
        await peer.send(WorkerRestart(request_id="b", name="w"))
        assert await answer(peer) == Done(request_id="b", detail="ready again")
        await peer.send(WorkerRestart(request_id="c", name="nobody"))
        assert await answer(peer) == Failure(
            code="unknown_worker", message="no worker is called 'nobody'", request_id="c"
        )
        await peer.send(RepairFix(request_id="d", id="x"))
        refusal = await answer(peer)
        assert isinstance(refusal, Failure)
        assert (refusal.code, len(refusal.message)) == ("not_fixable", 4096)


async def test_an_order_outlives_who_gave_it(served: Served) -> None:
    async with served.peer() as peer:
        await peer.send(Reload(request_id="a"))
    async with served.peer() as peer:
        await peer.send(StatusRequest())
        assert await answer(peer) == STATUS
    await look_until("no order runs", lambda: not served.control._running)


async def test_events_of_the_topics_asked_for(served: Served) -> None:
    stopping, other = SystemChanged(event="stopping"), SystemChanged(event="other")
    async with served.peer() as everything, served.peer() as some, served.peer():
        await everything.send(Subscribe())
        await some.send(Subscribe(topics=[Topic.SYSTEM]))
        await look_until("both have subscribed", lambda: len(served.control._subscribers) == 2)
        served.control.publish(Topic.WORKER, other)
        served.control.publish(Topic.SYSTEM, stopping)
        assert [await answer(everything), await answer(everything)] == [other, stopping]
        assert await answer(some) == stopping
    await look_until("no one is subscribed", lambda: not served.control._subscribers)


async def test_a_slow_subscriber_gets_the_newest_and_the_number_of_the_lost(served: Served) -> None:
    count = 4_000
    async with served.peer() as slow:
        await slow.send(Subscribe())
        await look_until("it has subscribed", lambda: len(served.control._subscribers) == 1)
        for number in range(count):
            served.control.publish(Topic.SYSTEM, SystemChanged(event=str(number), detail="x" * 500))
        (peer,) = served.control._subscribers
        assert peer.backlog_bytes < 100_000, "what a peer does not read is bounded"
        numbers: list[int] = []
        lost = 0
        while not numbers or numbers[-1] != count - 1:
            match await answer(slow):
                case EventsLost(count=some):
                    lost += some
                case SystemChanged(event=event):
                    numbers.append(int(event))
        assert numbers == sorted(numbers)
        assert len(numbers) + lost == count
        assert lost > 0
        assert numbers[-EVENTS_KEPT:] == list(range(count - EVENTS_KEPT, count))
