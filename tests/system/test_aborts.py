"""A thousand clients that leave at random moments in random ways: afterwards everything is where it was."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from websockets.frames import Frame, Opcode

from tests.endless import ENDLESS_TOKENS, NAME, add_endless_model
from tests.waiting import wait_for

from .booted import Booted, booted, configure, state_folder
from .talk import chat_message, question, receive, websocket

pytestmark = pytest.mark.system

ABORTS = 1_000
WARM_UP = 150

#: At a time: many more than there are places, so that many of them leave a queue.
CLIENTS = 32
SLOTS = 6

CONFIGURATION = f"""\
[gateway]
processes = 2

[text]
model = "{NAME}"
slots = {SLOTS}
cache_mib = 8

[chat]
max_tokens = {ENDLESS_TOKENS}
"""

#: What a process may have grown since the warm-up, and what the worker may: the allocations of the engine's threads settle late.
GROWTH_LIMIT_BYTES = 8 * 1024 * 1024
WORKER_GROWTH_LIMIT_BYTES = 32 * 1024 * 1024

#: Repeats a run: the number that a failed one printed.
SEED_VARIABLE = "ABORTS_SEED"

#: The longest that a client stays after it has sent what it wanted to, and when it wants to read something first.
STAY_S = 0.4
READ_S = 1.5

#: Long to read for the model, so that some leave before the first word.
LONG_MESSAGE = "tide and moon " * 500

RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, for no time: close() sends RST


@pytest.fixture(scope="module")
def appliance_with_few_places() -> Iterator[Booted]:
    with state_folder() as state:
        configure(state, CONFIGURATION)
        add_endless_model(state / "models")
        with booted(state) as found:
            wait_for("two gateways run", lambda: len(found.pids("gateway")) == 2)
            yield found


class Leaver:
    """A client that leaves."""

    def __init__(self, appliance: Booted, draw: random.Random, sessions: list[str]) -> None:
        self._address = urlsplit(appliance.url)
        self._key, self._draw, self._sessions = appliance.key, draw, sessions
        self._seen = b""

    async def run(self) -> str:
        """Comes, does something, and leaves; returns what it was."""
        visit = self._draw.choice(
            [self._plain, self._events, self._pipelined, self._websocket, self._websocket]
        )
        self._reader, self._writer = await asyncio.open_connection(
            self._address.hostname, self._address.port, limit=1 << 20
        )
        did = "came too late"
        # The appliance may have ended the connection first.
        with contextlib.suppress(ConnectionError):
            did = await visit()
        way = await self._draw.choice([self._reset, self._close, self._half_close])()
        self._sessions += re.findall(r'"session_id":"([^"]+)"', self._seen.decode(errors="replace"))[:1]
        return f"{did}, {way}"

    # --- visits ---------------------------------------------------------------------------------------------------

    async def _plain(self) -> str:
        return f"plain {await self._send_request(self._post('/api/v1/chat'))}"

    async def _events(self) -> str:
        return f"events {await self._send_request(self._post('/api/v1/chat/stream'))}"

    async def _pipelined(self) -> str:
        self._writer.write(b"".join(self._post("/api/v1/chat/stream")))
        await asyncio.sleep(STAY_S * self._draw.choice([0, self._draw.random()]))
        return f"pipelined {await self._send_request(self._post('/api/v1/chat'))}"

    async def _send_request(self, parts: tuple[bytes, bytes]) -> str:
        head, body = parts
        match self._draw.randrange(8):
            case 0:
                self._writer.write(self._cut(head))
                return "cut in the head"
            case 1:
                self._writer.write(head + self._cut(body))
                return "cut in the body"
            case 2:
                self._writer.write(head + body)
                return "sent"
            case _:
                self._writer.write(head + body)
                return await self._stay()

    async def _websocket(self) -> str:
        handshake = self._head("GET", "/ws", Connection="Upgrade", Upgrade="websocket") + (
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        match self._draw.randrange(8):
            case 0:
                self._writer.write(self._cut(handshake))
                return "websocket cut in the handshake"
            case 1:
                self._writer.write(handshake)
                return "websocket cut after the handshake"
        self._writer.write(handshake)
        await self._reader.readuntil(b"\r\n\r\n")
        chats = [_frame("chat", self._question()) for _ in range(self._draw.randint(1, 3))]
        match self._draw.randrange(8):
            case 0:
                self._writer.write(self._cut(chats[0]))
                return "websocket cut in a frame"
            case 1:
                self._writer.write(b"".join(chats))
                return "websocket sent"
            case 2:
                self._writer.write(b"".join(chats))
                did = await self._stay()
                self._writer.write(Frame(Opcode.CLOSE, struct.pack("!H", 1001)).serialize(mask=True))
                return f"websocket {did}, close frame"
            case 3 | 4 | 5:
                self._writer.write(b"".join(chats))
                did = await self._stay()
                requests = re.findall(r'"request_id":"([^"]+)"', self._seen.decode(errors="replace"))
                cancelled = [*dict.fromkeys(requests), "unknown"]
                self._draw.shuffle(cancelled)
                for request in self._draw.choices(cancelled, k=4):
                    self._writer.write(_frame("cancel", {"request_id": request}) * self._draw.randint(1, 2))
                await self._stay()
                return f"websocket {did}, cancels"
            case _:
                self._writer.write(b"".join(chats))
                return f"websocket {await self._stay()}"

    async def _stay(self) -> str:
        """Reads for a while, or leaves all unread."""
        stay_s = STAY_S * self._draw.random()
        if self._draw.random() < 0.2:
            await asyncio.sleep(stay_s)
            return "unread"
        enough = self._draw.choice([0, 1, 20])  # words; with 0 the time alone decides
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_S if enough else stay_s):
                while (data := await self._reader.read(65_536)) and (
                    not enough or self._seen.count(b'"token"') < enough
                ):
                    self._seen += data
        return "read" if b'"token"' in self._seen else "waited"

    # --- ways to leave ----------------------------------------------------------------------------------------------

    async def _reset(self) -> str:
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._writer.transport.abort()
        return "reset"

    async def _close(self) -> str:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        return "closed"

    async def _half_close(self) -> str:
        with contextlib.suppress(OSError):  # not connected any more
            self._writer.write_eof()
        with contextlib.suppress(ConnectionError):
            await self._stay()
        await self._close()
        return "half-closed"

    # --- what is sent -------------------------------------------------------------------------------------------------

    def _question(self) -> dict[str, Any]:
        body = question(LONG_MESSAGE if self._draw.random() < 0.1 else "Hello")
        if tokens := self._draw.choice([0, 1, 100]):
            body["max_tokens"] = tokens
        if self._sessions and self._draw.random() < 0.3:
            body["session_id"] = self._draw.choice(self._sessions)
        return body

    def _post(self, path: str) -> tuple[bytes, bytes]:
        body = json.dumps(self._question()).encode()
        length = str(len(body))
        head = self._head("POST", path, **{"Content-Type": "application/json", "Content-Length": length})
        return head + b"\r\n", body

    def _head(self, method: str, path: str, **headers: str) -> bytes:
        given = {"Host": self._address.netloc, "Authorization": f"Bearer {self._key}", **headers}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
        return "".join(f"{line}\r\n" for line in lines).encode()

    def _cut(self, data: bytes) -> bytes:
        return data[: self._draw.randrange(len(data))]


def _frame(kind: str, payload: dict[str, Any]) -> bytes:
    return Frame(Opcode.TEXT, json.dumps({"type": kind, "payload": payload}).encode()).serialize(mask=True)


async def leave(appliance: Booted, seed: str, count: int) -> Counter[str]:
    """So many clients, CLIENTS at a time; what they did."""
    did: Counter[str] = Counter()
    sessions: list[str] = []
    numbers = iter(range(count))

    async def one_after_the_other() -> None:
        for number in numbers:
            draw = random.Random(f"{seed} {number}")
            async with asyncio.timeout(60):
                did[await Leaver(appliance, draw, sessions).run()] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(one_after_the_other())
    return did


def descriptors(pid: int) -> Counter[str]:
    """What a process has open: files by name, sockets and pipes by kind."""
    found: Counter[str] = Counter()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found[re.sub(r":\[\d+\]$", "", str(each.readlink()))] += 1
    return found


def rest(appliance: Booted) -> None:
    """Until nobody holds or awaits a place."""

    def idle() -> bool:
        status = appliance.status()
        return bool(status["leases"] == status["waiting"] == 0)

    wait_for("no lease and nobody waiting", idle, within_s=20)


async def fill_every_place(appliance: Booted) -> None:
    """As many replies at once as there are places: each of them says something while all the others are under way."""
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(websocket(appliance)) for _ in range(SLOTS)]
        for each in sockets:
            await each.send(chat_message())

        async def until_text(each: Any) -> None:
            while (event := await receive(each))["type"] != "token":
                assert event["type"] == "system", event
                assert event["payload"]["event"] != "queued", "a place is missing"

        await asyncio.gather(*(until_text(each) for each in sockets))
        assert (await asyncio.to_thread(appliance.status))["leases"] == SLOTS
    await asyncio.to_thread(rest, appliance)


@pytest.mark.timeout(300)
async def test_a_thousand_aborts_leave_nothing_behind(appliance_with_few_places: Booted) -> None:
    appliance = appliance_with_few_places
    seed = os.environ.get(SEED_VARIABLE) or str(random.SystemRandom().randrange(10**9))
    print(f"{SEED_VARIABLE}={seed}")

    await leave(appliance, f"{seed} warm", WARM_UP)
    await fill_every_place(appliance)
    names = appliance.processes()
    opened = {pid: descriptors(pid) for pid in names}
    sizes = {pid: psutil.Process(pid).memory_info().rss for pid in names}

    did = await leave(appliance, seed, ABORTS)
    assert did.total() == ABORTS
    await asyncio.to_thread(rest, appliance)
    await fill_every_place(appliance)

    for kind, count in did.most_common():
        print(f"{count:4} {kind}")
    assert appliance.processes() == names, "a process is another one now"
    for pid, name in names.items():
        wait_for(
            f"{name} has open what it had before: {opened[pid]}",
            partial(lambda pid: descriptors(pid) <= opened[pid], pid),
        )
    for pid, name in names.items():
        grown = psutil.Process(pid).memory_info().rss - sizes[pid]
        print(f"{name}: {sizes[pid] >> 20} MiB, {grown >> 10:+} KiB")
        assert grown < (WORKER_GROWTH_LIMIT_BYTES if "worker" in name else GROWTH_LIMIT_BYTES), name
    assert "Traceback" not in appliance.log, appliance.log[-4000:]
    assert " error: " not in appliance.log
    assert (await asyncio.to_thread(appliance.chat, max_tokens=5))["finish_reason"] == "length"
