"""The gateway's connections: one to the supervisor, one to each worker it has a lease on; both heal by themselves."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Any

from appliance.chat.errors import ChatError, GenerationFailed, NotServed, Unavailable
from appliance.wire.errors import Disconnected, FrameError, WireError
from appliance.wire.frames import Connection, connect
from appliance.wire.messages import (
    Cancel,
    CheckToken,
    EventsLost,
    Failure,
    Finished,
    FromSupervisor,
    FromWorker,
    Generate,
    Invoke,
    Invoked,
    InvokeLease,
    LeaseGranted,
    LeaseQueued,
    LeaseRequest,
    LeaseSettled,
    Progress,
    RepairChanged,
    Status,
    StatusRequest,
    Subscribe,
    SystemChanged,
    TokenHolder,
    Tokens,
    Topic,
    TpuChanged,
    Traffic,
    TrafficRequest,
    Usage,
    WorkerChanged,
)

from .events import Events

log = logging.getLogger(__name__)

#: The code of a reply whose worker ended.
WORKER_LOST = "worker_lost"

#: Codes of the supervisor's for what no worker has.
NOT_SERVED = frozenset({"unknown_model", "unknown_adapter"})
#: How old a status may be that is good enough for whoever asks how the appliance is.
RECENT_S = 1.0

#: Tokens that the supervisor is asked about at a time; strangers who make some up wait for one another.
CHECKS_LIMIT = 4

#: Pause between two attempts to reach the supervisor: it is ready within a second of its start.
RECONNECT_S = 0.1


class SupervisorLink:
    """Leases and status. While the supervisor is away, requests wait for up to `patience_s`."""

    def __init__(
        self,
        path: str,
        *,
        patience_s: float = 10.0,
        queue_s: float = 10.0,
        answer_s: float = 5.0,
        on_reloaded: Callable[[], None] = lambda: None,
        on_session_ended: Callable[[], None] = lambda: None,
    ) -> None:
        """`queue_s` is how long the supervisor lets a request wait for a place, `answer_s` how long an answer may take;
        `on_reloaded` is called when it has, or may have, read the owner's files again, `on_session_ended` when a session that it
        issued a token for has ended or may have."""
        self._path, self._patience_s = path, patience_s
        self._queue_s, self._answer_s, self._on_reloaded = queue_s, answer_s, on_reloaded
        self._on_session_ended = on_session_ended
        #: What happens to repairs and workers, for who listens.
        self.events = Events()
        self._connection: Connection[Any] | None = None
        self._connected = asyncio.Event()
        self._leases: dict[str, asyncio.Future[LeaseGranted]] = {}
        self._on_queued: dict[str, Callable[[int], None]] = {}
        self._statuses: list[asyncio.Future[Status]] = []
        self._holders: dict[str, asyncio.Future[TokenHolder | None]] = {}
        self._traffics: dict[str, asyncio.Future[Traffic]] = {}
        self._checking = asyncio.Semaphore(CHECKS_LIMIT)
        self._recent: asyncio.Task[Status] | None = None
        self._recent_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="supervisor link")

    async def close(self) -> None:
        tasks = [task for task in (self._task, self._recent) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def connected(self) -> bool:
        return self._connection is not None

    async def lease(
        self,
        request_id: str,
        session_id: str,
        *,
        model: str = "",
        adapter: str = "",
        on_queued: Callable[[int], None] = lambda _: None,
    ) -> LeaseGranted:
        """Waits for a place; `on_queued` hears where in the queue. A cancelled wait withdraws the request.

        Unavailable when there is no place in time, NotServed when no worker has the model or the adapter.
        """
        self._on_queued[request_id] = on_queued
        wanted = LeaseRequest(request_id=request_id, session_id=session_id, model=model, adapter=adapter)
        try:
            return await self._granted(wanted, self._queue_s + self._answer_s)
        finally:
            self._on_queued.pop(request_id, None)

    async def lease_invocations(
        self, request_id: str, *, kind: str, model: str, invocations: int, avoid: str
    ) -> LeaseGranted:
        """Where a small model runs now; answered at once. Unavailable when nowhere, NotServed when there is no such model."""
        wanted = InvokeLease(
            request_id=request_id, kind=kind, model=model, invocations=invocations, avoid=avoid
        )
        return await self._granted(wanted, self._answer_s)

    async def _granted(self, wanted: LeaseRequest | InvokeLease, patience_s: float) -> LeaseGranted:
        connection = await self._reach()
        answer: asyncio.Future[LeaseGranted] = asyncio.get_running_loop().create_future()
        self._leases[wanted.request_id] = answer
        try:
            connection.post(wanted)
            async with asyncio.timeout(patience_s):
                return await answer
        except TimeoutError:
            self.settle(wanted.request_id, Usage())
            raise _stuck() from None
        except asyncio.CancelledError:
            # Granted or not, it must not stay behind.
            self.settle(wanted.request_id, Usage())
            raise
        finally:
            self._leases.pop(wanted.request_id, None)

    def settle(self, request_id: str, usage: Usage) -> None:
        """Gives a lease back. When the supervisor is away there is nothing to give: leases died with the connection."""
        if self._connection is not None:
            self._connection.post(
                LeaseSettled(
                    request_id=request_id,
                    prompt_tokens=usage.prompt_tokens,
                    completion_tokens=usage.completion_tokens,
                )
            )

    async def status(self) -> Status:
        """The supervisor's status. Unavailable when it is away."""
        connection = await self._reach()
        answer: asyncio.Future[Status] = asyncio.get_running_loop().create_future()
        self._statuses.append(answer)
        connection.post(StatusRequest())
        try:
            async with asyncio.timeout(self._answer_s):
                return await answer
        except TimeoutError:
            raise _stuck() from None
        finally:
            if answer in self._statuses:
                self._statuses.remove(answer)

    async def recent_status(self) -> Status:
        """As `status`, but up to RECENT_S old: however many ask, the supervisor is asked once."""
        now = asyncio.get_running_loop().time()
        task = self._recent
        if task is None or (
            task.done() and (now - self._recent_at > RECENT_S or task.exception() is not None)
        ):
            task = self._recent = asyncio.create_task(self.status(), name="recent status")
            task.add_done_callback(_retrieve)
            self._recent_at = now
        return await asyncio.shield(task)

    async def traffic(self) -> Traffic:
        """What this machine's interfaces carry. Unavailable, at once, when the supervisor is away."""
        connection = self._connection
        if connection is None:
            raise Unavailable("the supervisor is not running; try again in a moment")
        request_id = secrets.token_hex(8)
        answer: asyncio.Future[Traffic] = asyncio.get_running_loop().create_future()
        self._traffics[request_id] = answer
        connection.post(TrafficRequest(request_id=request_id))
        try:
            async with asyncio.timeout(self._answer_s):
                return await answer
        except TimeoutError:
            raise _stuck() from None
        finally:
            self._traffics.pop(request_id, None)

    async def holder_of(self, digest: bytes) -> TokenHolder | None:
        """Whose session's token that is, None when nobody's. Unavailable when the supervisor is away."""
        await self._reach()  # who waits for the supervisor takes nobody's place
        async with self._checking:
            connection = await self._reach()
            request_id = secrets.token_hex(8)
            answer: asyncio.Future[TokenHolder | None] = asyncio.get_running_loop().create_future()
            self._holders[request_id] = answer
            connection.post(CheckToken(request_id=request_id, digest=digest))
            try:
                async with asyncio.timeout(self._answer_s):
                    return await answer
            except TimeoutError:
                raise _stuck() from None
            finally:
                self._holders.pop(request_id, None)

    async def _reach(self) -> Connection[Any]:
        try:
            async with asyncio.timeout(self._patience_s):
                while self._connection is None:
                    await self._connected.wait()
        except TimeoutError:
            raise Unavailable("the supervisor is not running; try again in a moment") from None
        return self._connection

    async def _run(self) -> None:
        said, first = "", True
        while True:
            try:
                connection = await connect(self._path, FromSupervisor, name="gateway")
            except WireError as error:
                if said != str(error):
                    said = str(error)
                    log.warning("waiting for the supervisor: %s", error)
                await asyncio.sleep(RECONNECT_S)
                continue
            said = ""
            self._connection = connection
            self._connected.set()
            connection.post(Subscribe(topics=[Topic.SYSTEM, Topic.REPAIR, Topic.WORKER, Topic.TPU]))
            if not first:  # a supervisor that has started has read them too
                self._on_reloaded()
            first = False
            try:
                while True:
                    self._take(await connection.receive())
            except (Disconnected, FrameError) as error:
                log.warning("lost the supervisor: %s", error)
            finally:
                self._connection = None
                self._connected.clear()
                connection.abort()
                self._on_session_ended()
                gone = Unavailable("the supervisor is restarting; try again in a moment")
                futures: list[asyncio.Future[Any]] = [
                    *self._leases.values(),
                    *self._statuses,
                    *self._holders.values(),
                    *self._traffics.values(),
                ]
                for waiting in futures:
                    if not waiting.done():
                        waiting.set_exception(gone)
                self._statuses.clear()
                if self._recent is not None and self._recent.done():
                    self._recent = None

    def _take(
        self,
        message: LeaseQueued
        | LeaseGranted
        | Failure
        | Status
        | SystemChanged
        | RepairChanged
        | WorkerChanged
        | TpuChanged
        | EventsLost
        | TokenHolder
        | Traffic,
    ) -> None:
        match message:
            case SystemChanged(event=event):
                if event == "reloaded":
                    self._on_reloaded()
                elif event == "session_ended":
                    self._on_session_ended()
            case EventsLost():
                self._on_reloaded()  # it may have been among them, and so may this
                self._on_session_ended()
                self.events.publish(message)
            case RepairChanged() | WorkerChanged() | TpuChanged():
                self.events.publish(message)
            case LeaseQueued(request_id=request_id, position=position):
                if request_id in self._on_queued:
                    self._on_queued[request_id](position)
            case LeaseGranted(request_id=request_id):
                waiting = self._leases.get(request_id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
            case Status():
                if self._statuses:
                    first = self._statuses.pop(0)
                    if not first.done():
                        first.set_result(message)
            case Traffic(request_id=request_id):
                asking = self._traffics.get(request_id)
                if asking is not None and not asking.done():
                    asking.set_result(message)
            case TokenHolder(request_id=request_id):
                self._answer_holder(request_id, message)
            case Failure(request_id=request_id, code="unknown_token"):
                self._answer_holder(request_id, None)
            case Failure(code=code, message=text, request_id=request_id):
                waiting = self._leases.get(request_id)
                if waiting is not None and not waiting.done():
                    waiting.set_exception(_refused(text, code))
                elif not request_id:
                    log.error("the supervisor refused: %s", text)

    def _answer_holder(self, request_id: str, holder: TokenHolder | None) -> None:
        asking = self._holders.get(request_id)
        if asking is not None and not asking.done():
            asking.set_result(holder)


class _Stream:
    """One reply: where its text and its progress go and how it ended."""

    def __init__(self, on_text: Callable[[str], None], on_progress: Callable[[int, int], None]) -> None:
        self.on_text, self.on_progress = on_text, on_progress
        self.end: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()


class WorkerLink:
    """All streams of this process from one worker."""

    def __init__(self, connection: Connection[Any], name: str) -> None:
        self._connection, self._name = connection, name
        self._streams: dict[str, _Stream] = {}
        self._invocations: dict[str, asyncio.Future[Invoked]] = {}
        self.alive = True
        self._task = asyncio.create_task(self._run(), name=f"worker link {name}")

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def generate(
        self, request: Generate, on_text: Callable[[str], None], on_progress: Callable[[int, int], None]
    ) -> asyncio.Future[Finished]:
        """Begins one reply, so that from now on `cancel` reaches it. GenerationFailed, at once or as its end, when the worker is
        dead or dies, or when its engine gives up."""
        if not self.alive:
            raise _lost(self._name)
        try:
            self._connection.post(request)
        except FrameError as error:
            raise GenerationFailed(str(error)) from error
        stream = self._streams[request.request_id] = _Stream(on_text, on_progress)
        stream.end.add_done_callback(lambda _: self._streams.pop(request.request_id, None))
        return stream.end

    async def invoke(self, request: Invoke) -> Invoked:
        """Runs a small model. GenerationFailed when the worker dies or cannot do it."""
        if not self.alive:
            raise _lost(self._name)
        answer: asyncio.Future[Invoked] = asyncio.get_running_loop().create_future()
        self._invocations[request.request_id] = answer
        try:
            try:
                self._connection.post(request)
            except FrameError as error:
                raise GenerationFailed(str(error), "bad_input") from error
            return await answer
        finally:
            self._invocations.pop(request.request_id, None)

    def cancel(self, request_id: str) -> None:
        if self.alive and request_id in self._streams:
            self._connection.post(Cancel(request_id=request_id))

    async def _run(self) -> None:
        try:
            while True:
                self._take(await self._connection.receive())
        except (Disconnected, FrameError) as error:
            # One that was replaced or restarted in good order has nothing of ours any more.
            level = logging.WARNING if self._streams or self._invocations else logging.INFO
            log.log(level, "lost worker %s: %s", self._name, error)
        finally:
            self.alive = False
            self._connection.abort()
            ends: list[asyncio.Future[Any]] = [stream.end for stream in self._streams.values()]
            for end in (*ends, *self._invocations.values()):
                if not end.done():
                    end.set_exception(_lost(self._name))

    def _take(self, message: Tokens | Progress | Finished | Invoked | Failure) -> None:
        match message:
            case Tokens(items=items):
                for request_id, text in items:
                    stream = self._streams.get(request_id)
                    if stream is not None:
                        stream.on_text(text)
            case Progress(request_id=request_id, done=done, total=total):
                stream = self._streams.get(request_id)
                if stream is not None:
                    stream.on_progress(done, total)
            case Finished(request_id=request_id):
                stream = self._streams.get(request_id)
                if stream is not None and not stream.end.done():
                    stream.end.set_result(message)
            case Invoked(request_id=request_id):
                answer = self._invocations.get(request_id)
                if answer is not None and not answer.done():
                    answer.set_result(message)
            case Failure(code=code, message=text, request_id=request_id) if request_id in self._invocations:
                answer = self._invocations[request_id]
                if not answer.done():
                    answer.set_exception(GenerationFailed(text, code))
            case Failure(code=code, message=text, request_id=request_id):
                stream = self._streams.get(request_id)
                if stream is not None and not stream.end.done():
                    stream.end.set_exception(GenerationFailed(text, code))
                elif not request_id:
                    log.error("worker %s refused: %s", self._name, text)


class WorkerLinks:
    """The connections to workers, each made when it is first needed, and made anew when it was lost."""

    def __init__(self) -> None:
        self._links: dict[str, WorkerLink] = {}
        self._connecting = asyncio.Lock()

    async def to(self, granted: LeaseGranted) -> WorkerLink:
        """The one to the worker of a lease. GenerationFailed when nobody listens there."""
        async with self._connecting:
            link = self._links.get(granted.worker)
            if link is None or not link.alive:
                try:
                    connection = await connect(granted.socket, FromWorker, name="gateway")
                except WireError as error:
                    raise GenerationFailed(
                        f"worker {granted.worker} cannot be reached: {error}", WORKER_LOST
                    ) from error
                link = self._links[granted.worker] = WorkerLink(connection, granted.worker)
            return link

    async def close(self) -> None:
        for link in self._links.values():
            await link.close()


def _refused(text: str, code: str) -> ChatError:
    return NotServed(text, code) if code in NOT_SERVED else Unavailable(text, code)


def _retrieve(task: asyncio.Task[Status]) -> None:
    """Looks at how it ended: those who asked may all have gone."""
    if not task.cancelled():
        task.exception()


def _stuck() -> Unavailable:
    return Unavailable("the supervisor does not answer; try again in a moment")


def _lost(name: str) -> GenerationFailed:
    return GenerationFailed(f"worker {name} ended while it was writing; ask again", WORKER_LOST)
