"""The envelope of WebSocket and server-sent events: `{"type": ..., "payload": {...}}`, and its messages in both directions.

The names and payloads are those of the specification's tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from appliance.chat.errors import ChatError
from appliance.chat.replies import Done, Feeling, Progress, Queued, Started, Text
from appliance.wire.messages import EventsLost, RepairChanged, TpuChanged, WorkerChanged

from .events import SystemEvent

_encode = msgspec.json.Encoder().encode


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question. What is left out comes from the configuration."""

    persona_id: Annotated[
        str, Meta(min_length=1, max_length=64, description="who shall answer: see /api/v1/personas")
    ]
    message: Annotated[str, Meta(min_length=1, max_length=100_000, description="what you say")]
    session_id: (
        Annotated[
            str,
            Meta(
                min_length=1, max_length=64, description="the conversation to go on with; left out: a new one"
            ),
        ]
        | None
    ) = None
    max_tokens: (
        Annotated[int, Meta(ge=1, le=32_768, description="length of the reply at most, in tokens")] | None
    ) = None
    temperature: (
        Annotated[float, Meta(ge=0, le=2, description="0 always takes the likeliest word")] | None
    ) = None
    top_p: (
        Annotated[
            float, Meta(gt=0, le=1, description="draw from the likeliest words that make up this share")
        ]
        | None
    ) = None
    stop: (
        Annotated[
            list[Annotated[str, Meta(min_length=1, max_length=64)]],
            Meta(max_length=8, description="strings at which the reply ends"),
        ]
        | None
    ) = None
    seed: (
        Annotated[
            int, Meta(ge=0, le=0xFFFF_FFFE, description="the same seed and question give the same reply")
        ]
        | None
    ) = None
    model: (
        Annotated[
            str, Meta(min_length=1, max_length=128, description="which model writes; left out: the default")
        ]
        | None
    ) = None
    adapter: (
        Annotated[
            str,
            Meta(min_length=1, max_length=128, description="which of the model's adapters; left out: none"),
        ]
        | None
    ) = None
    stream: Annotated[
        bool, Meta(description="WebSocket only: false sends the reply as one token message")
    ] = True


class CancelRequest(msgspec.Struct, frozen=True):
    request_id: Annotated[str, Meta(min_length=1, max_length=64)]


class ChatMessage(msgspec.Struct, frozen=True, tag_field="type", tag="chat"):
    payload: ChatRequest


class CancelMessage(msgspec.Struct, frozen=True, tag_field="type", tag="cancel"):
    payload: CancelRequest


class PingMessage(msgspec.Struct, frozen=True, tag_field="type", tag="ping"):
    payload: dict[str, Any] = {}


class Channel(StrEnum):
    """What a client may want to hear of besides its own replies."""

    SYSTEM = "system"  # repairs, workers and TPUs; for administrators


class Channels(msgspec.Struct, frozen=True):
    channels: Annotated[list[Channel], Meta(min_length=1, max_length=16)]


class SubscribeMessage(msgspec.Struct, frozen=True, tag_field="type", tag="subscribe"):
    payload: Channels


class UnsubscribeMessage(msgspec.Struct, frozen=True, tag_field="type", tag="unsubscribe"):
    payload: Channels


ClientMessage = ChatMessage | CancelMessage | PingMessage | SubscribeMessage | UnsubscribeMessage

_decoder: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)


def read_client_message(data: str | bytes) -> ClientMessage:
    """Decodes what a client sent; ValueError with what is wrong and where."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def write(kind: str, payload: dict[str, Any]) -> bytes:
    """One message to a client, as JSON."""
    return _encode({"type": kind, "payload": payload})


def of_event(event: Started | Queued | Progress | Text | Feeling | Done, request_id: str) -> bytes:
    """The message of an event of a reply."""
    match event:
        case Text(content=content):
            return write("token", {"content": content, "request_id": request_id})
        case Done(finish_reason=reason, usage=usage):
            return write("done", {"request_id": request_id, "usage": usage, "finish_reason": reason})
        case Feeling(persona_id=persona_id, emotion=emotion, intensity=intensity):
            felt = {"persona_id": persona_id, "emotion": emotion, "intensity": round(intensity, 3)}
            return write("persona_emotion", felt)
        case Progress(done=done, total=total):
            data = {"request_id": request_id, "done": done, "total": total}
            return _system("progress", data)
        case Started(session_id=session_id, persona_id=persona_id):
            data = {"request_id": request_id, "session_id": session_id, "persona_id": persona_id}
            return _system("request_started", data)
        case Queued(position=position):
            waiting = {"request_id": request_id, "position": position}
            return _system("queued", waiting)


def of_system_event(event: SystemEvent) -> bytes:
    """The message of something that happened to the appliance."""
    match event:
        case RepairChanged(repair=repair, gone=gone):
            return _system("repair", {**msgspec.structs.asdict(repair), "gone": gone})
        case WorkerChanged(worker=worker):
            return _system("worker", msgspec.structs.asdict(worker))
        case TpuChanged(tpu=tpu):
            return _system("tpu", msgspec.structs.asdict(tpu))
        case EventsLost(count=count):
            return _system("events_lost", {"count": count})


def of_channels(channels: Iterable[Channel]) -> bytes:
    """The message that says which channels a client hears now."""
    return _system("subscribed", {"channels": sorted(channels)})


def _system(event: str, data: dict[str, Any]) -> bytes:
    return write("system", {"event": event, "data": data})


def of_error(error: ChatError, request_id: str | None) -> bytes:
    """The message of a reply that failed, or of a message that could not be read."""
    return write("error", {"code": error.code, "message": error.message, "request_id": request_id})
