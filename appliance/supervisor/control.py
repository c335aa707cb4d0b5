"""The control socket: gateways and tools ask here for leases and for the status, give orders, and subscribe to events."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from appliance.devices.errors import DevicesError
from appliance.identity.errors import IdentityError
from appliance.inference.errors import InferenceError
from appliance.scheduling.errors import Draining, SchedulingError
from appliance.scheduling.invoke_leases import InvokeLeases
from appliance.scheduling.leases import LeaseTable
from appliance.scheduling.lines import Lease, Request
from appliance.wire.errors import BadMessage, Disconnected, FrameError, PeerRefused, VersionError, WireError
from appliance.wire.frames import Connection, connect
from appliance.wire.messages import (
    Done,
    EventsLost,
    Failure,
    FromSupervisor,
    InvokeLease,
    LeaseGranted,
    LeaseQueued,
    LeaseRequest,
    LeaseSettled,
    Message,
    ModelLoad,
    ModelLoaded,
    Reload,
    RepairFix,
    Status,
    StatusRequest,
    Subscribe,
    Topic,
    ToSupervisor,
    TpuQuarantine,
    TpuReset,
    Traffic,
    TrafficRequest,
    WorkerRestart,
    failure,
    protocol_failure,
)

from .errors import RequestFailed, SubsystemDead
from .logins import ACCOUNT_MESSAGES, Logins, Session
from .network import NETWORK_MESSAGES, NetworkDesk

log = logging.getLogger(__name__)

#: A peer that lets this much pile up is cut off.
BACKLOG_LIMIT_BYTES = 1024 * 1024

#: Who waits no longer than this hears no place: a session's next request may overtake the end of its last.
PLACE_PATIENCE_S = 0.2
#: Places in the queue are told this often, and of those that have changed at most so many to one peer, the front first: 10,000
#: that wait would else each hear of each grant.
PLACES_PERIOD_S = 0.5
PLACES_LIMIT = 256

#: So near the front every change is told, further back only one of a tenth: who began at 10,000 hears of it some 75 times.
PLACES_NEAR = 10
PLACES_STEP = 0.1
#: Events for a subscriber with this much unread wait here, the newest ones only.
EVENTS_BACKLOG_BYTES = 64 * 1024
EVENTS_KEPT = 256

#: A peer that sends this many frames without a message in them is no peer of ours.
BAD_MESSAGES_LIMIT = 16

#: How soon a slow subscriber is tried again.
EVENTS_RETRY_S = 0.25


class Orders(Protocol):
    """What a peer may tell the supervisor to do. Each returns a sentence or the message to answer with, or raises RequestFailed,
    InferenceError or DevicesError."""

    async def reload(self) -> str: ...

    async def restart_worker(self, name: str) -> str: ...

    async def fix(self, repair_id: str) -> str: ...

    async def reset_tpu(self, tpu_id: str) -> str: ...

    async def quarantine_tpu(self, tpu_id: str) -> str: ...

    async def load_model(self, request: ModelLoad, tell: Callable[[Message], None]) -> ModelLoaded: ...


@dataclass(slots=True)
class Waiting:
    """A request that waits: since when, on the loop's clock; how long still; the place that was told last, 0 before."""

    since: float
    deadline: asyncio.TimerHandle
    place: int = 0


class Subscriber:
    """The events of one peer, bounded: when it is slow, the newest are kept and it is told how many it missed."""

    def __init__(self, peer: Connection[Message], topics: frozenset[Topic]) -> None:
        self._peer, self._topics = peer, topics
        self._kept: deque[Message] = deque(maxlen=EVENTS_KEPT)
        self._lost = 0
        self._retry: asyncio.TimerHandle | None = None

    def publish(self, topic: Topic, event: Message) -> None:
        """Sends it, or keeps it for when the peer has read."""
        if self._topics and topic not in self._topics:
            return
        if len(self._kept) == EVENTS_KEPT:
            self._lost += 1
        self._kept.append(event)
        if self._retry is None:
            self._flush()

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()

    def _flush(self) -> None:
        self._retry = None
        if self._lost and self._peer.backlog_bytes < EVENTS_BACKLOG_BYTES:
            self._peer.post(EventsLost(count=self._lost))
            self._lost = 0
        while self._kept and self._peer.backlog_bytes < EVENTS_BACKLOG_BYTES:
            self._peer.post(self._kept.popleft())
        if self._kept:
            self._retry = asyncio.get_running_loop().call_later(EVENTS_RETRY_S, self._flush)


class ControlSocket:
    """Serves the socket; turns the lease table's decisions into messages."""

    def __init__(
        self,
        path: Path,
        leases: LeaseTable,
        invocations: InvokeLeases,
        *,
        status: Callable[[], Status],
        traffic: Callable[[str], Traffic],
        socket_of: Callable[[str], tuple[str, str]],
        orders: Orders,
        logins: Logins,
        network: NetworkDesk,
        why_none_is_ready: Callable[[], str],
        queue_timeout_s: float,
    ) -> None:
        self._path, self._leases, self._status, self._socket_of = path, leases, status, socket_of
        self._traffic, self._invocations, self._draining = traffic, invocations, False
        self._orders, self._logins, self._why_none_is_ready = orders, logins, why_none_is_ready
        self._network = network
        self.queue_timeout_s = queue_timeout_s
        self._subscribers: dict[Connection[Message], Subscriber] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._peers: set[Connection[Message]] = set()
        self._waiting: dict[tuple[Connection[Message], str], Waiting] = {}
        self._places_timer: asyncio.TimerHandle | None = None
        self._places_told_at = 0.0
        self._server: asyncio.Server | None = None
        self._settled = asyncio.Event()
        self.requests = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0

    async def start(self) -> None:
        """Listens. Only one supervisor holds the state folder, so a socket that lies there is a dead one's."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self._path))
        self._path.chmod(0o660)
        self._server = await asyncio.start_unix_server(self._connected, sock=listener)

    async def prove(self) -> None:
        """Returns when it has answered as it answers anybody. SubsystemDead when it does not take a connection."""
        try:
            asking = await connect(str(self._path), FromSupervisor, name="supervisor")
            try:
                await asking.send(StatusRequest())
                await asking.receive()
            finally:
                asking.abort()
        except WireError as error:
            raise SubsystemDead(f"the control socket does not answer: {error}") from error

    async def close(self) -> None:
        """Ends all connections and the socket."""
        if self._server is not None:
            self._server.close()
        if self._places_timer is not None:
            self._places_timer.cancel()
        for order in self._running:
            order.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for peer in list(self._peers):
            peer.abort()
        if self._server is not None:
            await self._server.wait_closed()
        self._path.unlink(missing_ok=True)

    def granted(self, leases: Iterable[Lease]) -> None:
        """Tells the gateways of leases that became theirs."""
        for lease in leases:
            peer = lease.request.owner
            assert isinstance(peer, Connection)
            self._waits_no_more(peer, lease.request.request_id)
            path, model = self._socket_of(lease.worker)
            self._tell(
                peer,
                LeaseGranted(
                    request_id=lease.request.request_id,
                    lease_id=lease.lease_id,
                    worker=lease.worker,
                    socket=path,
                    model=model,
                    adapter=lease.request.adapter,
                ),
            )

    def publish(self, topic: Topic, event: Message) -> None:
        """Tells everybody who wants to hear of it."""
        for subscriber in self._subscribers.values():
            subscriber.publish(topic, event)

    async def idle(self, worker: str = "") -> None:
        """Returns when no lease runs, or none of that worker."""
        while self._owed(worker):
            self._settled.clear()
            await self._settled.wait()

    def _owed(self, worker: str) -> int:
        tables = self._leases, self._invocations
        return sum(each.leases_of(worker) if worker else each.leases for each in tables)

    def drain(self) -> None:
        """Refuses what waits; from now on nothing is granted."""
        self._draining = True
        for request in self._leases.drain():
            assert isinstance(request.owner, Connection)
            self._waits_no_more(request.owner, request.request_id)
            self._tell(
                request.owner,
                Failure(code="stopping", message="the appliance is stopping", request_id=request.request_id),
            )

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: Connection[Message] = Connection(reader, writer, ToSupervisor)
        self._peers.add(peer)
        session: Session | None = None
        try:
            session = self._logins.begin(peer.check_peer(), peer.abort)
            await peer.greet("supervisor")
            bad = 0
            while bad < BAD_MESSAGES_LIMIT:
                try:
                    self._handle(peer, session, await peer.receive())
                except BadMessage as error:
                    bad += 1
                    self._tell(peer, protocol_failure(error))
            log.warning("control socket: ending a connection after %d bad messages", bad)
        except Disconnected:
            pass  # a peer ends its connection when it likes
        except (FrameError, VersionError, PeerRefused) as error:
            log.warning("control socket: refusing a connection: %.300s", error)
            peer.post(protocol_failure(error))
        finally:
            self._peers.discard(peer)
            if session is not None:
                self._logins.over(session)
            if subscriber := self._subscribers.pop(peer, None):
                subscriber.close()
            for key in [key for key in self._waiting if key[0] is peer]:
                self._waits_no_more(*key)
            self.granted(self._leases.owner_gone(peer))
            self._invocations.owner_gone(peer)
            self._settled.set()
            await peer.close()

    def _handle(self, peer: Connection[Message], session: Session, message: Message) -> None:
        if isinstance(message, ACCOUNT_MESSAGES):
            self._carry_out(peer, message.request_id, self._logins.answer(session, message))
            return
        if isinstance(message, NETWORK_MESSAGES):
            self._carry_out(peer, message.request_id, self._network.answer(session, message))
            return
        match message:
            case LeaseRequest(request_id=request_id, session_id=session_id, model=model, adapter=adapter):
                request = Request(peer, request_id, session_id, model, adapter)
                try:
                    granted = self._leases.request(request)
                except SchedulingError as error:
                    self._tell(peer, failure(error.code, error, request_id))
                    return
                if self._leases.is_waiting(peer, request_id):
                    loop = asyncio.get_running_loop()
                    deadline = loop.call_later(self.queue_timeout_s, self._waited_too_long, peer, request_id)
                    self._waiting[peer, request_id] = Waiting(loop.time(), deadline)
                    self._tell_places_in(PLACE_PATIENCE_S)
                self.granted(granted)
            case LeaseSettled(request_id=request_id, prompt_tokens=prompt, completion_tokens=completion):
                if self._invocations.settle(peer, request_id):
                    self._settled.set()
                    return
                self._waits_no_more(peer, request_id)
                if self._leases.is_leased(peer, request_id):
                    self.requests += 1
                    self.prompt_tokens += prompt
                    self.completion_tokens += completion
                self.granted(self._leases.settle(peer, request_id))
                self._settled.set()
            case InvokeLease():
                self._lease_invocations(peer, message)
            case StatusRequest():
                self._tell(peer, self._status())
            case TrafficRequest(request_id=request_id):
                self._tell(peer, self._traffic(request_id))
            case Subscribe(topics=topics):
                if subscriber := self._subscribers.pop(peer, None):
                    subscriber.close()
                self._subscribers[peer] = Subscriber(peer, frozenset(topics))
            case Reload() | WorkerRestart() | RepairFix() | TpuReset() | TpuQuarantine() | ModelLoad():
                self._carry_out(peer, message.request_id, self._order(peer, session, message))
            case _:
                raise BadMessage(f"{type(message).__name__} is nothing that the supervisor takes")

    async def _order(
        self,
        peer: Connection[Message],
        session: Session,
        message: Reload | WorkerRestart | RepairFix | TpuReset | TpuQuarantine | ModelLoad,
    ) -> str | Message:
        session.require_admin()
        match message:
            case Reload():
                return await self._orders.reload()
            case WorkerRestart(name=name):
                return await self._orders.restart_worker(name)
            case RepairFix(id=repair_id):
                return await self._orders.fix(repair_id)
            case TpuReset(id=tpu_id):
                return await self._orders.reset_tpu(tpu_id)
            case TpuQuarantine(id=tpu_id):
                return await self._orders.quarantine_tpu(tpu_id)
            case ModelLoad():
                return await self._orders.load_model(message, lambda progress: self._tell(peer, progress))

    def _lease_invocations(self, peer: Connection[Message], message: InvokeLease) -> None:
        try:
            if self._draining:
                raise Draining
            worker, model = self._invocations.request(
                peer,
                message.request_id,
                kind=message.kind,
                model=message.model,
                invocations=message.invocations,
                avoid=message.avoid,
            )
        except SchedulingError as error:
            self._tell(peer, failure(error.code, error, message.request_id))
            return
        path, _ = self._socket_of(worker)
        self._tell(
            peer,
            LeaseGranted(
                request_id=message.request_id,
                lease_id=message.request_id,
                worker=worker,
                socket=path,
                model=model,
            ),
        )

    def _carry_out(
        self, peer: Connection[Message], request_id: str, order: Coroutine[None, None, str | Message]
    ) -> None:
        """Runs an order beside everything else and answers when it is done. One that was begun goes on without its peer."""

        async def run() -> None:
            answer: str | Message
            try:
                answer = await order
            except (RequestFailed, InferenceError, DevicesError, IdentityError) as error:
                level, retry_after_s = logging.WARNING, 0.0
                if isinstance(error, RequestFailed):
                    level, retry_after_s = error.log_level, error.retry_after_s
                log.log(level, "not done: %s", error)
                answer = Failure(
                    code=error.code,
                    message=str(error)[:4096],
                    request_id=request_id,
                    retry_after_s=retry_after_s,
                )
            except Exception as error:
                # A bug, which the log tells of; whoever asked must not wait for ever.
                self._tell(
                    peer,
                    Failure(code="internal", message=f"a bug: {error!r}"[:4096], request_id=request_id),
                )
                raise
            self._tell(
                peer, Done(request_id=request_id, detail=answer) if isinstance(answer, str) else answer
            )

        task = asyncio.create_task(run(), name=f"order {request_id}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _waited_too_long(self, peer: Connection[Message], request_id: str) -> None:
        self._waits_no_more(peer, request_id)
        if not self._leases.is_waiting(peer, request_id):
            return
        self.granted(self._leases.settle(peer, request_id))
        if reason := self._why_none_is_ready():
            message = f"no model is loaded: {reason}"
        else:
            message = f"no worker was free within {self.queue_timeout_s:.0f} s; try again in a moment"
        self._tell(peer, failure("unavailable", message, request_id))

    def _waits_no_more(self, peer: Connection[Message], request_id: str) -> None:
        """Those behind it move up."""
        waiting = self._waiting.pop((peer, request_id), None)
        if waiting is not None:
            waiting.deadline.cancel()
            self._tell_places_in(0)

    def _tell_places_in(self, delay_s: float) -> None:
        """Sees that places are told after this time, unless they are sooner; not more often than each period."""
        if self._waiting and self._places_timer is None:
            loop = asyncio.get_running_loop()
            when = max(loop.time() + delay_s, self._places_told_at + PLACES_PERIOD_S)
            self._places_timer = loop.call_at(when, self._tell_places)

    def _tell_places(self) -> None:
        """Tells those that wait where they stand now, if it is new to them and has changed enough."""
        now = asyncio.get_running_loop().time()
        self._places_timer, self._places_told_at = None, now
        told: Counter[Connection[Message]] = Counter()
        for request, place in self._leases.positions():
            peer = request.owner
            assert isinstance(peer, Connection)
            waiting = self._waiting.get((peer, request.request_id))
            if waiting is None or waiting.place == place:
                continue
            if not waiting.place:
                if now - waiting.since < PLACE_PATIENCE_S:
                    self._tell_places_in(PLACE_PATIENCE_S)
                    continue
            elif place > PLACES_NEAR and waiting.place - place < waiting.place * PLACES_STEP:
                continue
            elif told[peer] == PLACES_LIMIT:  # the rest hears in the next round
                self._tell_places_in(PLACES_PERIOD_S)
                continue
            else:
                told[peer] += 1
            waiting.place = place
            self._tell(peer, LeaseQueued(request_id=request.request_id, position=place))

    def _tell(self, peer: Connection[Message], message: Message) -> None:
        peer.post(message)
        if peer.backlog_bytes > BACKLOG_LIMIT_BYTES:
            log.warning("control socket: a peer does not read; ending its connection")
            peer.abort()
