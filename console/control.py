"""A session's connection to the supervisor: it asks, orders and hears of events. Who is logged in, is so on this connection."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

import msgspec

from appliance.paths import Paths
from appliance.wire.errors import BadMessage, Disconnected, PeerRefused, WireError
from appliance.wire.frames import Connection, connect
from appliance.wire.messages import (
    Failure,
    FromSupervisor,
    Message,
    Status,
    StatusRequest,
    Subscribe,
    Topic,
)

from .errors import CommandFailed

#: The supervisor answers in a millisecond; one that does not within this is stuck.
ANSWER_TIMEOUT_S = 10.0

#: Who waits for events and reads slower than they come loses the oldest.
EVENTS_LIMIT = 256

A = TypeVar("A", bound=Message)


class Denied(CommandFailed):
    """The supervisor said no: `code` and, where waiting helps, `retry_after_s`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.code, self.retry_after_s = failure.code, failure.retry_after_s


class Control:
    """One connection. `ended` is set when it is of no more use."""

    def __init__(self, connection: Connection[Message]) -> None:
        self._connection = connection
        self._ids = itertools.count(1)
        self._answers: dict[str, asyncio.Queue[Message | None]] = {}
        self._statuses: list[asyncio.Queue[Message | None]] = []
        self._events: asyncio.Queue[Message | None] | None = None
        self.ended = asyncio.Event()
        self._reader = asyncio.create_task(self._read(), name="control")

    @classmethod
    async def connected(cls, paths: Paths) -> Control:
        """CommandFailed when there is no supervisor, or none for us."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return cls(await connect(str(paths.control_socket), FromSupervisor, name="console"))
        except Disconnected:
            raise CommandFailed("the supervisor does not run; it is started again by itself") from None
        except TimeoutError:
            raise CommandFailed("the supervisor does not answer") from None
        except PeerRefused as error:
            raise CommandFailed(f"the supervisor refuses the console: {error}") from None
        except WireError as error:
            raise CommandFailed(str(error)) from None

    async def close(self) -> None:
        """Ends the connection, and whoever is logged in on it."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self._connection.abort()
        await self._connection.close()

    async def status(self) -> Status:
        """What the appliance does."""
        queue: asyncio.Queue[Message | None] = asyncio.Queue()
        self._statuses.append(queue)
        answer = await self._asked(StatusRequest(), queue, ANSWER_TIMEOUT_S)
        assert isinstance(answer, Status)
        return answer

    async def ask(self, message: Message, answer: type[A], *, timeout_s: float = ANSWER_TIMEOUT_S) -> A:
        """The answer to a message with a `request_id`, which is chosen here. Denied when the answer is no."""
        async with contextlib.aclosing(self.answers(message, timeout_s=timeout_s)) as answers:
            async for each in answers:
                if isinstance(each, answer):
                    return each
        raise AssertionError("the answers end with the awaited one or with an error")

    async def answers(self, message: Message, *, timeout_s: float) -> AsyncGenerator[Message, None]:
        """All answers to a message, as they come; whoever has enough stops. Denied when one is no."""
        request_id = str(next(self._ids))
        queue = self._answers[request_id] = asyncio.Queue()
        try:
            asked: Message | None = msgspec.structs.replace(message, request_id=request_id)
            while True:
                answer = await self._asked(asked, queue, timeout_s)
                asked = None
                if isinstance(answer, Failure):
                    raise Denied(answer)
                yield answer
        finally:
            del self._answers[request_id]

    async def events(self, topics: Sequence[Topic] = ()) -> AsyncGenerator[Message, None]:
        """What happens from now on; all topics when none is named. One at a time may listen."""
        queue = self._events = asyncio.Queue(EVENTS_LIMIT)
        await self._send(Subscribe(topics=list(topics)))
        try:
            while True:
                event = await queue.get()
                if event is None:
                    raise CommandFailed("the supervisor ended")
                yield event
        finally:
            self._events = None

    async def _asked(
        self, message: Message | None, queue: asyncio.Queue[Message | None], timeout_s: float
    ) -> Message:
        if self.ended.is_set():
            raise CommandFailed("the supervisor ended; it is started again by itself")
        try:
            async with asyncio.timeout(timeout_s):
                if message is not None:
                    await self._send(message)
                answer = await queue.get()
        except TimeoutError:
            raise CommandFailed(f"the supervisor did not answer in {timeout_s:.0f} s") from None
        if answer is None:
            raise CommandFailed("the supervisor ended before it answered")
        return answer

    async def _send(self, message: Message) -> None:
        try:
            await self._connection.send(message)
        except WireError as error:
            raise CommandFailed(f"the supervisor cannot be asked: {error}") from None

    async def _read(self) -> None:
        """Gives every message to whoever waits for it; None to all of them at the end."""
        try:
            while True:
                with contextlib.suppress(BadMessage):
                    self._deliver(await self._connection.receive())
        except WireError:
            self.ended.set()
            for queue in (*self._answers.values(), *self._statuses):
                queue.put_nowait(None)
            if self._events is not None:
                self._keep(self._events, None)

    def _deliver(self, message: Message) -> None:
        if isinstance(message, Status):
            if self._statuses:
                self._statuses.pop(0).put_nowait(message)
        elif (queue := self._answers.get(getattr(message, "request_id", ""))) is not None:
            queue.put_nowait(message)
        elif self._events is not None:
            self._keep(self._events, message)

    @staticmethod
    def _keep(queue: asyncio.Queue[Message | None], message: Message | None) -> None:
        if queue.full():
            queue.get_nowait()
        queue.put_nowait(message)
