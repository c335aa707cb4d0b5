"""A reply from the question to the stored turn.

`Chat.reply` starts a task that takes a lease, reads the history, lets the worker write, commits the turn and only then ends: a
client that reads `Done` has a turn that survives. Whoever reads the events may go away at any time; the task then cancels the
generation, keeps what was said and gives the lease back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any

import msgspec

from appliance.wire.messages import Finished, FinishReason, Sampling, Turn, Usage

from .emotions import Emotion, Emotions
from .errors import BadMessage, ChatError, UnknownSession
from .generator import Generation, Generator
from .personas import Persona, find_persona
from .store import SessionInfo, Store, StoredTurn

log = logging.getLogger(__name__)

#: What of a conversation travels to the worker, which then takes what fits its window. A frame holds 1 MiB.
HISTORY_LIMIT_BYTES = 384 * 1024


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What a client wants answered. Without a session a new one is begun, without a model it is the default one's.

    `whole`: nobody reads along, the reply is wanted when it is complete. `feeling`: what it expresses is wanted too.
    """

    persona_id: str
    message: str
    sampling: Sampling
    session_id: str | None = None
    model: str = ""
    adapter: str = ""
    whole: bool = False
    feeling: bool = True


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """First event: the request is accepted."""

    request_id: str
    session_id: str
    persona_id: str


class Queued(msgspec.Struct, frozen=True):
    """The request waits for a place on a worker; 1 is the next. Comes again as it moves up."""

    position: int


class Progress(msgspec.Struct, frozen=True):
    """Before the first text of a long conversation: `done` of `total` tokens have been read."""

    done: int
    total: int


class Text(msgspec.Struct, frozen=True):
    """More of the reply: all that has come since the last event."""

    content: str


class Feeling(msgspec.Struct, frozen=True, kw_only=True):
    """What the reply expresses, once it is complete; only when there is a model that tells."""

    persona_id: str
    emotion: str
    intensity: float


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """Last event: the reply is complete and stored."""

    finish_reason: FinishReason
    usage: Usage


class Idle(msgspec.Struct, frozen=True):
    """Nothing has come for a while; only for who asks for it."""


Event = Started | Queued | Progress | Text | Feeling | Done | Idle


class Reply:
    """One reply under way: iterate over it once, cancel it at any time."""

    def __init__(self, request_id: str, session: SessionInfo) -> None:
        self.request_id = request_id
        self.session = session
        self.task: asyncio.Task[None] | None = None
        self.content: list[str] = []
        self._read = 0
        self._position: int | None = None
        self._progress: Progress | None = None
        self._feeling: Feeling | None = None
        self._wake: asyncio.Future[None] | None = None
        self._end: Done | ChatError | None = None
        self._generation: Generation | None = None
        self._cancelled = False

    async def events(self, *, idle_s: float | None = None) -> AsyncGenerator[Event, None]:
        """Started, any number of Queued, Progress and Text, perhaps Feeling, then Done; raises ChatError instead. Leaving
        early cancels the reply.

        With `idle_s`, an Idle comes whenever nothing else has for as long.
        """
        try:
            yield Started(
                request_id=self.request_id,
                session_id=self.session.id,
                persona_id=self.session.persona_id,
            )
            while True:
                if self._position is not None:
                    position, self._position = self._position, None
                    yield Queued(position)
                elif self._read < len(self.content):
                    text = "".join(self.content[self._read :])
                    self._read = len(self.content)
                    yield Text(text)
                elif self._progress is not None:
                    progress, self._progress = self._progress, None
                    yield progress
                elif self._feeling is not None:
                    feeling, self._feeling = self._feeling, None
                    yield feeling
                elif isinstance(self._end, Done):
                    yield self._end
                    return
                elif self._end is not None:
                    raise self._end
                else:
                    self._wake = asyncio.get_running_loop().create_future()
                    if idle_s is None:
                        await self._wake
                        continue
                    done, _ = await asyncio.wait([self._wake], timeout=idle_s)
                    if not done:
                        yield Idle()
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Stops the writing; the reply ends with Done(cancelled). Nothing to do when it has ended."""
        self._cancelled = True
        if self._generation is not None:
            self._generation.cancel()
        elif self._end is None and self.task is not None:
            self.task.cancel()  # still waiting for a place

    def queued(self, position: int) -> None:
        """Where the request stands now in the queue for a place."""
        self._position = position
        self._awake()

    def feed(self, text: str) -> None:
        """More text from the worker."""
        self.content.append(text)
        self._progress = None
        self._awake()

    def progress(self, done: int, total: int) -> None:
        """More of the prompt was read; whoever did not hear of the last time need not any more."""
        self._progress = Progress(done, total)
        self._awake()

    def feel(self, emotion: Emotion) -> None:
        """What all of the reply expresses."""
        self._feeling = Feeling(
            persona_id=self.session.persona_id, emotion=emotion.emotion, intensity=emotion.intensity
        )

    def writing(self, generation: Generation | None) -> None:
        """The place where the reply is written, while it is."""
        self._generation = generation
        self._position = None
        if generation is not None and self._cancelled:
            generation.cancel()

    def end(self, end: Done | ChatError) -> None:
        """No more follows."""
        self._end = end
        self._progress = None
        self._awake()

    def _awake(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


def newest(history: Sequence[StoredTurn], limit_bytes: int) -> list[Turn]:
    """The newest turns that fit together into `limit_bytes`, beginning with something that the user said."""
    kept: list[Turn] = []
    for turn in reversed(history):
        limit_bytes -= len(turn.content.encode())
        if limit_bytes < 0:
            break
        kept.append(Turn(turn.role, turn.content))
    while kept and kept[-1].role != "user":
        kept.pop()
    return kept[::-1]


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Awaits `work` even when this task is cancelled meanwhile: a reply that is complete is kept."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    task.result()


class Chat:
    """Personas, a store and a generator, brought together."""

    def __init__(
        self,
        personas: dict[str, Persona],
        store: Store,
        generator: Generator,
        *,
        history_messages: int,
        message_limit_chars: int,
        defaults: Sampling,
        emotions: Emotions | None = None,
    ) -> None:
        self.personas = personas
        #: How a reply is drawn where its question does not say.
        self.defaults = defaults
        self._store, self._generator, self._emotions = store, generator, emotions
        self._history_messages, self._message_limit_chars = history_messages, message_limit_chars
        self._running: dict[asyncio.Task[None], Reply] = {}

    async def reply(self, question: Question, *, owner: str, may_read_all: bool) -> Reply:
        """Starts a reply. BadMessage, UnknownPersona or UnknownSession when there is nothing to reply to."""
        message = question.message
        if not message.strip():
            raise BadMessage("message: empty; say something")
        if len(message) > self._message_limit_chars:
            raise BadMessage(
                f"message: {len(message)} characters, at most {self._message_limit_chars} are taken"
            )
        persona = find_persona(self.personas, question.persona_id)
        session = await self._session(question, persona, owner, may_read_all=may_read_all)
        reply = Reply(f"req-{secrets.token_urlsafe(12)}", session)
        reply.task = asyncio.create_task(self._write(reply, question, persona, owner), name=reply.request_id)
        self._running[reply.task] = reply
        reply.task.add_done_callback(lambda task: self._ended(task, reply))
        return reply

    def _ended(self, task: asyncio.Task[None], reply: Reply) -> None:
        self._running.pop(task, None)
        if task.cancelled():  # before its first step: its own end was never reached
            reply.end(Done(finish_reason=FinishReason.CANCELLED, usage=Usage()))

    def cancel_all(self) -> None:
        """Cancels every reply; each ends as if its client had asked for it."""
        for reply in list(self._running.values()):
            reply.cancel()

    async def close(self) -> None:
        """Cancels what runs and waits until it is stored."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _session(
        self, question: Question, persona: Persona, owner: str, *, may_read_all: bool
    ) -> SessionInfo:
        if question.session_id is None:
            return await self._store.create(owner, persona.id)
        session = await self._store.find(question.session_id)
        if session is None or (session.owner != owner and not may_read_all):
            raise UnknownSession(f"no session {question.session_id!r}; leave session_id out to begin one")
        # Another persona may go on with a conversation; the reply names the one that spoke.
        return msgspec.structs.replace(session, persona_id=persona.id)

    async def _write(self, reply: Reply, question: Question, persona: Persona, owner: str) -> None:
        """The task of one reply."""
        end: Done | ChatError = Done(finish_reason=FinishReason.CANCELLED, usage=Usage())
        try:
            async with self._generator.lease(
                reply.request_id,
                reply.session.id,
                model=question.model,
                adapter=question.adapter,
                on_queued=reply.queued,
            ) as generation:
                turns = [
                    Turn("system", persona.system),
                    *await self._history(question),
                    Turn("user", question.message),
                ]
                reply.writing(generation)
                finished = await self._generate(generation, turns, question, reply)
                await _to_its_end(self._conclude(reply, question, finished, owner))
                end = Done(finish_reason=finished.finish_reason, usage=finished.usage)
        except ChatError as error:
            end = error
        except asyncio.CancelledError:
            pass  # cancelled before it had a place: nothing was said
        except Exception as error:
            log.exception("a reply failed")
            end = ChatError(f"internal error: {type(error).__name__}")
            raise
        finally:
            reply.writing(None)
            reply.end(end)

    async def _history(self, question: Question) -> list[Turn]:
        """What was said before, as far as it is shown to the worker."""
        if question.session_id is None:
            return []  # as new as the session
        said = await self._store.recent(question.session_id, self._history_messages)
        return newest(said, HISTORY_LIMIT_BYTES)

    @staticmethod
    async def _generate(
        generation: Generation, turns: list[Turn], question: Question, reply: Reply
    ) -> Finished:
        """Lets the worker write; cancelling this task ends the reply in good order, with what was said until then."""
        writing = generation.run(turns, question.sampling, reply.feed, reply.progress, whole=question.whole)
        running = asyncio.create_task(writing)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            generation.cancel()
            return await running

    async def _conclude(self, reply: Reply, question: Question, finished: Finished, owner: str) -> None:
        """Stores the turn, and reads meanwhile what it expresses."""
        if finished.finish_reason is FinishReason.CANCELLED or not question.feeling:
            await self._keep(reply, question, finished)
            return
        feeling = asyncio.create_task(self._feel(reply, owner), name=f"emotion of {reply.request_id}")
        try:
            await self._keep(reply, question, finished)
        finally:
            await feeling

    async def _feel(self, reply: Reply, owner: str) -> None:
        content = "".join(reply.content)
        if self._emotions is not None and content.strip():
            emotion = await self._emotions.emotion_of(content, owner)
            if emotion is not None:
                reply.feel(emotion)

    async def _keep(self, reply: Reply, question: Question, finished: Finished) -> None:
        content = "".join(reply.content)
        if finished.finish_reason is FinishReason.CANCELLED and not content:
            return
        await self._store.commit(
            reply.session.id,
            question.message,
            content,
            request_id=reply.request_id,
            finish_reason=finished.finish_reason,
            prompt_tokens=finished.usage.prompt_tokens,
            completion_tokens=finished.usage.completion_tokens,
        )
