"""A worker's side of the wire with the real engine: progress of long prompts, and how fast a cancelled reply frees its place."""

from __future__ import annotations

import asyncio
import gc
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import appliance.inference.preload  # noqa: F401  (how a worker imports the engine)
from appliance.inference import worker as worker_module
from appliance.inference.text import TextEngine
from appliance.inference.worker import Worker
from appliance.wire.frames import Connection, connect
from appliance.wire.messages import (
    Cancel,
    Finished,
    FinishReason,
    FromWorker,
    Generate,
    Message,
    Progress,
    Sampling,
    Tokens,
    Turn,
    WorkerSpec,
)
from tests.endless import WINDOW_TOKENS, add_endless_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: What nobody else is promised: a busy machine is no failure. A place that is not given back takes ten times as long.
FREED_WITHIN_S = 10.0

LONG = "one two three four " * 300


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway() -> AsyncIterator[Connection[Any]]:
    """A connection to a worker with one slot, so that nobody is answered while another holds it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        model = add_endless_model(folder / "models")
        settings: dict[str, Any] = {
            "slots": 1,
            "threads": 1,
            "context_tokens": WINDOW_TOKENS,
            "batch_tokens": 128,
            "cache_mib": 0,
        }
        spec = WorkerSpec(
            name="text-1",
            kind="text",
            model="endless",
            model_path=str(model),
            model_sha256="",
            model_size_bytes=0,
            socket=str(folder / "text-1.sock"),
            folder=name,
            **settings,
        )
        engine = await asyncio.to_thread(TextEngine, model, folder, **settings)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(spec.socket)
        listener.listen(8)
        worker = Worker(spec, engine)
        serving = asyncio.create_task(worker.run(listener))
        connection = await connect(spec.socket, FromWorker, name="gateway")
        yield connection
        await connection.close()
        worker.stop()
        await serving
        del worker, engine  # its threads end here, not while the interpreter does
        gc.collect()


def generate(request_id: str, message: str, max_tokens: int, *, pause_s: float = 0.0) -> Generate:
    sampling = Sampling(max_tokens=max_tokens, temperature=0.8, seed=7)
    return Generate(request_id=request_id, turns=[Turn("user", message)], sampling=sampling, pause_s=pause_s)


def is_of(message: Message, request_id: str) -> bool:
    """Whether it belongs to this reply; a test that failed may have left another one behind."""
    match message:
        case Tokens(items=items):
            return request_id in dict(items)
        case Progress(request_id=found) | Finished(request_id=found):
            return found == request_id
    return False


async def next_of(gateway: Connection[Any], request_id: str) -> Message:
    async with asyncio.timeout(100):
        while True:
            message: Message = await gateway.receive()
            if is_of(message, request_id):
                return message


async def until_finished(gateway: Connection[Any], request_id: str) -> tuple[list[Message], Finished]:
    """What came before the end of a reply, and that end."""
    got: list[Message] = []
    while not isinstance(message := await next_of(gateway, request_id), Finished):
        got.append(message)
    return got, message


async def test_a_long_prompt_tells_how_far_it_is(
    gateway: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "PROGRESS_AFTER_S", 0.0)
    monkeypatch.setattr(worker_module, "PROGRESS_EVERY_S", 0.0)
    gateway.post(generate("long", LONG, 2))
    got, end = await until_finished(gateway, "long")
    told = [message for message in got if isinstance(message, Progress)]
    assert {message.request_id for message in told} == {"long"}
    assert {message.total for message in told} == {end.usage.prompt_tokens}
    done = [message.done for message in told]
    assert done == sorted(done)
    assert len(done) > 5
    first_text = next(number for number, message in enumerate(got) if isinstance(message, Tokens))
    assert not any(isinstance(message, Progress) for message in got[first_text:])


async def test_not_too_often(gateway: Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "PROGRESS_AFTER_S", 0.0)
    monkeypatch.setattr(worker_module, "PROGRESS_EVERY_S", 1000.0)
    gateway.post(generate("seldom", f"again {LONG}", 2))
    got, _ = await until_finished(gateway, "seldom")
    assert sum(isinstance(message, Progress) for message in got) == 1


async def test_a_short_prompt_tells_nothing(
    gateway: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "PROGRESS_AFTER_S", 20.0)
    gateway.post(generate("short", "hello", 2))
    got, _ = await until_finished(gateway, "short")
    assert not any(isinstance(message, Progress) for message in got)


def text_of(messages: list[Message]) -> list[str]:
    return [
        text for message in messages if isinstance(message, Tokens) for text in dict(message.items).values()
    ]


async def test_text_that_may_come_late_comes_in_large_pieces(gateway: Connection[Any]) -> None:
    pieces = {}
    for pause_s in (0.0, 1.0):
        gateway.post(generate(f"paused {pause_s}", "tell me more", 200, pause_s=pause_s))
        began = time.monotonic()
        got, _ = await until_finished(gateway, f"paused {pause_s}")
        pieces[pause_s] = text_of(got)
    assert "".join(pieces[1.0]) == "".join(pieces[0.0])
    # The first at once, one for each pause, and the rest.
    assert 2 <= len(pieces[1.0]) <= 3 + (time.monotonic() - began)
    assert len(pieces[1.0][0]) < 30


async def test_nothing_that_was_held_back_is_lost_by_a_cancel(gateway: Connection[Any]) -> None:
    gateway.post(generate("held back", "tell me much more", 8000, pause_s=1.0))
    got = [await next_of(gateway, "held back") for _ in range(2)]
    gateway.post(Cancel(request_id="held back"))
    more, end = await until_finished(gateway, "held back")
    assert end.finish_reason is FinishReason.CANCELLED
    said = "".join(text_of([*got, *more]))
    # Some tokens have no text of their own, and most are longer than a character.
    assert len(said) > end.usage.completion_tokens / 2


async def first_text_after_cancel(gateway: Connection[Any], cancelled: str) -> tuple[Finished, float]:
    """Cancels, asks something else at once, and tells how the first ended and when the second was answered."""
    began = time.monotonic()
    gateway.post(Cancel(request_id=cancelled))
    gateway.post(generate(f"after {cancelled}", "hello", 1))
    end: Finished | None = None
    answered: float | None = None
    async with asyncio.timeout(100):
        while end is None or answered is None:
            match await gateway.receive():
                case Finished(request_id=request_id) as finished:
                    if request_id == cancelled:
                        end = finished
                    elif request_id == f"after {cancelled}":
                        answered = time.monotonic() - began
    return end, answered


async def test_cancelled_while_it_writes(gateway: Connection[Any]) -> None:
    gateway.post(generate("writes", "hello", 8000))
    for _ in range(5):
        await next_of(gateway, "writes")
    end, answered_s = await first_text_after_cancel(gateway, "writes")
    assert end.finish_reason is FinishReason.CANCELLED
    assert end.usage.prompt_tokens > 0
    assert 0 < end.usage.completion_tokens < 8000
    assert answered_s < FREED_WITHIN_S


async def test_cancelled_while_it_reads(gateway: Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "PROGRESS_AFTER_S", 0.0)
    monkeypatch.setattr(worker_module, "PROGRESS_EVERY_S", 0.0)
    gateway.post(generate("reads", f"not read before {LONG}", 8000))
    progress = await next_of(gateway, "reads")
    assert isinstance(progress, Progress)
    end, answered_s = await first_text_after_cancel(gateway, "reads")
    assert end.finish_reason is FinishReason.CANCELLED
    assert end.usage.completion_tokens == 0
    assert end.usage.prompt_tokens == progress.total > 1000
    assert answered_s < FREED_WITHIN_S
