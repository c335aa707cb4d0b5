"""A real gateway (uvicorn, database, sockets) before a scripted supervisor and worker, which speak the real protocol."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
import uvicorn
from litestar.exceptions import LitestarDeprecationWarning

from appliance.config.appliance import Appliance, Gateway
from appliance.gateway.__main__ import prepare
from appliance.gateway.links import SupervisorLink
from appliance.gateway.server import make_server
from appliance.identity.keys import ApiKeys
from appliance.identity.roles import Role
from appliance.paths import Paths
from appliance.storage.database import Database
from appliance.wire.errors import Disconnected
from appliance.wire.frames import Connection
from appliance.wire.messages import (
    Cancel,
    CheckToken,
    Failure,
    Finished,
    FinishReason,
    Generate,
    Hotplug,
    InterfaceTraffic,
    Invoke,
    InvokeLease,
    LeaseGranted,
    LeaseQueued,
    LeaseRequest,
    LeaseSettled,
    Message,
    ModelStatus,
    Progress,
    Status,
    StatusRequest,
    Subscribe,
    TokenHolder,
    Tokens,
    ToSupervisor,
    ToWorker,
    Tpu,
    TpuBus,
    TpuRole,
    TpuState,
    Traffic,
    TrafficRequest,
    Tray,
    Usage,
    UserRole,
)
from tests.waiting import ask_until

#: How long the gateway of the tests waits for a supervisor; the real one waits ten seconds.
PATIENCE_S = 0.5

MESSAGE_LIMIT_CHARS = 500
CONNECTIONS_LIMIT = 48


@dataclass
class Script:
    """What the worker does with a question: its pieces (the rest after `gate`; all of them when it tells progress), then its
    end: a reason, a failure or death."""

    pieces: Sequence[str] = ("Hello", " there", ".")
    gate: asyncio.Event | None = None
    end: FinishReason | Failure | None = FinishReason.STOP
    progress: Sequence[tuple[int, int]] = ()


def carried(name: str) -> InterfaceTraffic:
    """What an interface carries."""
    return InterfaceTraffic(
        name=name,
        port=True,
        bytes_in=1000,
        bytes_out=2000,
        in_bytes_per_s=100,
        out_bytes_per_s=200,
        peak_in_bytes_per_s=300,
        peak_out_bytes_per_s=400,
    )


@dataclass
class FakeAppliance:
    """Supervisor and worker of one gateway. `scripts` is keyed by the question."""

    paths: Paths
    scripts: dict[str, Script] = field(default_factory=dict)
    ready: bool = True
    mute: bool = False  # takes leases and status requests, and never answers
    refusal: tuple[str, str] | None = None
    queue: tuple[int, asyncio.Event] | None = (
        None  # the place that is told before a lease, and until when it is kept
    )
    socket: str = ""
    status_requests: int = 0
    requests: list[LeaseRequest] = field(default_factory=list)
    settled: dict[str, LeaseSettled] = field(default_factory=dict)
    generates: dict[str, Generate] = field(default_factory=dict)
    cancels: set[str] = field(default_factory=set)
    models: dict[str, str] = field(default_factory=dict)  # small ones, by kind
    invoke_leases: list[InvokeLease] = field(default_factory=list)
    invokes: list[Invoke] = field(default_factory=list)
    outputs: Callable[[Invoke], Message | None] | None = None  # None: the worker dies
    holders: dict[bytes, tuple[str, UserRole]] = field(default_factory=dict)  # by the digests of their tokens
    token_checks: list[bytes] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _supervisor: asyncio.Server | None = None
    _worker: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _gateways: set[Connection[Message]] = field(default_factory=set)
    _subscribers: set[Connection[Message]] = field(default_factory=set)

    async def start(self) -> None:
        for folder in (self.paths.workers, self.paths.supervisor):
            folder.mkdir(parents=True, exist_ok=True)
        self.socket = str(self.paths.workers / "text-1.sock")
        self._worker = await asyncio.start_unix_server(self._worker_peer, self.socket)
        await self.start_supervisor()

    async def start_supervisor(self) -> None:
        self._supervisor = await asyncio.start_unix_server(
            self._supervisor_peer, str(self.paths.control_socket)
        )

    async def stop_supervisor(self) -> None:
        """Like a death: every connection ends, nobody listens."""
        assert self._supervisor is not None
        self._supervisor.close()
        self.paths.control_socket.unlink()
        for gateway in self._gateways:
            gateway.abort()

    def publish(self, event: Message) -> None:
        """An event, to all who are connected."""
        for gateway in self._gateways:
            gateway.post(event)

    async def stop(self) -> None:
        for server in (self._supervisor, self._worker):
            assert server is not None
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def question_of(self, request_id: str) -> str:
        return self.generates[request_id].turns[-1].content

    def asked(self, message: str) -> list[Generate]:
        return [each for each in self.generates.values() if each.turns[-1].content == message]

    async def until(self, what: str, request_id: str) -> None:
        """Waits until the request was `cancels`-ed, `settled` or `generates`-d."""
        async with asyncio.timeout(5), self.changed:
            await self.changed.wait_for(lambda: request_id in getattr(self, what))

    async def until_asked(self, count: int) -> None:
        """Waits until this many leases were asked for."""
        async with asyncio.timeout(5), self.changed:
            await self.changed.wait_for(lambda: len(self.requests) >= count)

    async def until_subscribed(self) -> None:
        """Waits until somebody wants to hear of events."""
        async with asyncio.timeout(5), self.changed:
            await self.changed.wait_for(lambda: self._subscribers)

    def tell(self, event: Message) -> None:
        """Sends an event to who wants to hear of them."""
        for peer in self._subscribers:
            peer.post(event)

    async def _notice(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _supervisor_peer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: Connection[Message] = Connection(reader, writer, ToSupervisor)
        self._gateways.add(peer)
        try:
            await peer.greet("supervisor")
            while True:
                match await peer.receive():
                    case Subscribe():
                        self._subscribers.add(peer)
                    case StatusRequest():
                        self.status_requests += 1
                        if not self.mute:
                            peer.post(self.status())
                    case TrafficRequest(request_id=request_id):
                        peer.post(
                            Traffic(request_id=request_id, total=carried(""), interfaces=[carried("eth0")])
                        )
                    case LeaseRequest(request_id=request_id) as request:
                        self.requests.append(request)
                        if self.mute:
                            await self._notice()
                            continue
                        if self.refusal is not None:
                            code, message = self.refusal
                            peer.post(Failure(code=code, message=message, request_id=request_id))
                            continue
                        if self.queue is not None:
                            position, over = self.queue
                            peer.post(LeaseQueued(request_id=request_id, position=position))
                            await over.wait()
                        peer.post(
                            LeaseGranted(
                                request_id=request_id,
                                lease_id=f"lease-{len(self.requests)}",
                                worker="text-1",
                                socket=self.socket,
                                model="m",
                            )
                        )
                    case InvokeLease(request_id=request_id, kind=kind) as lease:
                        self.invoke_leases.append(lease)
                        if kind not in self.models or lease.model not in ("", self.models[kind]):
                            no = f"no worker serves the model {lease.model or kind!r}"
                            peer.post(Failure(code="unknown_model", message=no, request_id=request_id))
                            continue
                        peer.post(
                            LeaseGranted(
                                request_id=request_id,
                                lease_id=request_id,
                                worker="text-1",
                                socket=self.socket,
                                model=self.models[kind],
                            )
                        )
                    case CheckToken(request_id=request_id, digest=digest):
                        self.token_checks.append(digest)
                        if self.mute:
                            continue
                        if digest not in self.holders:
                            peer.post(Failure(code="unknown_token", message="", request_id=request_id))
                            continue
                        name, role = self.holders[digest]
                        peer.post(TokenHolder(request_id=request_id, name=name, role=role))
                    case LeaseSettled(request_id=request_id) as settled:
                        self.settled[request_id] = settled
                await self._notice()
        except Disconnected:
            pass
        finally:
            self._gateways.discard(peer)
            self._subscribers.discard(peer)
            peer.abort()

    async def _worker_peer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: Connection[Message] = Connection(reader, writer, ToWorker)
        stops: dict[str, asyncio.Event] = {}
        try:
            await peer.greet("text-1")
            while True:
                match await peer.receive():
                    case Generate(request_id=request_id) as request:
                        self.generates[request_id] = request
                        stops[request_id] = asyncio.Event()
                        task = asyncio.create_task(self._write(peer, request, stops[request_id]))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
                    case Invoke() as invoke:
                        self.invokes.append(invoke)
                        assert self.outputs is not None
                        answer = self.outputs(invoke)
                        if answer is None:
                            peer.abort()
                        else:
                            peer.post(answer)
                    case Cancel(request_id=request_id):
                        self.cancels.add(request_id)
                        stops[request_id].set()
                await self._notice()
        except Disconnected:
            pass
        finally:
            peer.abort()

    async def _write(self, peer: Connection[Message], request: Generate, stop: asyncio.Event) -> None:
        script = self.scripts.get(request.turns[-1].content, Script())
        key = request.request_id
        usage = Usage(prompt_tokens=len(request.turns), completion_tokens=len(script.pieces))
        for done, total in script.progress:
            peer.post(Progress(request_id=key, done=done, total=total))
        for number, piece in enumerate(script.pieces):
            if number == (0 if script.progress else 1) and script.gate is not None:
                waits = [asyncio.ensure_future(each.wait()) for each in (script.gate, stop)]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()
            if stop.is_set():
                peer.post(Finished(request_id=key, finish_reason=FinishReason.CANCELLED, usage=usage))
                return
            peer.post(Tokens(items=[(key, piece)]))
        match script.end:
            case Failure(code=code, message=message):
                peer.post(Failure(code=code, message=message, request_id=key))
            case None:
                peer.abort()
            case reason:
                peer.post(Finished(request_id=key, finish_reason=reason, usage=usage))

    def status(self) -> Status:
        return Status(
            version="0",
            mode="lan",
            pid=1,
            uptime_s=1.0,
            rss_bytes=1,
            ready=self.ready,
            summary="1 of 1 workers ready" if self.ready else "0 of 1 workers ready",
            leases=0,
            waiting=0,
            requests=len(self.requests),
            prompt_tokens=0,
            completion_tokens=0,
            repairs=[],
            workers=[],
            models=[
                ModelStatus(
                    name="m", kind="text", size_bytes=1, sha256="", shipped=True, loaded_by=["text-1"]
                )
            ],
            tpus=[
                Tpu(
                    id="usb-1-1.2",
                    bus=TpuBus.USB,
                    state=TpuState.READY,
                    node="/dev/bus/usb/001/007",
                    sysfs="/sys/bus/usb/devices/1-1.2",
                    tray="tray-1",
                    slot=2,
                    role=TpuRole.PERCEPTION,
                    load_limit=1.0,
                )
            ],
            trays=[Tray(name="tray-1", slots=16, persona="marina")],
            hotplug=Hotplug.UDEV,
        )


@dataclass
class Served:
    """A gateway that serves: `client` carries the administrator's key, `user_key` is another's."""

    url: str
    key: str
    user_key: str
    paths: Paths
    fake: FakeAppliance
    client: httpx.AsyncClient
    server: uvicorn.Server

    @staticmethod
    def script(
        *,
        pieces: Sequence[str] = ("Hello", " there", "."),
        gate: asyncio.Event | None = None,
        end: FinishReason | Failure | None = FinishReason.STOP,
        progress: Sequence[tuple[int, int]] = (),
    ) -> Script:
        return Script(pieces, gate, end, progress)

    async def connected(self) -> None:
        """Waits until the gateway has found its supervisor."""
        await health_that_is(self.client, 200)


async def health_that_is(client: httpx.AsyncClient, status: int) -> httpx.Response:
    """The first answer of `/health` with this status: what it said a moment ago is good enough for a second."""

    async def ask() -> httpx.Response | None:
        response = await client.get("/health")
        return response if response.status_code == status else None

    return await ask_until(f"/health answers {status}", ask)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Served]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    paths = Paths.under(folder)
    prepare(paths)
    with Database.open(paths) as database:
        _, user_key = ApiKeys(database).create("somebody", Role.USER)
    key = paths.admin_key.read_text().strip()
    paths.run.mkdir()
    fake = FakeAppliance(paths)
    await fake.start()
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    gateway = Gateway(drain_s=1, message_limit_chars=MESSAGE_LIMIT_CHARS, connections_limit=CONNECTIONS_LIMIT)
    settings = Appliance(gateway=gateway)
    # The protocol is named as in a socket made from a descriptor: without it asyncio leaves Nagle's delay of 40 ms on.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with pytest.MonkeyPatch.context() as patch, bound as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        defaults = SupervisorLink.__init__.__kwdefaults__
        assert defaults is not None
        patch.setitem(defaults, "patience_s", PATIENCE_S)
        url = "http://{}:{}".format(*listener.getsockname())
        with warnings.catch_warnings():
            # A test of its own shows that the application asks for what the framework will no longer do.
            warnings.simplefilter("ignore", LitestarDeprecationWarning)
            server = make_server(paths, settings, [listener], ready.set)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            waiting = asyncio.create_task(ready.wait())
            await asyncio.wait([serving, waiting], timeout=20, return_when=asyncio.FIRST_COMPLETED)
        assert ready.is_set(), "the gateway does not start"
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=20) as client:
            found = Served(url, key, user_key, paths, fake, client, server)
            await found.connected()
            yield found
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(20):
            await serving
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    await fake.stop()
    shutil.rmtree(folder)
