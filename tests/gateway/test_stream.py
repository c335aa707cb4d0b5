"""Server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from appliance.wire.messages import Failure

if TYPE_CHECKING:
    from tests.gateway.conftest import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")

STREAM = "/api/v1/chat/stream"


def ask(message: str) -> dict[str, Any]:
    return {"persona_id": "coral", "message": message}


async def frames(served: Served, message: str) -> list[dict[str, Any]]:
    """The whole stream; its framing is checked byte by byte."""
    response = await served.client.post(STREAM, json=ask(message))
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert response.content.endswith(b"\n\n")
    found = []
    for block in response.content.split(b"\n\n")[:-1]:
        assert block.startswith(b"data: ")
        assert b"\n" not in block
        found.append(msgspec.json.decode(block[6:]))
    assert all(set(each) == {"type", "payload"} for each in found)
    return found


async def test_a_reply(served: Served) -> None:
    first, *tokens, last = await frames(served, "a stream")
    assert first["type"] == "system"
    assert first["payload"]["event"] == "request_started"
    data = first["payload"]["data"]
    assert set(data) == {"request_id", "session_id", "persona_id"}
    key = data["request_id"]
    assert [token["type"] for token in tokens] == ["token"] * len(tokens)
    assert "".join(token["payload"]["content"] for token in tokens) == "Hello there."
    assert {token["payload"]["request_id"] for token in tokens} == {key}
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "cached_tokens": 0}
    assert last == {"type": "done", "payload": {"request_id": key, "usage": usage, "finish_reason": "stop"}}
    history = await served.client.get(f"/api/v1/chat/history/{data['session_id']}")
    assert history.json()["messages"][1]["content"] == "Hello there."


async def test_line_ends_in_the_text_stay_inside_the_json(served: Served) -> None:
    served.fake.scripts["lines"] = served.script(pieces=["a\n\n", "data: b\r\n\u2028"])
    found = await frames(served, "lines")
    text = "".join(each["payload"]["content"] for each in found if each["type"] == "token")
    assert text == "a\n\ndata: b\r\n\u2028"


async def events(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    async for line in lines:
        if line:
            yield msgspec.json.decode(line.removeprefix("data: "))


async def test_tokens_come_as_they_are_written(served: Served) -> None:
    gate = asyncio.Event()
    served.fake.scripts["slowly"] = served.script(gate=gate)
    async with served.client.stream("POST", STREAM, json=ask("slowly")) as response:
        found = events(response.aiter_lines())
        assert (await anext(found))["type"] == "system"
        token = await anext(found)
        assert token["payload"]["content"] == "Hello"
        gate.set()
        rest = [each async for each in found]
    assert rest[-1]["type"] == "done"


async def test_the_place_in_the_queue_is_told(served: Served) -> None:
    over = asyncio.Event()
    served.fake.queue = (3, over)
    try:
        async with served.client.stream("POST", STREAM, json=ask("in a queue")) as response:
            found = events(response.aiter_lines())
            key = (await anext(found))["payload"]["data"]["request_id"]
            queued = {"event": "queued", "data": {"request_id": key, "position": 3}}
            assert await anext(found) == {"type": "system", "payload": queued}
            over.set()
            rest = [each["type"] async for each in found]
    finally:
        over.set()
        served.fake.queue = None
    assert set(rest[:-1]) == {"token"}
    assert rest[-1] == "done"


async def test_progress_of_a_long_prompt(served: Served) -> None:
    gate = asyncio.Event()
    served.fake.scripts["long"] = served.script(pieces=["end"], gate=gate, progress=[(128, 300)])
    async with served.client.stream("POST", STREAM, json=ask("long")) as response:
        found = events(response.aiter_lines())
        started = await anext(found)
        key = started["payload"]["data"]["request_id"]
        first = await anext(found)
        gate.set()
        rest = [each async for each in found]
    data = {"request_id": key, "done": 128, "total": 300}
    assert first == {"type": "system", "payload": {"event": "progress", "data": data}}
    assert [each["type"] for each in rest] == ["token", "done"]


async def test_a_worker_that_dies_midway(served: Served) -> None:
    served.fake.scripts["dies"] = served.script(pieces=["half"], end=None)
    found = await frames(served, "dies")
    assert [each["type"] for each in found] == ["system", "token", "error"]
    error = found[-1]["payload"]
    assert error["code"] == "worker_lost"
    assert error["request_id"] == found[0]["payload"]["data"]["request_id"]
    assert "ask again" in error["message"]


async def test_an_engine_that_gives_up(served: Served) -> None:
    served.fake.scripts["fails"] = served.script(pieces=[], end=Failure(code="engine_error", message="why"))
    found = await frames(served, "fails")
    assert [each["type"] for each in found] == ["system", "error"]
    assert (found[1]["payload"]["code"], found[1]["payload"]["message"]) == ("engine_error", "why")


async def test_what_is_wrong_before_the_stream_is_a_problem(served: Served) -> None:
    response = await served.client.post(STREAM, json={"persona_id": "nemo", "message": "hello"})
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


async def test_a_client_that_goes_away_cancels(served: Served) -> None:
    served.fake.scripts["leave"] = served.script(gate=asyncio.Event())
    async with served.client.stream("POST", STREAM, json=ask("leave")) as response:
        found = events(response.aiter_lines())
        started = await anext(found)
        await anext(found)
    data = started["payload"]["data"]
    await served.fake.until("cancels", data["request_id"])
    await served.fake.until("settled", data["request_id"])
    history = await served.client.get(f"/api/v1/chat/history/{data['session_id']}")
    said = [(each["content"], each["finish_reason"]) for each in history.json()["messages"]]
    assert said == [("leave", None), ("Hello", "cancelled")]
