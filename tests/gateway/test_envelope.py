"""What a client may send: anything at all is a message or a ValueError."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.chat.errors import BadMessage
from appliance.chat.replies import Done, Queued, Started, Text
from appliance.gateway.envelope import (
    CancelMessage,
    CancelRequest,
    ChatMessage,
    ChatRequest,
    PingMessage,
    of_error,
    of_event,
    read_client_message,
)
from appliance.wire.messages import FinishReason, Usage

MESSAGES = (ChatMessage, CancelMessage, PingMessage)
KEYS = st.sampled_from(["type", "payload", *ChatRequest.__struct_fields__, "request_id"]) | st.text(
    max_size=3
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.sampled_from(["chat", "cancel", "ping", "coral"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=10,
)
REQUESTS = st.builds(
    ChatRequest,
    persona_id=st.text(st.characters(codec="utf-8"), min_size=1, max_size=64),
    message=st.text(st.characters(codec="utf-8"), min_size=1, max_size=200),
    session_id=st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=64),
    max_tokens=st.none() | st.integers(1, 32_768),
    temperature=st.none() | st.floats(0, 2),
    top_p=st.none() | st.floats(0, 1, exclude_min=True),
    stop=st.none() | st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=64), max_size=8),
    seed=st.none() | st.integers(0, 0xFFFF_FFFE),
    model=st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=128),
    adapter=st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=128),
    stream=st.booleans(),
)


def read(data: str | bytes) -> Any:
    """The message, or None when it is refused; anything else than ValueError is a bug."""
    try:
        return read_client_message(data)
    except ValueError:
        return None


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_arbitrary_bytes_and_text(data: str | bytes) -> None:
    assert isinstance(read(data), (*MESSAGES, type(None)))


@given(VALUES, st.booleans())
def test_arbitrary_json(value: Any, as_text: bool) -> None:
    data = msgspec.json.encode(value) if not _huge(value) else b"0"
    found = read(data.decode() if as_text else data)
    assert isinstance(found, (*MESSAGES, type(None)))


def _huge(value: Any) -> bool:
    """Whether there is an integer that this encoder of the test cannot write."""
    match value:
        case bool():
            return False
        case int():
            return not -(2**63) <= value < 2**64
        case list():
            return any(map(_huge, value))
        case dict():
            return any(map(_huge, value.values()))
    return False


@given(st.sampled_from(["chat", "cancel", "ping"]), VALUES)
def test_any_payload(kind: str, payload: Any) -> None:
    data = b"0" if _huge(payload) else msgspec.json.encode({"type": kind, "payload": payload})
    found = read(data)
    assert found is None or type(found).__struct_config__.tag == kind


@given(REQUESTS)
def test_every_good_request(request: ChatRequest) -> None:
    data = msgspec.json.encode(ChatMessage(request))
    assert read_client_message(data) == read_client_message(data.decode()) == ChatMessage(request)


@given(REQUESTS, st.data())
def test_a_damaged_request(request: ChatRequest, data: st.DataObject) -> None:
    damaged = bytearray(msgspec.json.encode(ChatMessage(request)))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    assert isinstance(read(bytes(damaged)), (*MESSAGES, type(None)))


CHAT = '{"type": "chat", "payload": {"persona_id": "a", "message": %s}}'
PING = '{"type": "ping", "payload": {"a": %s}}'


@pytest.mark.parametrize(
    "data",
    [
        PING % ("[" * 60_000),
        PING % ('{"b":' * 12_000),
        '{"payload": %s, "type": "ping"}' % ("[" * 60_000),
        PING % ("9" * 10_000),
        PING % "1e999",
        PING % "NaN",
        PING % "Infinity",
        CHAT % '"\\ud800"',
        CHAT % '"\ud800"',
        CHAT % '"\\udfff\\ud800"',
        CHAT % "7",
        CHAT % '""',
        (CHAT % '"\xff"').encode("latin-1"),
        '{"type": "chat"}',
        '{"type": "chat", "payload": null}',
        '{"type": "hello", "payload": {}}',
        '{"type": 5}',
        '{"payload": {}}',
        "[]",
        "",
    ],
    ids=range(20),
)
def test_hostile_messages(data: str | bytes) -> None:
    assert read(data) is None


def test_an_error_names_the_place() -> None:
    with pytest.raises(ValueError, match=r"`\$\.payload\.message`"):
        read_client_message(CHAT % "7")
    with pytest.raises(ValueError, match="unknown field `mood`"):
        read_client_message('{"type": "chat", "payload": {"persona_id": "a", "message": "b", "mood": 1}}')


def test_good_messages() -> None:
    assert read_client_message('{"type": "ping"}') == PingMessage({})
    assert read_client_message('{"type": "cancel", "payload": {"request_id": "r"}}') == CancelMessage(
        CancelRequest("r")
    )


def test_what_a_client_gets() -> None:
    started = Started(request_id="r", session_id="s", persona_id="coral")
    assert msgspec.json.decode(of_event(started, "r")) == {
        "type": "system",
        "payload": {
            "event": "request_started",
            "data": {"request_id": "r", "session_id": "s", "persona_id": "coral"},
        },
    }
    assert msgspec.json.decode(of_event(Queued(4), "r")) == {
        "type": "system",
        "payload": {"event": "queued", "data": {"request_id": "r", "position": 4}},
    }
    assert msgspec.json.decode(of_event(Text("hi"), "r")) == {
        "type": "token",
        "payload": {"content": "hi", "request_id": "r"},
    }
    done = Done(finish_reason=FinishReason.LENGTH, usage=Usage(prompt_tokens=1, completion_tokens=2))
    assert msgspec.json.decode(of_event(done, "r")) == {
        "type": "done",
        "payload": {
            "request_id": "r",
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "cached_tokens": 0},
            "finish_reason": "length",
        },
    }
    assert msgspec.json.decode(of_error(BadMessage("no"), None)) == {
        "type": "error",
        "payload": {"code": "bad_message", "message": "no", "request_id": None},
    }
