"""The WebSocket, with an independent client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from appliance.wire.messages import (
    EventsLost,
    Failure,
    Repair,
    RepairChanged,
    Severity,
    Tpu,
    TpuBus,
    TpuChanged,
    TpuRole,
    TpuState,
    WorkerChanged,
    WorkerState,
    WorkerStatus,
)

if TYPE_CHECKING:
    from tests.gateway.conftest import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")

USAGE = {"prompt_tokens": 2, "completion_tokens": 3, "cached_tokens": 0}


class Talk:
    """A client's end of the connection."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, kind: str, **payload: Any) -> None:
        await self.socket.send(msgspec.json.encode({"type": kind, "payload": payload}).decode())

    async def chat(self, message: str, **more: Any) -> str:
        """Asks, and returns the request's id once it is acknowledged; the acknowledgement must come first."""
        await self.send("chat", persona_id="coral", message=message, **more)
        started = await self.receive()
        assert started["type"] == "system"
        assert started["payload"]["event"] == "request_started"
        assert started["payload"]["data"]["session_id"]
        return str(started["payload"]["data"]["request_id"])

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(5):
            data = await self.socket.recv()
        assert isinstance(data, str)
        found: dict[str, Any] = msgspec.json.decode(data)
        assert set(found) == {"type", "payload"}
        return found

    async def rest(self, request_id: str) -> tuple[list[str], dict[str, Any]]:
        """The tokens of a reply, and its last message."""
        tokens: list[str] = []
        while True:
            message = await self.receive()
            assert message["payload"]["request_id"] == request_id
            if message["type"] != "token":
                return tokens, message
            tokens.append(message["payload"]["content"])

    async def error(self) -> dict[str, Any]:
        message = await self.receive()
        assert message["type"] == "error"
        payload: dict[str, Any] = message["payload"]
        assert set(payload) == {"code", "message", "request_id"}
        return payload


@asynccontextmanager
async def talking(served: Served, **more: Any) -> AsyncIterator[Talk]:
    options = {"additional_headers": {"Authorization": f"Bearer {served.key}"}, **more}
    async with connect(f"{served.url.replace('http', 'ws')}/ws", proxy=None, **options) as socket:
        yield Talk(socket)


async def test_a_reply(served: Served) -> None:
    async with talking(served) as talk:
        key = await talk.chat("hello")
        tokens, end = await talk.rest(key)
    assert "".join(tokens) == "Hello there."
    assert end == {"type": "done", "payload": {"request_id": key, "usage": USAGE, "finish_reason": "stop"}}


async def test_a_conversation(served: Served) -> None:
    async with talking(served) as talk:
        await talk.send("chat", persona_id="pike", message="one")
        session_id = (await talk.receive())["payload"]["data"]["session_id"]
        while (await talk.receive())["type"] != "done":
            pass
        key = await talk.chat("two", session_id=session_id)
        await talk.rest(key)
    assert [turn.content for turn in served.fake.generates[key].turns[1:]] == ["one", "Hello there.", "two"]


async def test_the_place_in_the_queue_is_told(served: Served) -> None:
    over = asyncio.Event()
    served.fake.queue = (2, over)
    try:
        async with talking(served) as talk:
            key = await talk.chat("a moment", stream=False)
            queued = {"event": "queued", "data": {"request_id": key, "position": 2}}
            assert await talk.receive() == {"type": "system", "payload": queued}
            over.set()
            tokens, end = await talk.rest(key)
    finally:
        over.set()
        served.fake.queue = None
    assert (tokens, end["type"]) == (["Hello there."], "done")


async def test_the_reply_as_one_token(served: Served) -> None:
    served.fake.scripts["whole"] = served.script(pieces=["a", "b", "c"])
    async with talking(served) as talk:
        tokens, end = await talk.rest(await talk.chat("whole", stream=False))
    assert (tokens, end["type"]) == (["abc"], "done")


@pytest.mark.parametrize("stream", [True, False])
async def test_progress_of_a_long_prompt(served: Served, *, stream: bool) -> None:
    gate = asyncio.Event()
    message = f"long {stream}"
    served.fake.scripts[message] = served.script(pieces=["end"], gate=gate, progress=[(128, 300)])
    async with talking(served) as talk:
        key = await talk.chat(message, stream=stream)
        progress = await talk.receive()
        gate.set()
        assert await talk.rest(key) == (
            ["end"],
            {
                "type": "done",
                "payload": {
                    "request_id": key,
                    "usage": {**USAGE, "completion_tokens": 1},
                    "finish_reason": "stop",
                },
            },
        )
    data = {"request_id": key, "done": 128, "total": 300}
    assert progress == {"type": "system", "payload": {"event": "progress", "data": data}}


async def test_cancel(served: Served) -> None:
    served.fake.scripts["long story"] = served.script(pieces=["Once", " upon"], gate=asyncio.Event())
    async with talking(served) as talk:
        key = await talk.chat("long story")
        assert (await talk.receive())["payload"]["content"] == "Once"
        await talk.send("cancel", request_id=key)
        tokens, end = await talk.rest(key)
    assert (tokens, end["type"], end["payload"]["finish_reason"]) == ([], "done", "cancelled")
    await served.fake.until("settled", key)


async def test_cancel_with_the_reply_held_back(served: Served) -> None:
    served.fake.scripts["long whole"] = served.script(pieces=["Once", " upon"], gate=asyncio.Event())
    async with talking(served) as talk:
        key = await talk.chat("long whole", stream=False)
        await served.fake.until("generates", key)
        await talk.send("cancel", request_id=key)
        tokens, end = await talk.rest(key)
    assert tokens in (["Once"], [])
    assert end["payload"]["finish_reason"] == "cancelled"


async def test_cancel_of_what_is_not_there(served: Served) -> None:
    async with talking(served) as talk:
        await talk.send("cancel", request_id="req-none")
        error = await talk.error()
        assert (error["code"], error["request_id"]) == ("bad_message", "req-none")


async def test_nobody_cancels_another_connections_reply(served: Served) -> None:
    gate = asyncio.Event()
    served.fake.scripts["mine"] = served.script(gate=gate)
    async with talking(served) as mine, talking(served) as theirs:
        key = await mine.chat("mine")
        await theirs.send("cancel", request_id=key)
        assert (await theirs.error())["request_id"] == key
        gate.set()
        assert (await mine.rest(key))[1]["payload"]["finish_reason"] == "stop"


async def test_ping(served: Served) -> None:
    """The server pings at once; when its round trip is known, a pong tells it."""
    latency_ms = 0.0
    async with talking(served) as talk, asyncio.timeout(5):
        while not latency_ms:
            await talk.send("ping")
            pong = await talk.receive()
            assert pong["type"] == "pong"
            latency_ms = pong["payload"]["latency_ms"]
    assert 0 < latency_ms < 5_000


@pytest.mark.parametrize(
    "data",
    [
        '{"type": "subscribe", "payload": {}}',
        '{"type": "chat", "payload": {"persona_id": "coral"}}',
        '{"type": "chat", "payload": {"persona_id": "coral", "message": "m", "max_tokens": 0}}',
        "{",
        "",
        "null",
        "[" * 60_000,
        b"\xff\x00garbage",
        b"",
    ],
    ids=["type", "missing", "range", "cut", "empty", "null", "deep", "binary", "no bytes"],
)
async def test_what_is_wrong_is_answered_and_nothing_ends(served: Served, data: str | bytes) -> None:
    async with talking(served) as talk:
        await talk.socket.send(data)
        error = await talk.error()
        assert (error["code"], error["request_id"]) == ("bad_message", None)
        assert error["message"].startswith("not a message of this protocol: ")
        tokens, _ = await talk.rest(await talk.chat("hello"))
    assert "".join(tokens) == "Hello there."


async def test_an_unknown_type_is_named(served: Served) -> None:
    async with talking(served) as talk:
        await talk.send("sing")
        assert "sing" in (await talk.error())["message"]


@pytest.mark.parametrize(
    ("question", "code"),
    [
        ({"persona_id": "nemo", "message": "m"}, "unknown_persona"),
        ({"persona_id": "coral", "message": "  "}, "bad_message"),
        ({"persona_id": "coral", "message": "x" * 501}, "bad_message"),
        ({"persona_id": "coral", "message": "m", "session_id": "none"}, "unknown_session"),
    ],
)
async def test_questions_that_are_refused(served: Served, question: dict[str, Any], code: str) -> None:
    async with talking(served) as talk:
        await talk.send("chat", **question)
        assert (await talk.error())["code"] == code


async def test_binary_messages_are_taken_too(served: Served) -> None:
    async with talking(served) as talk:
        await talk.socket.send(b'{"type": "ping"}')
        assert (await talk.receive())["type"] == "pong"


async def test_two_at_once(served: Served) -> None:
    """The second reply comes and ends while the first is still written."""
    gate = asyncio.Event()
    served.fake.scripts["slow"] = served.script(pieces=["slow", " end"], gate=gate)
    async with talking(served) as talk:
        slow = await talk.chat("slow")
        first = await talk.receive()
        assert first["payload"] == {"content": "slow", "request_id": slow}
        quick = await talk.chat("quick")
        assert (await talk.rest(quick))[1]["type"] == "done"
        gate.set()
        assert await talk.rest(slow) == (
            [" end"],
            {
                "type": "done",
                "payload": {
                    "request_id": slow,
                    "usage": {**USAGE, "completion_tokens": 2},
                    "finish_reason": "stop",
                },
            },
        )


async def test_not_too_many_at_once(served: Served) -> None:
    gate = asyncio.Event()
    served.fake.scripts["many"] = served.script(pieces=["a", "b"], gate=gate)
    async with talking(served) as talk:
        for _ in range(17):
            await talk.send("chat", persona_id="coral", message="many")
        answers: list[dict[str, Any]] = []
        while len(answers) < 17:
            answers += [each for each in [await talk.receive()] if each["type"] != "token"]
        errors = [each["payload"]["code"] for each in answers if each["type"] == "error"]
        assert errors == ["too_many"]
        gate.set()


async def test_a_worker_that_dies(served: Served) -> None:
    served.fake.scripts["dies"] = served.script(pieces=["half"], end=None)
    async with talking(served) as talk:
        key = await talk.chat("dies")
        tokens, end = await talk.rest(key)
        assert (tokens, end["type"], end["payload"]["code"]) == (["half"], "error", "worker_lost")
        assert (await talk.rest(await talk.chat("again")))[1]["type"] == "done"


async def test_an_engine_that_fails(served: Served) -> None:
    served.fake.scripts["fails"] = served.script(pieces=[], end=Failure(code="engine_error", message="why"))
    async with talking(served) as talk:
        key = await talk.chat("fails")
        assert await talk.error() == {"code": "engine_error", "message": "why", "request_id": key}


async def test_a_client_that_goes_away_cancels_its_replies(served: Served) -> None:
    served.fake.scripts["gone"] = served.script(gate=asyncio.Event())
    async with talking(served) as talk:
        keys = [await talk.chat("gone", stream=False), await talk.chat("gone", stream=False)]
        for key in keys:
            await served.fake.until("generates", key)
    for key in keys:
        await served.fake.until("cancels", key)
        await served.fake.until("settled", key)
    assert set(keys) <= served.fake.cancels


async def test_a_client_that_breaks_off_cancels_its_replies(served: Served) -> None:
    served.fake.scripts["broken"] = served.script(gate=asyncio.Event())
    async with talking(served) as talk:
        key = await talk.chat("broken")
        await served.fake.until("generates", key)
        talk.socket.transport.abort()
        await served.fake.until("cancels", key)
        await served.fake.until("settled", key)
    assert served.fake.settled[key].request_id == key


# --- the handshake ----------------------------------------------------------------------------------------------------


def protocols(*names: str) -> Sequence[Subprotocol]:
    return [Subprotocol(name) for name in names]


async def test_the_key_in_the_subprotocol(served: Served) -> None:
    offered = protocols("coral-reef", f"bearer.{served.key}")
    async with talking(served, additional_headers={}, subprotocols=offered) as talk:
        assert talk.socket.subprotocol == "coral-reef"
        response = talk.socket.response
        assert response is not None
        assert response.headers.get_all("Sec-WebSocket-Protocol") == ["coral-reef"]
        assert served.key not in str(response.headers)
        await talk.send("ping")
        assert (await talk.receive())["type"] == "pong"


async def test_the_key_in_the_header_needs_no_subprotocol(served: Served) -> None:
    async with talking(served) as talk:
        assert talk.socket.subprotocol is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"additional_headers": {"Authorization": "Bearer wrong"}},
        {"subprotocols": protocols("coral-reef")},
        {"subprotocols": protocols("coral-reef", "bearer.wrong")},
    ],
    ids=["none", "wrong header", "no key", "wrong key"],
)
async def test_no_key_no_connection(served: Served, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with talking(served, **{"additional_headers": {}, **options}):
            raise AssertionError("it was let in")
    assert caught.value.response.status_code in (401, 403)


async def test_nothing_else_is_a_websocket(served: Served) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with connect(f"{served.url.replace('http', 'ws')}/other", proxy=None):
            raise AssertionError("it was let in")
    assert caught.value.response.status_code in (403, 404)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.binary(max_size=60) | st.text(st.characters(codec="utf-8"), max_size=60))
async def test_garbage_never_closes_the_connection(served: Served, data: str | bytes) -> None:
    async with talking(served) as talk:
        await talk.socket.send(data)
        assert (await talk.receive())["type"] in ("error", "pong")
        await talk.send("ping")
        assert (await talk.receive())["type"] == "pong"


# --- what happens to the appliance ------------------------------------------------------------------------------------


REPAIR = Repair(
    id="worker_memory:text-1",
    kind="worker_memory",
    subject="text-1",
    severity=Severity.ERROR,
    since=12.5,
    what="worker text-1 needed more than its 2048 MiB of memory",
    advice="Raise the limit.",
)
TPU = Tpu(
    id="usb-1-1.2",
    bus=TpuBus.USB,
    state=TpuState.READY,
    node="/dev/bus/usb/001/004",
    sysfs="/sys/bus/usb/devices/1-1.2",
    tray="tower",
    slot=1,
    role=TpuRole.LANGUAGE,
)
WORKER = WorkerStatus(
    name="text-1",
    kind="text",
    model="m",
    state=WorkerState.WAITING,
    pid=0,
    leases=0,
    slots=4,
    restarts=1,
    rss_bytes=0,
    since_s=0.5,
)


async def subscribed(served: Served, talk: Talk) -> None:
    """Until the client has subscribed, and the gateway with the supervisor."""
    await talk.send("subscribe", channels=["system"])
    assert (await talk.receive())["payload"] == {"event": "subscribed", "data": {"channels": ["system"]}}
    await served.fake.until_subscribed()


async def test_an_administrator_hears_of_repairs_and_workers(served: Served) -> None:
    async with talking(served) as talk, talking(served) as another:
        for each in (talk, another, talk):  # twice is as good as once
            await subscribed(served, each)
        served.fake.tell(RepairChanged(repair=REPAIR))
        served.fake.tell(WorkerChanged(worker=WORKER))
        served.fake.tell(TpuChanged(tpu=TPU))
        served.fake.tell(EventsLost(count=3))
        served.fake.tell(RepairChanged(repair=REPAIR, gone=True))
        for each in (talk, another):
            heard = [await each.receive() for _ in range(5)]
            assert {message["type"] for message in heard} == {"system"}
            events = sorted((each["payload"] for each in heard), key=lambda payload: str(payload["event"]))
            assert [event["event"] for event in events] == [
                "events_lost",
                "repair",
                "repair",
                "tpu",
                "worker",
            ]
            lost, appeared, over, tpu, worker = (event["data"] for event in events)
            assert lost == {"count": 3}
            assert appeared == {**msgspec.to_builtins(REPAIR), "gone": False}
            assert over == {**appeared, "gone": True}
            assert tpu == msgspec.to_builtins(TPU)
            assert worker == msgspec.to_builtins(WORKER)
        assert (await talk.rest(await talk.chat("hello")))[1]["type"] == "done", "and the chat goes on"


async def test_nobody_else_hears_of_them(served: Served) -> None:
    headers = {"Authorization": f"Bearer {served.user_key}"}
    async with (
        talking(served) as admin,
        talking(served) as left,
        talking(served) as silent,
        talking(served, additional_headers=headers) as user,
    ):
        for each in (admin, left):
            await subscribed(served, each)
        await left.send("unsubscribe", channels=["system"])
        assert (await left.receive())["payload"] == {"event": "subscribed", "data": {"channels": []}}
        await user.send("subscribe", channels=["system"])
        assert (await user.receive())["payload"]["code"] == "forbidden"
        await silent.send("subscribe", channels=["everything"])
        refused = (await silent.receive())["payload"]
        assert refused["code"] == "bad_message"
        assert "everything" in refused["message"]
        served.fake.tell(WorkerChanged(worker=WORKER))
        served.fake.tell(RepairChanged(repair=REPAIR))
        assert [(await admin.receive())["payload"]["event"] for _ in range(2)] == ["worker", "repair"]
        for each in (user, left, silent):
            await each.send("ping")
            assert (await each.receive())["type"] == "pong"
