"""The one thread of the storage."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from appliance.paths import Paths
from appliance.storage.async_store import AsyncStore
from appliance.storage.conversations import Conversations
from appliance.storage.database import Database
from appliance.storage.errors import NoSuchSession


async def test_everything_from_opening_to_closing(tmp_path: Path) -> None:
    async with AsyncStore() as store:
        database = await store.run(Database.open, Paths.under(tmp_path))
        assert await store.run(database.upgrade)
        conversations = Conversations(database)
        session = await store.run(conversations.create, "owner", "persona")
        turns = [
            store.run(
                conversations.append_turn,
                session.id,
                f"q{number}",
                f"a{number}",
                request_id=str(number),
                finish_reason="stop",
                prompt_tokens=1,
                completion_tokens=1,
            )
            for number in range(10)
        ]
        await asyncio.gather(*turns)
        history = await store.run(conversations.history, session.id)
        assert [message.request_id for message in history[::2]] == [str(number) for number in range(10)]
        with pytest.raises(NoSuchSession):
            await store.run(
                conversations.append_turn,
                "unknown",
                "q",
                "a",
                request_id="r",
                finish_reason="stop",
                prompt_tokens=1,
                completion_tokens=1,
            )
        await store.run(database.close)


async def test_one_thread_that_ends_with_the_store() -> None:
    before = threading.active_count()
    async with AsyncStore() as store:
        threads = await asyncio.gather(*(store.run(threading.get_ident) for _ in range(20)))
        assert len(set(threads)) == 1
        assert threads[0] != threading.get_ident()
    assert threading.active_count() == before
    await store.close()
    with pytest.raises(RuntimeError):
        await store.run(threading.get_ident)


async def test_closing_waits_for_what_was_asked_for() -> None:
    store, may_end, done = AsyncStore(), threading.Event(), list[str]()
    first = asyncio.create_task(store.run(may_end.wait))
    second = asyncio.create_task(store.run(done.append, "second"))
    await asyncio.sleep(0)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    assert not closing.done()  # and the loop still turns
    may_end.set()
    await closing
    assert await first
    await second
    assert done == ["second"]


async def test_a_cancelled_call_that_waits_never_begins() -> None:
    store, may_end, done = AsyncStore(), threading.Event(), list[str]()
    first = asyncio.create_task(store.run(may_end.wait))
    second = asyncio.create_task(store.run(done.append, "second"))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    may_end.set()
    await first
    await store.close()
    assert done == []
