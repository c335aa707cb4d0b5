"""The control socket: gateways and tools ask here for leases and for the status."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from appliance.inference.errors import InferenceError
from appliance.scheduling.errors import SchedulingError
from appliance.scheduling.leases import Lease, LeaseTable, Request
from appliance.wire.errors import Disconnected, FrameError, PeerRefused, VersionError
from appliance.wire.frames import Connection
from appliance.wire.messages import (
    Failure,
    LeaseGranted,
    LeaseRequest,
    LeaseSettled,
    Message,
    ModelLoad,
    ModelLoaded,
    Status,
    StatusRequest,
    ToSupervisor,
    failure,
    protocol_failure,
)

log = logging.getLogger(__name__)

#: A peer that lets this much pile up is cut off.
BACKLOG_LIMIT_BYTES = 1024 * 1024

#: Carries out a `ModelLoad`; what it is given tells the peer how far it is.
LoadModel = Callable[[ModelLoad, Callable[[Message], None]], Awaitable[ModelLoaded]]


class ControlSocket:
    """Serves the socket; turns the lease table's decisions into messages."""

    def __init__(
        self,
        path: Path,
        leases: LeaseTable,
        *,
        status: Callable[[], Status],
        socket_of: Callable[[str], tuple[str, str]],
        load_model: LoadModel,
        why_none_is_ready: Callable[[], str],
        queue_timeout_s: float,
    ) -> None:
        self._path, self._leases, self._status, self._socket_of = path, leases, status, socket_of
        self._load_model, self._why_none_is_ready = load_model, why_none_is_ready
        self._loads: set[asyncio.Task[None]] = set()
        self._queue_timeout_s = queue_timeout_s
        self._peers: set[Connection[Message]] = set()
        self._deadlines: dict[tuple[Connection[Message], str], asyncio.TimerHandle] = {}
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

    async def close(self) -> None:
        """Ends all connections and the socket."""
        if self._server is not None:
            self._server.close()
        for load in self._loads:
            load.cancel()
        await asyncio.gather(*self._loads, return_exceptions=True)
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
            self._forget_deadline(peer, lease.request.request_id)
            path, model = self._socket_of(lease.worker)
            self._tell(
                peer,
                LeaseGranted(
                    request_id=lease.request.request_id,
                    lease_id=lease.lease_id,
                    worker=lease.worker,
                    socket=path,
                    model=model,
                ),
            )

    async def idle(self, is_idle: Callable[[], bool]) -> None:
        """Returns when the leases that `is_idle` looks at have ended."""
        while not is_idle():
            self._settled.clear()
            await self._settled.wait()

    def drain(self) -> None:
        """Refuses what waits; from now on nothing is granted."""
        for request in self._leases.drain():
            assert isinstance(request.owner, Connection)
            self._forget_deadline(request.owner, request.request_id)
            self._tell(
                request.owner,
                Failure(code="stopping", message="the appliance is stopping", request_id=request.request_id),
            )

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: Connection[Message] = Connection(reader, writer, ToSupervisor)
        self._peers.add(peer)
        try:
            peer.check_peer()
            await peer.greet("supervisor")
            while True:
                self._handle(peer, await peer.receive())
        except Disconnected:
            pass  # a peer ends its connection when it likes
        except (FrameError, VersionError, PeerRefused) as error:
            log.warning("control socket: refusing a connection: %.300s", error)
            peer.post(protocol_failure(error))
        finally:
            self._peers.discard(peer)
            for key in [key for key in self._deadlines if key[0] is peer]:
                self._deadlines.pop(key).cancel()
            self.granted(self._leases.owner_gone(peer))
            self._settled.set()
            await peer.close()

    def _handle(self, peer: Connection[Message], message: Message) -> None:
        match message:
            case LeaseRequest(request_id=request_id, session_id=session_id, model=model):
                try:
                    granted = self._leases.request(Request(peer, request_id, session_id, model))
                except SchedulingError as error:
                    self._tell(peer, Failure(code=error.code, message=str(error), request_id=request_id))
                    return
                if self._leases.is_waiting(peer, request_id):
                    loop = asyncio.get_running_loop()
                    self._deadlines[peer, request_id] = loop.call_later(
                        self._queue_timeout_s, self._waited_too_long, peer, request_id
                    )
                self.granted(granted)
            case LeaseSettled(request_id=request_id, prompt_tokens=prompt, completion_tokens=completion):
                self._forget_deadline(peer, request_id)
                if self._leases.is_leased(peer, request_id):
                    self.requests += 1
                    self.prompt_tokens += prompt
                    self.completion_tokens += completion
                self.granted(self._leases.settle(peer, request_id))
                self._settled.set()
            case StatusRequest():
                self._tell(peer, self._status())
            case ModelLoad():
                load = asyncio.create_task(self._load(peer, message), name=f"load {message.model}")
                self._loads.add(load)
                load.add_done_callback(self._loads.discard)
            case _:
                raise FrameError(f"{type(message).__name__} is nothing that the supervisor takes")

    async def _load(self, peer: Connection[Message], request: ModelLoad) -> None:
        """Goes on when the peer goes away: what was asked for is what the owner wants."""
        try:
            self._tell(peer, await self._load_model(request, lambda message: self._tell(peer, message)))
        except InferenceError as error:
            log.warning("the model %s is not loaded: %s", request.model, error)
            self._tell(peer, failure(error.code, error, request.request_id))

    def _waited_too_long(self, peer: Connection[Message], request_id: str) -> None:
        self._deadlines.pop((peer, request_id), None)
        if not self._leases.is_waiting(peer, request_id):
            return
        self.granted(self._leases.settle(peer, request_id))
        if reason := self._why_none_is_ready():
            message = f"no model is loaded: {reason}"
        else:
            message = f"no worker was free within {self._queue_timeout_s:.0f} s; try again in a moment"
        self._tell(peer, failure("unavailable", message, request_id))

    def _forget_deadline(self, peer: Connection[Message], request_id: str) -> None:
        timer = self._deadlines.pop((peer, request_id), None)
        if timer is not None:
            timer.cancel()

    def _tell(self, peer: Connection[Message], message: Message) -> None:
        peer.post(message)
        if peer.backlog_bytes > BACKLOG_LIMIT_BYTES:
            log.warning("control socket: a peer does not read; ending its connection")
            peer.abort()
