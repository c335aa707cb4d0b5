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
    """A gateway asks for a place on a worker. The session is locked until the lease ends."""

    request_id: Id
    session_id: Id
    model: Annotated[str, Meta(max_length=128)] = ""


class LeaseGranted(Message, frozen=True, kw_only=True):
    """The place: stream from the worker at `socket`, then settle."""

    request_id: Id
    lease_id: Id
    worker: Annotated[str, Meta(max_length=64)]
    socket: Annotated[str, Meta(max_length=107)]
    model: Annotated[str, Meta(max_length=128)]


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
    STOPPING = "stopping"
    WAITING = "waiting"  # died; waits for its restart


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


class Status(Message, frozen=True, kw_only=True):
    """The appliance as the supervisor sees it. `summary` is the line that systemd shows."""

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
    warnings: list[str]
    workers: list[WorkerStatus]
    models: list[ModelStatus]


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
    a step of `batch_tokens` takes at its end, 0 when it was not measured."""

    context_tokens: int
    load_s: float
    batch_tokens: int = 0
    step_s: float = 0.0


class WorkerFailed(Message, frozen=True, kw_only=True):
    """Through the worker's pipe: why it ends now."""

    code: str
    message: str


ToSupervisor = Hello | LeaseRequest | LeaseSettled | StatusRequest
FromSupervisor = Hello | Failure | LeaseGranted | Status
ToWorker = Hello | Generate | Cancel
FromWorker = Hello | Failure | Tokens | Progress | Finished
ToForkserver = Spawn
FromForkserver = Hello | Spawned | Exited
FromWorkerPipe = WorkerReady | WorkerFailed
