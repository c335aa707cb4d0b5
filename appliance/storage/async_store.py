"""The storage from asyncio: one thread of its own, so that the loop never waits for a disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class AsyncStore:
    """Runs synchronous storage calls on one dedicated thread, in the order in which they were asked for.

    One thread, because SQLite has one writer anyway: more threads would only wait for one another's lock.

        async with AsyncStore() as store:
            database = await store.run(Database.open, paths)
            conversations = Conversations(database)
            await store.run(conversations.append_turn, session_id, ...)
            await store.run(database.close)
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="storage")
        self._closed = False

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call` returns or raises. RuntimeError after `close`.

        A cancelled caller stops waiting. A call that has begun goes on to its end, one that still waits never
        begins: who must know whether a turn was stored shields its call.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(call, *args, **kwargs))

    async def close(self) -> None:
        """Waits for what was asked for, then ends the thread. A database is closed by whoever opened it."""
        if self._closed:
            return
        self._closed = True
        last = self._executor.submit(_nothing)
        self._executor.shutdown(wait=False)
        await asyncio.wrap_future(last)
        self._executor.shutdown(wait=True)  # joins a thread that has nothing left to do

    async def __aenter__(self) -> AsyncStore:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


def _nothing() -> None:
    """The last call of a thread: when it is done, all others are."""
