"""A reply from the question to the stored turn, with a generator whose every step the test decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from appliance.chat.errors import (
    BadMessage,
    ChatError,
    GenerationFailed,
    NotServed,
    Unavailable,
    UnknownPersona,
    UnknownSession,
)
from appliance.chat.generator import Generation
from appliance.chat.personas import load_personas
from appliance.chat.replies import Chat, Done, Event, Question, Queued, Reply, Started, Text
from appliance.chat.store import SessionInfo, StoredTurn
from appliance.wire.messages import Finished, FinishReason, Sampling, Turn, Usage

USAGE = Usage(prompt_tokens=7, completion_tokens=3)


@dataclass
class Commit:
    """A turn as it was handed to the store."""

    session_id: str
    user: str
    reply: str
    finish_reason: str
    tokens: tuple[int, int]
    request_id: str


class MemoryStore:
    """`appliance.chat.store` in a dictionary. `committing` is set when a commit began, which goes on when `go_on` is."""

    def __init__(self) -> None:
        self.sessions: dict[str, SessionInfo] = {}
        self.turns: dict[str, list[StoredTurn]] = {}
        self.commits: list[Commit] = []
        self.committing, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()
        self.reading, self.read = asyncio.Event(), asyncio.Event()
        self.read.set()
        self.failure: Exception | None = None

    async def create(self, owner: str, persona_id: str) -> SessionInfo:
        session = SessionInfo(f"session-{len(self.sessions)}", owner, persona_id)
        self.sessions[session.id] = session
        self.turns[session.id] = []
        return session

    async def find(self, session_id: str) -> SessionInfo | None:
        return self.sessions.get(session_id)

    async def recent(self, session_id: str, limit: int) -> Sequence[StoredTurn]:
        self.reading.set()
        await self.read.wait()
        return self.turns[session_id][-limit:]

    async def commit(
        self,
        session_id: str,
        user: str,
        reply: str,
        *,
        request_id: str,
        finish_reason: str,
        prompt_tokens: int,
        completion_tokens: int,
    ) -> None:
        self.committing.set()
        await self.go_on.wait()
        if self.failure is not None:
            raise self.failure
        self.turns[session_id] += [StoredTurn("user", user), StoredTurn("assistant", reply)]
        self.commits.append(
            Commit(session_id, user, reply, finish_reason, (prompt_tokens, completion_tokens), request_id)
        )


class Hand:
    """A place on a worker that writes what the test says."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.sampling: Sampling | None = None
        self.on_text: Callable[[str], None] | None = None
        self.on_progress: Callable[[int, int], None] | None = None
        self.running = asyncio.Event()
        self.whole: bool | None = None
        self.cancels = 0
        self._end: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()

    async def run(
        self,
        turns: Sequence[Turn],
        sampling: Sampling,
        on_text: Callable[[str], None],
        on_progress: Callable[[int, int], None],
        *,
        whole: bool,
    ) -> Finished:
        self.turns, self.sampling, self.on_text, self.whole = list(turns), sampling, on_text, whole
        self.on_progress = on_progress
        self.running.set()
        return await self._end

    def cancel(self) -> None:
        self.cancels += 1
        self.finish(FinishReason.CANCELLED)

    async def write(self, *pieces: str) -> None:
        await self.running.wait()
        assert self.on_text is not None
        for piece in pieces:
            self.on_text(piece)

    def finish(self, reason: FinishReason = FinishReason.STOP) -> None:
        if not self._end.done():
            self._end.set_result(Finished(request_id="r", finish_reason=reason, usage=USAGE))

    def fail(self, error: Exception) -> None:
        self._end.set_exception(error)


@dataclass
class Hands:
    """A generator of one `Hand` after the other. Places are given while `places` is set."""

    places: asyncio.Event = field(default_factory=asyncio.Event)
    given: asyncio.Queue[Hand] = field(default_factory=asyncio.Queue)
    asked: list[tuple[str, str]] = field(default_factory=list)
    asking: asyncio.Event = field(default_factory=asyncio.Event)
    held: int = 0
    key: tuple[str, str] = ("", "")
    on_queued: Callable[[int], None] = lambda _: None
    failure: ChatError | None = None

    @asynccontextmanager
    async def lease(
        self, request_id: str, session_id: str, *, model: str, adapter: str, on_queued: Callable[[int], None]
    ) -> AsyncIterator[Generation]:
        self.asked.append((request_id, session_id))
        self.key = (model, adapter)
        self.on_queued = on_queued
        self.asking.set()
        await self.places.wait()
        if self.failure is not None:
            raise self.failure
        hand = Hand()
        self.held += 1
        self.given.put_nowait(hand)
        try:
            yield hand
        finally:
            self.held -= 1


@dataclass
class Room:
    """A chat with all that it was given."""

    store: MemoryStore
    hands: Hands
    chat: Chat

    async def ask(self, message: str = "hello", session_id: str | None = None, **more: Any) -> Reply:
        question = Question(
            persona_id=more.pop("persona_id", "coral"),
            message=message,
            sampling=Sampling(max_tokens=9, seed=5),
            session_id=session_id,
            whole=more.pop("whole", False),
        )
        return await self.chat.reply(
            question, owner=more.pop("owner", "me"), may_read_all=more.pop("all", False)
        )

    async def answered(self, message: str, reply: str, session_id: str | None = None) -> str:
        """A whole turn; returns its session."""
        asked = await self.ask(message, session_id)
        hand = await self.hands.given.get()
        await hand.write(reply)
        hand.finish()
        assert isinstance((await collect(asked))[-1], Done)
        return asked.session.id


async def collect(reply: Reply, seen: list[Event] | None = None) -> list[Event]:
    """All events; `seen` has those before an error too."""
    found: list[Event] = [] if seen is None else seen
    async for event in reply.events():
        found.append(event)  # noqa: PERF401
    return found


async def ended(reply: Reply) -> None:
    assert reply.task is not None
    await asyncio.wait([reply.task])


def no_tasks_but_ours() -> bool:
    return asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    store, hands = MemoryStore(), Hands()
    hands.places.set()
    chat = Chat(
        load_personas(), store, hands, history_messages=4, message_limit_chars=20, defaults=Sampling()
    )
    yield Room(store, hands, chat)
    store.go_on.set()
    store.read.set()
    await chat.close()
    assert hands.held == 0, "a lease was kept"


async def test_a_reply(room: Room) -> None:
    reply = await room.ask()
    events = reply.events()
    assert await anext(events) == Started(
        request_id=reply.request_id, session_id=reply.session.id, persona_id="coral"
    )
    hand = await room.hands.given.get()
    await hand.write("Good ")
    assert await anext(events) == Text("Good ")
    await hand.write("morning")
    assert await anext(events) == Text("morning")
    hand.finish()
    assert await anext(events) == Done(finish_reason=FinishReason.STOP, usage=USAGE)
    assert [event async for event in events] == []
    assert room.store.commits == [
        Commit(reply.session.id, "hello", "Good morning", "stop", (7, 3), reply.request_id)
    ]
    assert room.hands.asked == [(reply.request_id, reply.session.id)]
    assert hand.sampling == Sampling(max_tokens=9, seed=5)
    assert hand.cancels == 0


async def test_text_that_came_together_is_one_event(room: Room) -> None:
    reply = await room.ask()
    hand = await room.hands.given.get()
    await hand.write("a", "b", "c")
    events = reply.events()
    assert isinstance(await anext(events), Started)
    assert await anext(events) == Text("abc")
    await hand.write("d", "e")
    hand.finish()
    await ended(reply)
    assert [event async for event in events] == [
        Text("de"),
        Done(finish_reason=FinishReason.STOP, usage=USAGE),
    ]


async def test_done_comes_after_the_commit(room: Room) -> None:
    room.store.go_on.clear()
    reply = await room.ask()
    reading = asyncio.create_task(collect(reply))
    hand = await room.hands.given.get()
    await hand.write("word")
    hand.finish()
    await room.store.committing.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not reading.done()
    assert room.hands.held == 1  # the session stays locked until its turn is stored
    room.store.go_on.set()
    assert isinstance((await reading)[-1], Done)
    assert len(room.store.commits) == 1


async def test_a_commit_that_fails(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    room.store.failure = OSError("disk full")
    reply = await room.ask()
    (await room.hands.given.get()).finish()
    with pytest.raises(ChatError, match="internal error: OSError"):
        await collect(reply)
    assert "a reply failed" in caplog.text
    assert reply.task is not None
    assert isinstance(reply.task.exception(), OSError)
    assert room.hands.held == 0


async def test_cancelled_midway(room: Room) -> None:
    reply = await room.ask()
    hand = await room.hands.given.get()
    await hand.write("Once upon")
    reply.cancel()
    events = await collect(reply)
    assert events[1:] == [Text("Once upon"), Done(finish_reason=FinishReason.CANCELLED, usage=USAGE)]
    (commit,) = room.store.commits
    assert (commit.reply, commit.finish_reason) == ("Once upon", "cancelled")


async def test_cancelled_before_a_word(room: Room) -> None:
    reply = await room.ask()
    hand = await room.hands.given.get()
    await hand.running.wait()
    reply.cancel()
    assert (await collect(reply))[-1] == Done(finish_reason=FinishReason.CANCELLED, usage=USAGE)
    assert room.store.commits == []


async def test_cancelled_while_it_waits_for_a_place(room: Room) -> None:
    room.hands.places.clear()
    reply = await room.ask()
    events = reply.events()
    assert isinstance(await anext(events), Started)
    await room.hands.asking.wait()
    reply.cancel()
    assert [event async for event in events] == [Done(finish_reason=FinishReason.CANCELLED, usage=Usage())]
    assert room.hands.given.empty()
    assert room.store.commits == []


async def test_cancelled_at_once(room: Room) -> None:
    """Before its task ran at all: the reader still hears an end."""
    reply = await room.ask()
    reply.cancel()
    async with asyncio.timeout(0.3):
        assert (await collect(reply))[-1] == Done(finish_reason=FinishReason.CANCELLED, usage=Usage())


async def test_cancelled_while_the_history_is_read(room: Room) -> None:
    session_id = await room.answered("before", "yes")
    room.store.read.clear()
    reply = await room.ask(session_id=session_id)
    await room.store.reading.wait()
    reply.cancel()
    assert (await collect(reply))[-1] == Done(finish_reason=FinishReason.CANCELLED, usage=Usage())
    assert room.hands.held == 0


async def test_a_new_session_has_no_history_to_read(room: Room) -> None:
    session_id = await room.answered("first", "yes")
    assert not room.store.reading.is_set()
    await room.answered("second", "no", session_id)
    assert room.store.reading.is_set()


@pytest.mark.parametrize("whole", [True, False])
async def test_whether_somebody_reads_along(room: Room, whole: bool) -> None:
    reply = await room.ask(whole=whole)
    hand = await room.hands.given.get()
    hand.finish()
    await collect(reply)
    assert hand.whole is whole


async def test_cancelled_twice_and_after_its_end(room: Room) -> None:
    reply = await room.ask()
    hand = await room.hands.given.get()
    await hand.write("a")
    hand.finish()
    events = await collect(reply)
    reply.cancel()
    reply.cancel()
    assert events[-1] == Done(finish_reason=FinishReason.STOP, usage=USAGE)
    assert [commit.finish_reason for commit in room.store.commits] == ["stop"]


async def test_a_cancel_while_the_turn_is_stored_comes_too_late(room: Room) -> None:
    room.store.go_on.clear()
    reply = await room.ask()
    hand = await room.hands.given.get()
    await hand.write("whole")
    hand.finish()
    await room.store.committing.wait()
    reply.cancel()
    room.store.go_on.set()
    assert (await collect(reply))[-1] == Done(finish_reason=FinishReason.STOP, usage=USAGE)
    assert [commit.reply for commit in room.store.commits] == ["whole"]


async def leave(events: AsyncGenerator[Event, None]) -> None:
    assert isinstance(await anext(events), Started)
    await anext(events)
    await events.aclose()


async def test_a_reader_that_leaves_cancels(room: Room) -> None:
    reply = await room.ask()
    hand = await room.hands.given.get()
    await hand.write("a")
    await leave(reply.events())
    await ended(reply)
    assert hand.cancels > 0
    assert [(commit.reply, commit.finish_reason) for commit in room.store.commits] == [("a", "cancelled")]


async def test_a_reader_that_is_cancelled_cancels(room: Room) -> None:
    reply = await room.ask()
    reading = asyncio.create_task(collect(reply))
    hand = await room.hands.given.get()
    await hand.write("a")
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await ended(reply)
    assert [commit.finish_reason for commit in room.store.commits] == ["cancelled"]


@pytest.mark.parametrize(
    ("failure", "code", "status"),
    [
        (Unavailable("full", "queue_full"), "queue_full", 503),
        (GenerationFailed("no socket", "worker_lost"), "worker_lost", 502),
        (NotServed("no such", "unknown_adapter"), "unknown_adapter", 404),
    ],
)
async def test_no_place(room: Room, failure: ChatError, code: str, status: int) -> None:
    room.hands.failure = failure
    reply = await room.ask()
    with pytest.raises(type(failure)) as caught:
        await collect(reply)
    assert (caught.value.code, caught.value.status) == (code, status)
    assert room.store.commits == []


async def test_the_place_in_the_queue(room: Room) -> None:
    """Its changes since the last look are one event, and the last one is not told any more when the writing begins."""
    room.hands.places.clear()
    reply = await room.ask()
    events = reply.events()
    assert isinstance(await anext(events), Started)
    await room.hands.asking.wait()
    for position in (7, 6):
        room.hands.on_queued(position)
    assert await anext(events) == Queued(6)
    room.hands.on_queued(1)
    room.hands.places.set()
    hand = await room.hands.given.get()
    await hand.write("here")
    assert await anext(events) == Text("here")
    hand.finish()
    assert isinstance(await anext(events), Done)
    await events.aclose()


async def test_a_worker_that_dies_midway(room: Room) -> None:
    reply = await room.ask()
    hand = await room.hands.given.get()
    await hand.write("half")
    hand.fail(GenerationFailed("gone", "worker_lost"))
    seen: list[Event] = []
    with pytest.raises(GenerationFailed, match="gone"):
        await collect(reply, seen)
    assert seen[1:] == [Text("half")]
    assert room.store.commits == []


async def test_a_bug_of_the_generator(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    reply = await room.ask()
    (await room.hands.given.get()).fail(ZeroDivisionError("oops"))
    with pytest.raises(ChatError, match="internal error: ZeroDivisionError") as caught:
        await collect(reply)
    assert caught.value.status == 500
    assert "ZeroDivisionError: oops" in caplog.text
    assert reply.task is not None
    assert isinstance(reply.task.exception(), ZeroDivisionError)


def test_a_message_too_long_for_the_model_is_the_clients_matter() -> None:
    assert GenerationFailed("long", "prompt_too_long").status == 400
    assert GenerationFailed("long").status == 502


@pytest.mark.parametrize("message", ["", "  \n\t ", "x" * 21], ids=["empty", "blank", "long"])
async def test_bad_messages(room: Room, message: str) -> None:
    with pytest.raises(BadMessage, match=r"^message: "):
        await room.ask(message)
    assert room.store.sessions == {}


async def test_an_unknown_persona(room: Room) -> None:
    with pytest.raises(UnknownPersona):
        await room.ask(persona_id="nemo")
    assert room.store.sessions == {}


async def test_whose_session(room: Room) -> None:
    session_id = await room.answered("hi", "yes")
    for session, owner in ((session_id, "somebody else"), ("none", "me")):
        with pytest.raises(UnknownSession, match=f"no session '{session}'"):
            await room.ask("hi", session, owner=owner)
    reply = await room.ask("hi", session_id, owner="admin", all=True)
    assert reply.session.owner == "me"
    reply.cancel()
    await ended(reply)


async def test_the_history_in_order_after_the_prompt(room: Room) -> None:
    session_id = await room.answered("one", "1")
    for question, answer in (("two", "2"), ("three", "3")):
        await room.answered(question, answer, session_id)
    reply = await room.ask("four", session_id, persona_id="pike")
    hand = await room.hands.given.get()
    await hand.running.wait()
    system = load_personas()["pike"].system
    assert hand.turns == [
        Turn("system", system),
        Turn("user", "two"),  # the newest four messages, as `history_messages` says
        Turn("assistant", "2"),
        Turn("user", "three"),
        Turn("assistant", "3"),
        Turn("user", "four"),
    ]
    hand.finish()
    started = (await collect(reply))[0]
    assert isinstance(started, Started)
    assert started.persona_id == "pike"  # who speaks now, whoever began


async def test_two_replies_at_once(room: Room) -> None:
    first, second = await room.ask("a"), await room.ask("b")
    hands = [await room.hands.given.get() for _ in range(2)]
    await hands[1].write("B")
    await hands[0].write("A")
    for hand in hands:
        hand.finish()
    found = await asyncio.gather(collect(first), collect(second))
    assert [events[1] for events in found] == [Text("A"), Text("B")]
    assert first.request_id != second.request_id
    assert first.session.id != second.session.id


async def test_close_stores_what_was_said_and_leaves_no_task(room: Room) -> None:
    writing = await room.ask("a")
    hand = await room.hands.given.get()
    await hand.write("so far")
    room.hands.places.clear()
    waiting = await room.ask("b")
    await asyncio.sleep(0)
    await room.chat.close()
    assert no_tasks_but_ours()
    assert [(commit.user, commit.reply) for commit in room.store.commits] == [("a", "so far")]
    ends = [(await collect(reply))[-1] for reply in (writing, waiting)]
    assert [end.finish_reason for end in ends if isinstance(end, Done)] == ["cancelled", "cancelled"]


async def test_close_while_a_turn_is_stored(room: Room) -> None:
    """`Chat.close` waits until it is stored."""
    room.store.go_on.clear()
    reply = await room.ask("a")
    hand = await room.hands.given.get()
    await hand.write("whole")
    hand.finish()
    await room.store.committing.wait()
    closing = asyncio.create_task(room.chat.close())
    await asyncio.sleep(0)
    room.store.go_on.set()
    await closing
    await ended(reply)
    assert [commit.reply for commit in room.store.commits] == ["whole"]


async def test_nothing_runs_after_a_reply(room: Room) -> None:
    await room.answered("hi", "there")
    assert no_tasks_but_ours()
