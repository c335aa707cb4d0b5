"""How soon a cancel has freed a place.

The appliance has one place and a second reply waits for it. From the client's `cancel` of the first to the first word of the
second, which is later than the free place by the way to the client and the reading of a short prompt.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from appliance.inference.prefill import STEP_S
from tests.endless import NAME, add_endless_model

from .appliance_run import RunningAppliance
from .report import ms, row

CONFIGURATION = f"""\
[text]
model = "{NAME}"
slots = 1

[gateway]
processes = 1
message_limit_chars = 20000
"""

#: A prompt of some 1,500 tokens, the persona's included.
PROMPT_WORDS = 1_070

DECODING_LIMIT_S = 0.1
READING_LIMIT_S = 2 * STEP_S

#: How far into the prompt, or into a reply of 4,000 tokens, the cancel comes.
SHARE = 0.4
WRITING_S = 0.5


def measure(rounds: int) -> None:
    """Prints each figure beside what it may be."""
    with RunningAppliance(CONFIGURATION, add_endless_model) as appliance:
        decoding, reading, tokens = asyncio.run(_measure(appliance, rounds))
    row("cancel to free slot, decoding", ms(decoding), ms(DECODING_LIMIT_S), decoding / DECODING_LIMIT_S)
    row(
        f"cancel to free slot, in a {tokens:,}-token prompt",
        ms(reading),
        ms(READING_LIMIT_S),
        reading / READING_LIMIT_S,
    )


async def _measure(appliance: RunningAppliance, rounds: int) -> tuple[float, float, int]:
    key = (appliance.state / "admin.key").read_text("ascii").strip()
    async with connect(
        f"ws://127.0.0.1:{appliance.port}/ws",
        additional_headers={"Authorization": f"Bearer {key}"},
        proxy=None,
        max_size=None,
    ) as socket:
        decoding = [await _cancelled_s(socket, "Hello", WRITING_S) for _ in range(rounds)]
        began = time.perf_counter()
        request = await _begin(socket, _long_prompt(), max_tokens=1)
        whole = await _until(socket, "done", request)
        pause_s = SHARE * (time.perf_counter() - began)
        reading = [await _cancelled_s(socket, _long_prompt(), pause_s) for _ in range(rounds)]
    return statistics.median(decoding), statistics.median(reading), whole["usage"]["prompt_tokens"]


async def _cancelled_s(socket: ClientConnection, message: str, pause_s: float) -> float:
    first = await _begin(socket, message, max_tokens=4_000)
    second = await _begin(socket, "And you?", max_tokens=1)
    reader = asyncio.create_task(_until(socket, "done", first))
    await asyncio.sleep(pause_s)
    if reader.done():
        raise RuntimeError("the first reply was over before the cancel")
    began = time.perf_counter()
    await _send(socket, "cancel", request_id=first)
    if (await reader)["finish_reason"] != "cancelled":
        raise RuntimeError("the first reply ended by itself")
    await _until(socket, "token", second)
    taken = time.perf_counter() - began
    await _until(socket, "done", second)
    return taken


async def _begin(socket: ClientConnection, message: str, *, max_tokens: int) -> str:
    """The id of a reply that was accepted."""
    await _send(socket, "chat", persona_id="coral", message=message, max_tokens=max_tokens)
    while True:
        event = json.loads(await socket.recv())
        if event["payload"].get("event") == "request_started":
            return str(event["payload"]["data"]["request_id"])


async def _until(socket: ClientConnection, kind: str, request_id: str) -> dict[str, Any]:
    """The payload of the next message of this kind and reply."""
    while True:
        event = json.loads(await socket.recv())
        payload: dict[str, Any] = event["payload"]
        if event["type"] == "error":
            raise RuntimeError(payload["message"])
        if event["type"] == kind and payload["request_id"] == request_id:
            return payload


async def _send(socket: ClientConnection, kind: str, **payload: object) -> None:
    await socket.send(json.dumps({"type": kind, "payload": payload}))


def _long_prompt() -> str:
    """One that begins like no other, so that nothing of it was read before."""
    words = random.Random(time.perf_counter_ns()).choices(
        ["tide", "moon", "sand", "reef", "salt"], k=PROMPT_WORDS
    )
    return " ".join(words)
