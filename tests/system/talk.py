"""The appliance's messages, as clients read them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from websockets.asyncio.client import ClientConnection, connect

from .booted import Booted

Event = dict[str, Any]

#: What happens to the appliance, not to a reply.
SYSTEM_EVENTS = ("repair", "worker", "tpu", "events_lost")


def question(message: str = "Hello", **more: Any) -> dict[str, Any]:
    """The body of a chat."""
    return {"persona_id": "finn", "message": message, **more}


def chat_message(message: str = "Hello", **more: Any) -> str:
    """A chat over the WebSocket."""
    return json.dumps({"type": "chat", "payload": question(message, **more)})


def events_in(lines: Iterable[str]) -> Iterator[Event]:
    """The messages in the lines of a stream of server-sent events."""
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


async def events_of(response: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    """The messages of a stream of server-sent events, as aiohttp reads it."""
    async for line in response.content:
        for event in events_in([line.decode()]):
            yield event


def text_of(events: Iterable[Event]) -> str:
    """What was said."""
    return "".join(event["payload"]["content"] for event in events if event["type"] == "token")


def session_of(events: Iterable[Event]) -> str:
    """The conversation that a stream belongs to."""
    started = next(event["payload"] for event in events if event["type"] == "system")
    return str(started["data"]["session_id"])


@asynccontextmanager
async def aiohttp_client(appliance: Booted) -> AsyncIterator[aiohttp.ClientSession]:
    """An aiohttp session with the key."""
    timeout = aiohttp.ClientTimeout(total=90)
    async with aiohttp.ClientSession(appliance.url, headers=appliance.headers, timeout=timeout) as session:
        yield session


@asynccontextmanager
async def websocket(appliance: Booted) -> AsyncIterator[ClientConnection]:
    """A WebSocket with the key in its header."""
    async with connect(
        appliance.websocket_url, additional_headers=appliance.headers, proxy=None, open_timeout=30
    ) as socket:
        yield socket


async def receive(socket: ClientConnection) -> Event:
    """The next message of a reply: what an administrator is told of the appliance comes at any time between."""
    while True:
        event: Event = json.loads(await socket.recv())
        if event["payload"].get("event") not in SYSTEM_EVENTS:
            return event


async def receive_system_event(socket: ClientConnection, kind: str) -> dict[str, Any]:
    """The data of the next event of this kind."""
    while True:
        payload: dict[str, Any] = json.loads(await socket.recv())["payload"]
        if payload.get("event") == kind:
            data: dict[str, Any] = payload["data"]
            return data


async def receive_reply(socket: ClientConnection) -> list[Event]:
    """All messages up to the end of a reply."""
    events = [await receive(socket)]
    while events[-1]["type"] not in ("done", "error"):
        events.append(await receive(socket))
    return events
