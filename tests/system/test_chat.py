"""Chat through every door: REST, server-sent events, WebSocket, with two client libraries each."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.endless import ENDLESS_TOKENS
from tests.waiting import wait_for, wait_until

from .booted import Booted, booted, configure, state_folder
from .talk import (
    Event,
    aiohttp_client,
    chat_message,
    events_in,
    events_of,
    question,
    receive,
    receive_reply,
    session_of,
    text_of,
    websocket,
)

pytestmark = pytest.mark.system


def history(appliance: Booted, session_id: str) -> list[dict[str, Any]]:
    """The messages that were kept of a conversation."""
    with appliance.client() as client:
        response = client.get(f"/api/v1/chat/history/{session_id}")
    assert response.status_code == 200, response.text
    messages: list[dict[str, Any]] = response.json()["messages"]
    return messages


# --- the doors --------------------------------------------------------------------------------------------------


def check_reply(appliance: Booted, reply: dict[str, Any]) -> None:
    assert reply["content"].strip()
    assert reply["persona_id"] == "finn"
    assert reply["finish_reason"] == "stop"
    assert reply["usage"]["prompt_tokens"] > 0
    assert reply["usage"]["completion_tokens"] > 0
    said = [(message["role"], message["content"]) for message in history(appliance, reply["session_id"])]
    assert said == [("user", "Who are you?"), ("assistant", reply["content"])]


def check_stream(appliance: Booted, events: list[Event], *, pieces: bool = True) -> None:
    kinds = [event["type"] for event in events]
    assert kinds[0] == "system"
    assert events[0]["payload"]["event"] == "request_started"
    assert set(kinds[1:-2]) == {"token"}
    assert len(kinds) > 4 or not pieces
    assert kinds[-2:] == ["persona_emotion", "done"]
    assert events[-2]["payload"]["persona_id"] == "finn"
    done = events[-1]["payload"]
    assert done["finish_reason"] == "stop"
    assert done["usage"]["completion_tokens"] > 0
    identity = events[0]["payload"]["data"]["request_id"]
    assert all(event["payload"]["request_id"] == identity for event in (*events[1:-2], events[-1]))
    # Stored before `done`: the history has it at once.
    said = [(message["role"], message["content"]) for message in history(appliance, session_of(events))]
    assert said == [("user", "Who are you?"), ("assistant", text_of(events))]


def test_rest_with_httpx(appliance: Booted) -> None:
    check_reply(appliance, appliance.chat("Who are you?"))


async def test_rest_with_aiohttp(appliance: Booted) -> None:
    async with (
        aiohttp_client(appliance) as session,
        session.post("/api/v1/chat", json=question("Who are you?")) as response,
    ):
        assert response.status == 200
        check_reply(appliance, await response.json())


def test_server_sent_events_with_httpx(appliance: Booted) -> None:
    with (
        appliance.client() as client,
        client.stream("POST", "/api/v1/chat/stream", json=question("Who are you?")) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        check_stream(appliance, list(events_in(response.iter_lines())))


async def test_server_sent_events_with_aiohttp(appliance: Booted) -> None:
    async with (
        aiohttp_client(appliance) as session,
        session.post("/api/v1/chat/stream", json=question("Who are you?")) as response,
    ):
        assert response.status == 200
        check_stream(appliance, [event async for event in events_of(response)])


async def test_websocket_with_websockets(appliance: Booted) -> None:
    async with websocket(appliance) as socket:
        await socket.send(chat_message("Who are you?"))
        check_stream(appliance, await receive_reply(socket))
        await socket.send('{"type": "ping", "payload": {}}')
        pong = await receive(socket)
        assert pong["type"] == "pong"
        assert 0 <= pong["payload"]["latency_ms"] < 60_000


async def test_websocket_with_aiohttp(appliance: Booted) -> None:
    async with aiohttp_client(appliance) as session, session.ws_connect("/ws") as socket:
        await socket.send_str(chat_message("Who are you?"))
        events: list[Event] = []
        while not events or events[-1]["type"] not in ("done", "error"):
            events.append(await socket.receive_json())
        check_stream(appliance, events)


async def test_websocket_as_a_browser_opens_it(appliance: Booted) -> None:
    """Browsers cannot send Authorization: the key is a subprotocol, and only `coral-reef` is echoed."""
    offered = ["coral-reef", f"bearer.{appliance.key}"]
    async with (
        aiohttp.ClientSession(appliance.url) as session,
        session.ws_connect("/ws", protocols=offered) as socket,
    ):
        assert socket.protocol == "coral-reef"
        await socket.send_str(json.dumps({"type": "ping", "payload": {}}))
        assert (await socket.receive_json())["type"] == "pong"


async def test_websocket_reply_in_one_piece(appliance: Booted) -> None:
    async with websocket(appliance) as socket:
        await socket.send(chat_message("Who are you?", stream=False))
        events = await receive_reply(socket)
    check_stream(appliance, events, pieces=False)
    assert [event["type"] for event in events] == ["system", "token", "persona_emotion", "done"]


async def test_wrong_websocket_messages_are_answered_and_the_connection_lives(appliance: Booted) -> None:
    wrong: list[str | bytes] = [
        "",
        "{",
        "[]",
        '"chat"',
        "{}",
        '{"type": "dance", "payload": {}}',
        '{"type": "chat"}',
        '{"type": "chat", "payload": {"persona_id": "finn"}}',
        '{"type": "chat", "payload": {"persona_id": "finn", "message": "x", "max_tokens": 0}}',
        '{"type": "chat", "payload": {"persona_id": "nobody", "message": "x"}}',
        '{"type": "chat", "payload": {"persona_id": "finn", "message": "x", "session_id": "no such"}}',
        '{"type": "cancel", "payload": {"request_id": "none"}}',
        "[" * 60_000,
        b"\xff\xfe\x00",
    ]
    async with websocket(appliance) as socket:
        for message in wrong:
            await socket.send(message)
            answer = await receive(socket)
            assert answer["type"] == "error", (message[:80], answer)
            assert answer["payload"]["message"], message[:80]
        await socket.send(chat_message("Who are you?"))
        check_stream(appliance, await receive_reply(socket))


def test_without_a_key_nothing_is_answered(appliance: Booted) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {appliance.key}"}):
        response = httpx.post(
            f"{appliance.url}/api/v1/chat", json=question(), headers=headers, trust_env=False, timeout=30
        )
        assert response.status_code == 401, headers
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["content-type"] == "application/problem+json"


async def test_without_a_key_no_websocket_opens(appliance: Booted) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(appliance.websocket_url, proxy=None):
            raise AssertionError("it opened")
    assert refused.value.response.status_code in (401, 403)


# --- what a request may ask for -----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_reply(endless_appliance: Booted) -> None:
    """Two hundred tokens at a high temperature: without the seed no two replies are alike."""
    asked = {"max_tokens": 200, "temperature": 1.5}
    first = endless_appliance.chat("Tell me of the sea.", seed=7, **asked)["content"]
    assert endless_appliance.chat("Tell me of the sea.", seed=7, **asked)["content"] == first
    assert endless_appliance.chat("Tell me of the sea.", seed=8, **asked)["content"] != first
    assert endless_appliance.chat("Tell me of the sea.", **asked)["content"] != first


async def test_the_same_seed_gives_the_same_reply_over_the_websocket(endless_appliance: Booted) -> None:
    asked = {"max_tokens": 100, "temperature": 1.5, "seed": 7}
    async with websocket(endless_appliance) as socket:
        replies = []
        for _ in range(2):
            await socket.send(chat_message("Tell me of the sea.", **asked))
            replies.append(text_of(await receive_reply(socket)))
    assert replies[0] == replies[1]
    assert len(replies[0]) > 50


def test_a_stop_string_ends_the_reply(endless_appliance: Booted) -> None:
    asked = {"max_tokens": 120, "temperature": 0.8, "seed": 3}
    whole = endless_appliance.chat("Tell me of the sea.", **asked)["content"]
    stop = whole[60:66]
    cut = endless_appliance.chat("Tell me of the sea.", stop=["never said", stop], **asked)
    assert cut["finish_reason"] == "stop"
    assert cut["content"] == whole[: whole.index(stop)]
    assert cut["usage"]["completion_tokens"] < 120


@pytest.mark.parametrize("tokens", [1, 3, 50])
def test_max_tokens_ends_the_reply(endless_appliance: Booted, tokens: int) -> None:
    reply = endless_appliance.chat("Tell me of the sea.", max_tokens=tokens)
    assert reply["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == tokens


# --- conversations ------------------------------------------------------------------------------------------------


def test_a_session_goes_on_and_is_forgotten(appliance: Booted) -> None:
    first = appliance.chat("My name is Robin.")
    session = first["session_id"]
    second = appliance.chat("Who are you?", session_id=session)
    assert second["session_id"] == session
    # The model was shown the first turn, too.
    alone = appliance.chat("Who are you?")["usage"]["prompt_tokens"]
    assert second["usage"]["prompt_tokens"] > alone + first["usage"]["completion_tokens"]
    assert [message["role"] for message in history(appliance, session)] == ["user", "assistant"] * 2
    with appliance.client() as client:
        assert client.delete(f"/api/v1/chat/history/{session}").status_code == 204
        assert client.get(f"/api/v1/chat/history/{session}").status_code == 404
        assert client.delete(f"/api/v1/chat/history/{session}").status_code == 404
        again = client.post("/api/v1/chat", json=question(session_id=session))
        assert (again.status_code, again.json()["code"]) == (404, "unknown_session")


def test_a_session_survives_a_restart(state: Path) -> None:
    with booted(state) as before:
        key = before.key
        first = before.chat("My name is Robin.")
        session = first["session_id"]
        kept = history(before, session)
        assert len(kept) == 2
    with booted(state) as after:
        assert after.key == key
        assert history(after, session) == kept
        second = after.chat("Who are you?", session_id=session)
        alone = after.chat("Who are you?")["usage"]["prompt_tokens"]
        assert second["usage"]["prompt_tokens"] > alone + first["usage"]["completion_tokens"]
        said = history(after, session)
        assert said[:2] == kept
        assert [message["content"] for message in said[2:]] == ["Who are you?", second["content"]]


@pytest.fixture(scope="module")
def two_gateways() -> Iterator[Booted]:
    """An appliance with two gateway processes on one port."""
    with state_folder() as folder:
        configure(folder, "[gateway]\nprocesses = 2\n")
        with booted(folder) as found:
            wait_for("two gateways run", lambda: len(found.pids("gateway")) == 2)
            yield found


def test_a_session_goes_on_in_another_gateway_process(two_gateways: Booted) -> None:
    with ExitStack() as stack:
        clients: dict[int, httpx.Client] = {}

        def each_has_a_client() -> bool:
            waiting = [stack.enter_context(two_gateways.client()) for _ in range(8)]
            clients.update({two_gateways.gateway_of(client.get("/health")): client for client in waiting})
            return len(clients) == 2

        wait_for("both gateway processes took a connection", each_has_a_client, within_s=60)
        assert sorted(clients) == sorted(two_gateways.pids("gateway"))
        session = None
        for turn in range(4):
            pid = sorted(clients)[turn % 2]
            body = question(f"Turn {turn}", **({"session_id": session} if session else {}))
            response = clients[pid].post("/api/v1/chat", json=body)
            assert response.status_code == 200, response.text
            assert two_gateways.gateway_of(response) == pid
            session = response.json()["session_id"]
        assert session
        asked = [
            message["content"] for message in history(two_gateways, session) if message["role"] == "user"
        ]
        assert asked == [f"Turn {turn}" for turn in range(4)]


async def test_two_requests_of_a_session_take_turns(two_gateways: Booted) -> None:
    """Its lease is the session's lock: whichever process answers, no turn is lost and each sees those before it."""
    first = await asyncio.to_thread(two_gateways.chat, "Hello")
    session = first["session_id"]

    async def ask(number: int) -> dict[str, Any]:
        return await asyncio.to_thread(two_gateways.chat, f"Turn {number}", session_id=session)

    replies = await asyncio.gather(*(ask(number) for number in range(6)))
    said = history(two_gateways, session)
    assert len(said) == 2 + 2 * len(replies)
    assert [message["role"] for message in said] == ["user", "assistant"] * 7
    answers = {said[i]["content"]: said[i + 1]["content"] for i in range(2, len(said), 2)}
    assert answers == {f"Turn {number}": reply["content"] for number, reply in enumerate(replies)}


# --- many at once, and those who leave ----------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [16, 48])
async def test_many_streams_at_once_all_end_well(endless_appliance: Booted, streams: int) -> None:
    """As many as there are slots, and three times as many: those wait for a place."""

    async def read(client: httpx.AsyncClient) -> list[Event]:
        body = question("Tell me of the sea.", max_tokens=60)
        async with client.stream("POST", "/api/v1/chat/stream", json=body) as response:
            assert response.status_code == 200
            return list(events_in([line async for line in response.aiter_lines()]))

    async with httpx.AsyncClient(
        base_url=endless_appliance.url,
        headers=endless_appliance.headers,
        timeout=90,
        trust_env=False,
        limits=httpx.Limits(max_connections=streams),
    ) as client:
        replies = await asyncio.gather(*(read(client) for _ in range(streams)))
    assert len({session_of(events) for events in replies}) == streams
    for events in replies:
        done = events[-1]
        assert (done["type"], done["payload"].get("finish_reason")) == ("done", "length"), done
        assert done["payload"]["usage"]["completion_tokens"] == 60
    endless_appliance.wait_until_idle()


async def test_many_replies_over_one_websocket(endless_appliance: Booted) -> None:
    async with websocket(endless_appliance) as socket:
        for _ in range(16):
            await socket.send(chat_message(max_tokens=40))
        ended: dict[str, str] = {}
        texts: dict[str, str] = {}
        while len(ended) < 16:
            event = await receive(socket)
            assert event["type"] in ("system", "token", "persona_emotion", "done"), event
            if event["type"] == "token":
                payload = event["payload"]
                texts[payload["request_id"]] = texts.get(payload["request_id"], "") + payload["content"]
            elif event["type"] == "done":
                ended[event["payload"]["request_id"]] = event["payload"]["finish_reason"]
    assert set(ended.values()) == {"length"}
    assert set(texts) == set(ended)


def kept_as_cancelled(appliance: Booted, session_id: str) -> bool:
    said = history(appliance, session_id)
    return [message["finish_reason"] for message in said if message["role"] == "assistant"] == ["cancelled"]


def test_a_stream_left_by_httpx_ends(endless_appliance: Booted) -> None:
    with (
        endless_appliance.client() as client,
        client.stream("POST", "/api/v1/chat/stream", json=question()) as response,
    ):
        events = []
        for event in events_in(response.iter_lines()):
            events.append(event)
            if len(events) == 5:
                assert endless_appliance.status()["leases"] == 1
                break
    endless_appliance.wait_until_idle()
    session = session_of(events)
    wait_for("what was said is kept", lambda: kept_as_cancelled(endless_appliance, session))
    assert history(endless_appliance, session)[-1]["content"].startswith(text_of(events))


async def test_a_stream_left_by_aiohttp_ends(endless_appliance: Booted) -> None:
    async with aiohttp_client(endless_appliance) as session:
        response = await session.post("/api/v1/chat/stream", json=question())
        events = []
        async for event in events_of(response):
            events.append(event)
            if len(events) == 5:
                break
        response.close()
    await asyncio.to_thread(endless_appliance.wait_until_idle)
    await wait_until(
        "what was said is kept", lambda: kept_as_cancelled(endless_appliance, session_of(events))
    )


async def test_a_plain_request_left_by_httpx_ends(endless_appliance: Booted) -> None:
    async with httpx.AsyncClient(
        base_url=endless_appliance.url, headers=endless_appliance.headers, timeout=90, trust_env=False
    ) as client:
        asking = asyncio.create_task(client.post("/api/v1/chat", json=question()))
        await asyncio.to_thread(endless_appliance.wait_for_leases, 1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert asking.cancelled()
    await asyncio.to_thread(endless_appliance.wait_until_idle)


async def test_a_plain_request_left_by_aiohttp_ends(endless_appliance: Booted) -> None:
    async def ask(session: aiohttp.ClientSession) -> None:
        async with session.post("/api/v1/chat", json=question()) as response:
            await response.read()

    async with aiohttp_client(endless_appliance) as session:
        asking = asyncio.create_task(ask(session))
        await asyncio.to_thread(endless_appliance.wait_for_leases, 1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert asking.cancelled()
    await asyncio.to_thread(endless_appliance.wait_until_idle)


@pytest.mark.parametrize("abruptly", [False, True], ids=["closed", "cut"])
async def test_a_websocket_left_by_websockets_ends_its_replies(
    endless_appliance: Booted, *, abruptly: bool
) -> None:
    async with websocket(endless_appliance) as socket:
        for _ in range(3):
            await socket.send(chat_message())
        seen: set[str] = set()
        while len(seen) < 3:
            event = await receive(socket)
            if event["type"] == "token":
                seen.add(event["payload"]["request_id"])
        if abruptly:
            socket.transport.abort()
    await asyncio.to_thread(endless_appliance.wait_until_idle)


async def test_a_websocket_left_by_aiohttp_ends_its_replies(endless_appliance: Booted) -> None:
    async with aiohttp_client(endless_appliance) as session:
        async with session.ws_connect("/ws") as socket:
            await socket.send_str(chat_message())
            while (await socket.receive_json())["type"] != "token":
                pass
        await asyncio.to_thread(endless_appliance.wait_until_idle)


async def test_sixteen_streams_that_all_leave_free_every_place(
    endless_appliance: Booted, *, long_run: bool
) -> None:
    async def leave_early(client: httpx.AsyncClient) -> int:
        async with client.stream("POST", "/api/v1/chat/stream", json=question()) as response:
            async for line in response.aiter_lines():
                if '"token"' in line:
                    break
        return response.status_code

    async with httpx.AsyncClient(
        base_url=endless_appliance.url, headers=endless_appliance.headers, timeout=90, trust_env=False
    ) as client:
        for _ in range(50 if long_run else 2):
            assert await asyncio.gather(*(leave_early(client) for _ in range(16))) == [200] * 16
            await asyncio.to_thread(endless_appliance.wait_until_idle)
    assert (await asyncio.to_thread(endless_appliance.chat, max_tokens=5))["finish_reason"] == "length"


async def test_one_reply_of_a_websocket_is_cancelled_and_the_other_goes_on(
    endless_appliance: Booted,
) -> None:
    async with websocket(endless_appliance) as socket:
        await socket.send(chat_message("Stop me"))
        started = await receive(socket)
        cancelled = started["payload"]["data"]["request_id"]
        while (await receive(socket))["type"] != "token":
            pass
        await socket.send(chat_message("Let me end", max_tokens=300))
        await socket.send(json.dumps({"type": "cancel", "payload": {"request_id": cancelled}}))
        ended: dict[str, str] = {}
        while len(ended) < 2:
            event = await receive(socket)
            assert event["type"] != "error", event
            if event["type"] == "done":
                ended[event["payload"]["request_id"]] = event["payload"]["finish_reason"]
    assert ended.pop(cancelled) == "cancelled"
    assert list(ended.values()) == ["length"]
    await asyncio.to_thread(endless_appliance.wait_until_idle)
    session = started["payload"]["data"]["session_id"]
    assert kept_as_cancelled(endless_appliance, session)


async def test_a_reply_that_waits_for_its_session_can_be_cancelled(endless_appliance: Booted) -> None:
    """The second request of a session waits for the first, and is told so; cancelling it leaves no place taken."""
    async with websocket(endless_appliance) as socket:
        await socket.send(chat_message("First"))
        started = await receive(socket)
        data = started["payload"]["data"]
        while (await receive(socket))["type"] != "token":
            pass
        await socket.send(chat_message("Second", session_id=data["session_id"]))
        event = await receive(socket)
        while event["type"] != "system":
            event = await receive(socket)
        waiting = event["payload"]["data"]["request_id"]
        while event["payload"].get("event") != "queued":
            event = await receive(socket)
        assert event["payload"]["data"] == {"request_id": waiting, "position": 1}
        for request in (waiting, data["request_id"]):
            await socket.send(json.dumps({"type": "cancel", "payload": {"request_id": request}}))
            while (event := await receive(socket))["type"] != "done" or (
                event["payload"]["request_id"] != request
            ):
                assert event["type"] != "error", event
            assert event["payload"]["finish_reason"] == "cancelled"
    await asyncio.to_thread(endless_appliance.wait_until_idle)
    said = history(endless_appliance, data["session_id"])
    assert [message["content"] for message in said if message["role"] == "user"] == ["First"]


def test_the_endless_reply_is_what_these_tests_take_it_for(endless_appliance: Booted) -> None:
    """Else nothing here would be interrupted."""
    assert ENDLESS_TOKENS > 5000
    reply = endless_appliance.chat(max_tokens=1000)
    assert reply["usage"]["completion_tokens"] == 1000
    assert os.getpid() not in endless_appliance.processes()
