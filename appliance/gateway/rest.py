"""The REST API and the streams of server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException, PermissionDeniedException
from litestar.params import JSONBody, Parameter
from litestar.response import Stream

from appliance import __version__
from appliance.chat.errors import ChatError, Unavailable
from appliance.chat.replies import Chat, Done, Idle, Question, Reply, Text
from appliance.telemetry.network_counters import NetworkCounters
from appliance.wire.messages import (
    FinishReason,
    Hotplug,
    ModelStatus,
    Repair,
    Sampling,
    Status,
    Tpu,
    Tray,
    Usage,
)

from .auth import Caller
from .envelope import ChatRequest, of_error, of_event
from .generator import LeasedGenerator
from .store import ConversationStore

CallerRequest = Request[Caller, None, Any]

#: A comment goes out this often while a stream is silent, so that proxies keep it open and a dead client is noticed.
KEEPALIVE_S = 15.0


#: A supervisor that works answers in milliseconds; whoever asks for the health wants to know soon.
HEALTH_TIMEOUT_S = 2.0


#: Messages of a page of history, and the most that one answer holds.
HISTORY_DEFAULT = 200
HISTORY_LIMIT = 1000


class ChatResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A whole reply."""

    request_id: str
    session_id: str
    persona_id: str
    content: str
    usage: Usage
    finish_reason: FinishReason


class HistoryMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a conversation; `position` counts from 0, `created_at` in milliseconds since 1970, UTC."""

    position: int
    role: str
    content: str
    created_at: int
    request_id: str
    finish_reason: str | None = None


class History(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation, or its newest part, oldest message first. `earlier`: there are older ones, `before` the first one here."""

    session_id: str
    persona_id: str
    messages: list[HistoryMessage]
    earlier: bool


class PersonaInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody to talk to."""

    id: str
    name: str
    role: str
    description: str


class PersonaList(msgspec.Struct, frozen=True):
    personas: list[PersonaInfo]


class ModelList(msgspec.Struct, frozen=True):
    models: list[ModelStatus]


class RepairList(msgspec.Struct, frozen=True):
    repairs: list[Repair]


class TpuList(msgspec.Struct, frozen=True, kw_only=True):
    """By tray and slot, those that are gone too. `hotplug`: how soon a change is noticed."""

    tpus: list[Tpu]
    trays: list[Tray]
    hotplug: Hotplug


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`ok` when a chat would be answered now."""

    status: str
    version: str
    detail: str = ""


def question(data: ChatRequest, defaults: Sampling, *, whole: bool = False, feeling: bool = True) -> Question:
    """A request with what it leaves out filled in. `whole`: the client gets the reply in one piece;
    `feeling`: it hears what the reply expresses."""
    return Question(
        persona_id=data.persona_id,
        message=data.message,
        session_id=data.session_id,
        model=data.model or "",
        adapter=data.adapter or "",
        whole=whole,
        feeling=feeling,
        sampling=Sampling(
            max_tokens=data.max_tokens or defaults.max_tokens,
            temperature=defaults.temperature if data.temperature is None else data.temperature,
            top_p=data.top_p or defaults.top_p,
            stop=data.stop or [],
            seed=data.seed,
        ),
    )


@asynccontextmanager
async def cancelled_with_client(request: CallerRequest, reply: Reply) -> AsyncIterator[None]:
    """Cancels the reply when the client goes away before it is complete."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        reply.cancel()

    watching = asyncio.create_task(watch(), name=f"client of {reply.request_id}")
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


@post("/api/v1/chat", status_code=200, summary="Ask a persona and get the whole reply", tags=["chat"])
async def chat(
    request: CallerRequest,
    data: JSONBody[ChatRequest],
    chat_service: NamedDependency[Chat],
) -> ChatResponse:
    """Answers when the reply is complete and stored. A client that disconnects cancels it."""
    caller = request.user
    reply = await chat_service.reply(
        question(data, chat_service.defaults, whole=True, feeling=False),
        owner=caller.subject,
        may_read_all=caller.may_read_all,
    )
    content: list[str] = []
    end: Done | None = None
    async with cancelled_with_client(request, reply):
        async for event in reply.events():
            match event:
                case Text(content=text):
                    content.append(text)
                case Done():
                    end = event
    assert end is not None
    return ChatResponse(
        request_id=reply.request_id,
        session_id=reply.session.id,
        persona_id=reply.session.persona_id,
        content="".join(content),
        usage=end.usage,
        finish_reason=end.finish_reason,
    )


@post(
    "/api/v1/chat/stream",
    status_code=200,
    media_type="text/event-stream",
    summary="Ask a persona and read the reply as it is written",
    tags=["chat"],
)
async def chat_stream(
    request: CallerRequest,
    data: JSONBody[ChatRequest],
    chat_service: NamedDependency[Chat],
    counters: NamedDependency[NetworkCounters],
) -> Stream:
    """Server-sent events; each `data:` is one message of the WebSocket: `system`, `token`..., perhaps `persona_emotion`, then
    `done` or `error`. While a long conversation is read, `system` with the event `progress` tells how far."""
    caller = request.user
    reply = await chat_service.reply(
        question(data, chat_service.defaults), owner=caller.subject, may_read_all=caller.may_read_all
    )
    return Stream(
        _server_sent(reply, counters),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _server_sent(reply: Reply, counters: NetworkCounters) -> AsyncIterator[bytes]:
    events = reply.events(idle_s=KEEPALIVE_S)
    try:
        async for event in events:
            if isinstance(event, Idle):
                yield b": still here\n\n"
            else:
                yield b"data: %b\n\n" % of_event(event, reply.request_id)
    except ChatError as error:
        counters.failed(error.status)
        yield b"data: %b\n\n" % of_error(error, reply.request_id)
    finally:
        await events.aclose()


SessionId = Annotated[str, Parameter(min_length=1, max_length=64, description="as a chat answered it")]


Limit = Annotated[int, Parameter(ge=1, le=HISTORY_LIMIT, description="how many messages at most")]
Before = Annotated[
    int | None,
    Parameter(
        ge=0, le=2**53, description="only messages before this position: of the oldest one that you have"
    ),
]


@get("/api/v1/chat/history/{session_id:str}", summary="Read a conversation", tags=["chat"])
async def history(
    request: CallerRequest,
    session_id: SessionId,
    conversations: NamedDependency[ConversationStore],
    limit: Limit = HISTORY_DEFAULT,
    before: Before = None,
) -> History:
    """The newest messages of a session, oldest first; `before` reads on backwards, page by page."""
    session = await conversations.find(session_id)
    if session is None or not (session.owner == request.user.subject or request.user.may_read_all):
        raise NotFoundException(f"no session {session_id!r}")
    messages = await conversations.history(session_id, limit, before)
    return History(
        session_id=session.id,
        persona_id=session.persona_id,
        messages=[
            HistoryMessage(
                position=message.position,
                role=message.role,
                content=message.content,
                created_at=message.created_at,
                request_id=message.request_id,
                finish_reason=message.finish_reason,
            )
            for message in messages
        ],
        earlier=bool(messages) and messages[0].position > 0,
    )


@delete("/api/v1/chat/history/{session_id:str}", summary="Delete a conversation", tags=["chat"])
async def forget(
    request: CallerRequest, session_id: SessionId, conversations: NamedDependency[ConversationStore]
) -> None:
    """Deletes a session with all its messages, for good."""
    session = await conversations.find(session_id)
    if session is None or not (session.owner == request.user.subject or request.user.may_read_all):
        raise NotFoundException(f"no session {session_id!r}")
    await conversations.delete(session_id)


@get("/api/v1/personas", summary="Who there is to talk to", tags=["chat"], constant=True)
async def personas(chat_service: NamedDependency[Chat]) -> PersonaList:
    """The personas, in their order."""
    return PersonaList(
        [
            PersonaInfo(id=each.id, name=each.name, role=each.role, description=each.description)
            for each in chat_service.personas.values()
        ]
    )


@get("/api/v1/system/status", summary="The state of the appliance", tags=["system"])
async def system_status(generator: NamedDependency[LeasedGenerator]) -> Status:
    """Workers, leases, counts and repairs, as the supervisor sees them."""
    status: Status = await generator.status()
    return status


@get("/api/v1/system/models", summary="The models", tags=["system"])
async def system_models(generator: NamedDependency[LeasedGenerator]) -> ModelList:
    """What ships, what the owner added, and which worker has loaded it."""
    return ModelList((await generator.status()).models)


@get("/api/v1/system/repairs", summary="What is wrong", tags=["system"])
async def system_repairs(generator: NamedDependency[LeasedGenerator]) -> RepairList:
    """What the owner should know and may have to do, worst first; empty when all is well."""
    return RepairList((await generator.status()).repairs)


def only_admins(request: CallerRequest) -> None:
    """Refuses everybody else with 403."""
    if not request.user.may_administer:
        raise PermissionDeniedException("only an administrator's API key may see this")


@get("/api/v1/system/tpus", summary="The Edge TPUs", tags=["system"])
async def system_tpus(request: CallerRequest, generator: NamedDependency[LeasedGenerator]) -> TpuList:
    """Every TPU with its place, state and temperature, and the trays of the tower. For administrators."""
    only_admins(request)
    status: Status = await generator.status()
    return TpuList(tpus=status.tpus, trays=status.trays, hotplug=status.hotplug)


TpuId = Annotated[str, Parameter(min_length=1, max_length=64, description="as /api/v1/system/tpus lists it")]


@get("/api/v1/system/tpus/{tpu_id:str}", summary="One Edge TPU", tags=["system"])
async def system_tpu(
    request: CallerRequest, tpu_id: TpuId, generator: NamedDependency[LeasedGenerator]
) -> Tpu:
    """All that is known of one TPU. For administrators."""
    only_admins(request)
    status: Status = await generator.status()
    for tpu in status.tpus:
        if tpu.id == tpu_id:
            return tpu
    raise NotFoundException(f"no TPU {tpu_id!r}")


@get("/health", summary="Whether a chat would be answered now", tags=["system"])
async def health(generator: NamedDependency[LeasedGenerator]) -> Response[Health]:
    """200 when it would, 503 with the reason when not. Needs no key; for load balancers and monitors."""
    try:
        if not generator.connected:
            raise Unavailable("the supervisor is not running")
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            status: Status = await generator.recent_status()
    except TimeoutError:
        detail = "the supervisor does not answer"
        return Response(Health(status="down", version=__version__, detail=detail), status_code=503)
    except ChatError as error:
        return Response(Health(status="down", version=__version__, detail=error.message), status_code=503)
    if not status.ready:
        return Response(
            Health(status="starting", version=__version__, detail=status.summary), status_code=503
        )
    return Response(Health(status="ok", version=__version__))


ROUTES = [
    chat,
    chat_stream,
    history,
    forget,
    personas,
    system_status,
    system_models,
    system_repairs,
    system_tpus,
    system_tpu,
]
