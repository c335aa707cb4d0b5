"""Every message of the protocol. A frame holds one of them, as msgpack, its name in the field `type`.

Two kinds of connection: to the supervisor's control socket (leases, status) and to a worker's socket (`Generate` and what follows
from it). Either side's first message is `Hello`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

#: Raised whenever a message changes its meaning; processes of different versions do not talk.
PROTOCOL_VERSION = 1

Id = Annotated[str, Meta(min_length=1, max_length=64)]
Text = Annotated[str, Meta(max_length=262_144)]


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=True, kw_only=True):
    """Base of everything that travels."""


class Hello(Message, frozen=True, kw_only=True):
    """First message in either direction: who speaks, in which version."""

    version: int = PROTOCOL_VERSION
    name: Annotated[str, Meta(max_length=64)]


class Failure(Message, frozen=True, kw_only=True):
    """The answer to a message that could not be carried out. `request_id` is empty when none could be read."""

    code: Annotated[str, Meta(max_length=64)]
    message: Annotated[str, Meta(max_length=4096)]
    request_id: Annotated[str, Meta(max_length=64)] = ""


def failure(code: str, error: Exception | str, request_id: str = "") -> Failure:
    """A Failure with its text cut to length: an error may quote whatever a peer or an engine said."""
    return Failure(code=code, message=str(error)[:1024], request_id=request_id)


def protocol_failure(error: Exception) -> Failure:
    """The last thing that a peer hears which did not speak our protocol."""
    return failure("protocol", error)


# --- control socket ---------------------------------------------------------------------------------------------


class LeaseRequest(Message, frozen=True, kw_only=True):
    """A gateway asks for a place on a worker. The session is locked until the lease ends.

    `model` is empty for the default model, `adapter` for none.
    """

    request_id: Id
    session_id: Id
    model: Annotated[str, Meta(max_length=128)] = ""
    adapter: Annotated[str, Meta(max_length=128)] = ""


class LeaseQueued(Message, frozen=True, kw_only=True):
    """The request waits. `position` is its place among those for the same model and adapter, 1 for the next.

    Sent when it begins to wait and again as it moves up: within about half a second, beyond the tenth place only after a tenth of
    the way.
    """

    request_id: Id
    position: Annotated[int, Meta(ge=1)]


class LeaseGranted(Message, frozen=True, kw_only=True):
    """The place: stream from the worker at `socket`, then settle."""

    request_id: Id
    lease_id: Id
    worker: Annotated[str, Meta(max_length=64)]
    socket: Annotated[str, Meta(max_length=107)]
    model: Annotated[str, Meta(max_length=128)]
    adapter: Annotated[str, Meta(max_length=128)] = ""


class LeaseSettled(Message, frozen=True, kw_only=True):
    """The gateway gives the place back, or withdraws a request that still waits. Tokens are those of the finished request."""

    request_id: Id
    prompt_tokens: Annotated[int, Meta(ge=0)] = 0
    completion_tokens: Annotated[int, Meta(ge=0)] = 0


class StatusRequest(Message, frozen=True, kw_only=True):
    """Asks for a `Status`."""


class WorkerState(StrEnum):
    """Life of a worker, as its keeper sees it."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"  # finishes its streams, takes no new ones
    STOPPING = "stopping"
    WAITING = "waiting"  # died; waits for its restart


class EngineBuild(msgspec.Struct, frozen=True, kw_only=True):
    """The engine that a worker runs: `build` is `wheel` for the portable one, `native` for one built for this CPU; `features` are
    the instruction sets that it uses, as it names them."""

    version: str
    build: str
    features: list[str] = []


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker. Memory is the resident set in bytes; `since_s` the seconds in this state."""

    name: str
    kind: str
    model: str
    state: WorkerState
    pid: int
    leases: int
    slots: int
    restarts: int
    rss_bytes: int
    since_s: float
    detail: str = ""
    engine: EngineBuild | None = None


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model that the appliance knows."""

    name: str
    kind: str
    size_bytes: int
    sha256: str
    shipped: bool
    loaded_by: list[str]
    context_tokens: int = 0
    problem: str = ""


class Severity(StrEnum):
    """How much a repair matters."""

    WARNING = "warning"  # works, but not as the owner thinks or for long
    ERROR = "error"  # something that the owner wants does not work
    CRITICAL = "critical"  # nothing that the owner wants works


class Repair(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the owner should know and may have to do; gone when it is gone.

    `id` is `kind` and `subject`; `since` in seconds since 1970; `fix` says what `RepairFix` would do, empty when nothing can.
    """

    id: str
    kind: str
    subject: str
    severity: Severity
    since: float
    what: str
    advice: str
    fix: str = ""


class ModelLoad(Message, frozen=True, kw_only=True):
    """Let the model of that name write the replies from now on. Answered by `ModelLoading`, then `ModelLoaded` or `Failure`."""

    request_id: Id
    model: Annotated[str, Meta(min_length=1, max_length=128)]


class ModelLoading(Message, frozen=True, kw_only=True):
    """A worker has begun to load the model; it is given up after `deadline_s`."""

    request_id: Id
    model: str
    worker: str
    size_bytes: int
    deadline_s: float


class ModelLoaded(Message, frozen=True, kw_only=True):
    """New replies come from `model` now, on `worker`; `draining` replies go on on the one before until they end."""

    request_id: Id
    model: str
    worker: str
    context_tokens: int
    draining: int


class Status(Message, frozen=True, kw_only=True):
    """The appliance as the supervisor sees it. `summary` is the line that systemd shows; `model` is the one that writes the
    replies, and `configured_model` what appliance.toml says (another one when `coral-reef model load` chose). Repairs come worst
    first."""

    version: str
    mode: str
    pid: int
    uptime_s: float
    rss_bytes: int
    ready: bool
    summary: str
    leases: int
    waiting: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    repairs: list[Repair]
    workers: list[WorkerStatus]
    models: list[ModelStatus]
    model: str = ""
    configured_model: str = ""


class Reload(Message, frozen=True, kw_only=True):
    """Read the configuration again. `Done` says what changed; `Failure` why everything stays as it was."""

    request_id: Id


class WorkerRestart(Message, frozen=True, kw_only=True):
    """Let a worker finish its streams and start it anew. `Done` when it is ready again."""

    request_id: Id
    name: Annotated[str, Meta(max_length=64)]


class RepairFix(Message, frozen=True, kw_only=True):
    """Do what the repair's `fix` says. `Done` when it was done, not when the trouble is over: that is an event."""

    request_id: Id
    id: Annotated[str, Meta(max_length=256)]


class Done(Message, frozen=True, kw_only=True):
    """A request to the supervisor was carried out; `detail` is a sentence for people."""

    request_id: Id
    detail: str = ""


class Topic(StrEnum):
    """What one can subscribe to."""

    WORKER = "worker"
    REPAIR = "repair"
    SYSTEM = "system"


class Subscribe(Message, frozen=True, kw_only=True):
    """From now on, send the events of these topics; all when none is named."""

    topics: Annotated[list[Topic], Meta(max_length=16)] = []


class WorkerChanged(Message, frozen=True, kw_only=True):
    """A worker entered another state."""

    worker: WorkerStatus


class RepairChanged(Message, frozen=True, kw_only=True):
    """A repair appeared, changed, or is `gone`."""

    repair: Repair
    gone: bool = False


class SystemChanged(Message, frozen=True, kw_only=True):
    """Something happened to the appliance as a whole: `reloaded`, `reload_refused`, `stopping`."""

    event: str
    detail: str = ""


class EventsLost(Message, frozen=True, kw_only=True):
    """The subscriber was too slow: so many events before the next one were left out, the oldest first."""

    count: int


Event = WorkerChanged | RepairChanged | SystemChanged


# --- worker socket ---------------------------------------------------------------------------------------------


class Turn(msgspec.Struct, frozen=True):
    """One message of a conversation, for the model's chat template."""

    role: Annotated[str, Meta(pattern="^(system|user|assistant|tool)$")]
    content: Text


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How to draw tokens. Greedy at temperature 0; `seed` makes a draw repeatable."""

    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Meta(ge=1, le=32_768)] = 256
    stop: Annotated[list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=16)] = []
    seed: Annotated[int, Meta(ge=0, le=0xFFFF_FFFE)] | None = None


class Generate(Message, frozen=True, kw_only=True):
    """Continue a conversation. The worker leaves out the oldest turns, never the system prompt, when the window is too small."""

    request_id: Id
    turns: Annotated[list[Turn], Meta(min_length=1, max_length=1024)]
    sampling: Sampling
    adapter: Annotated[str, Meta(max_length=128)] = ""


class Cancel(Message, frozen=True, kw_only=True):
    """Stop a generation; it ends with `Finished(cancelled)`."""

    request_id: Id


class Tokens(Message, frozen=True, kw_only=True):
    """New text of any number of streams: (request_id, text) pairs, those of one wake-up together."""

    items: list[tuple[str, str]]


class Progress(Message, frozen=True, kw_only=True):
    """How much of a long prompt has been read: `done` of `total` tokens. Not more often than four times a second."""

    request_id: Id
    done: Annotated[int, Meta(ge=0)]
    total: Annotated[int, Meta(ge=0)]


class FinishReason(StrEnum):
    """Why a reply ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL = "tool"
    CANCELLED = "cancelled"
    ERROR = "error"


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that a request used; `cached_tokens` of the prompt were still in the engine from before."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Finished(Message, frozen=True, kw_only=True):
    """The last message of a stream that did not fail."""

    request_id: Id
    finish_reason: FinishReason
    usage: Usage


# --- forkserver and worker pipe -----------------------------------------------------------------------------------


class AdapterFile(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter for a worker's model."""

    name: str
    path: str
    sha256: str
    size_bytes: int


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All that a worker needs to know. `folder` is its own, mode 0700; `socket` is where gateways connect."""

    name: str
    kind: str
    model: str
    model_path: str
    model_sha256: str
    model_size_bytes: int
    socket: str
    folder: str
    slots: int
    threads: int
    context_tokens: int
    batch_tokens: int  # 0: measured
    cache_mib: int
    adapters: list[AdapterFile] = []


class Spawn(Message, frozen=True, kw_only=True):
    """To the forkserver, with the worker's pipe as file descriptor: fork a worker."""

    spec: WorkerSpec


class Spawned(Message, frozen=True, kw_only=True):
    """The worker's process."""

    name: str
    pid: int


class Exited(Message, frozen=True, kw_only=True):
    """A worker ended; `status` as waitpid(2) gives it."""

    pid: int
    status: int


class WorkerReady(Message, frozen=True, kw_only=True):
    """Through the worker's pipe: the model is loaded and the socket listens. The window is that of one slot; `step_s` is what
    a step of `batch_tokens` takes at its end, 0 when it was not measured; `adapters` are the names of those that were loaded
    with the model, `refused` those that were not, each with the reason."""

    context_tokens: int
    load_s: float
    engine: EngineBuild | None = None
    adapters: list[str] = []
    refused: dict[str, str] = {}
    batch_tokens: int = 0
    step_s: float = 0.0


class WorkerPulse(Message, frozen=True, kw_only=True):
    """Through the worker's pipe, every two seconds: a count of the engine's steps that grows as long as it works, how long a
    step takes, and the streams under way."""

    steps: int
    step_s: float
    streams: int


class WorkerFailed(Message, frozen=True, kw_only=True):
    """Through the worker's pipe: why it ends now."""

    code: str
    message: str


ToSupervisor = (
    Hello
    | LeaseRequest
    | LeaseSettled
    | StatusRequest
    | Subscribe
    | Reload
    | WorkerRestart
    | RepairFix
    | ModelLoad
)
FromSupervisor = (
    Hello
    | Failure
    | LeaseQueued
    | LeaseGranted
    | Status
    | Done
    | WorkerChanged
    | RepairChanged
    | SystemChanged
    | EventsLost
    | ModelLoading
    | ModelLoaded
)
ToWorker = Hello | Generate | Cancel
FromWorker = Hello | Failure | Tokens | Progress | Finished
ToForkserver = Spawn | Hello
FromForkserver = Hello | Spawned | Exited
FromWorkerPipe = WorkerReady | WorkerPulse | WorkerFailed
