"""The settings of `appliance.toml`: what the software does, whatever the network looks like."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from appliance.config.forms import ModelName, Name


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every table of the owner's files: immutable, and strict about keys."""


class Gateway(Section, frozen=True):
    """The HTTP server; where it listens stands in `network.yaml`, under `api`."""

    processes: Annotated[
        int, Meta(ge=0, le=64, description="Processes that share the port; 0: one for each core.")
    ] = 0
    connections_limit: Annotated[
        int, Meta(ge=16, le=65_536, description="Open connections of each process; more get 503.")
    ] = 1024
    message_limit_chars: Annotated[int, Meta(ge=1, le=100_000, description="Longest chat message.")] = 8000
    body_limit_bytes: Annotated[int, Meta(ge=1024, le=1_048_576, description="Largest request body.")] = (
        65_536
    )
    drain_s: Annotated[
        float, Meta(ge=0, le=600, description="How long running replies may go on when it stops.")
    ] = 10.0


class Chat(Section, frozen=True):
    """Defaults of a conversation; a request may say otherwise."""

    default_persona: Annotated[Name, Meta(description="Who answers when nobody is named.")] = "coral"
    max_tokens: Annotated[int, Meta(ge=1, le=32_768, description="Longest reply.")] = 256
    temperature: Annotated[float, Meta(ge=0, le=2, description="0 always takes the likeliest token.")] = 0.2
    top_p: Annotated[
        float, Meta(gt=0, le=1, description="Share of the likeliest tokens that are drawn from.")
    ] = 0.95
    history_messages: Annotated[
        int, Meta(ge=2, le=512, description="Newest messages of a conversation that the model is shown.")
    ] = 64


class Text(Section, frozen=True):
    """The worker that runs the language model."""

    model: Annotated[ModelName, Meta(description="Which model to load.")] = "coral-reef-chat"
    slots: Annotated[int, Meta(ge=1, le=128, description="Replies generated at the same time.")] = 16
    threads: Annotated[int, Meta(ge=1, le=256, description="Threads of the engine.")] = 1
    context_tokens: Annotated[
        int, Meta(ge=0, le=131_072, description="Window of one reply; 0: as the model was trained.")
    ] = 0
    batch_tokens: Annotated[
        int, Meta(ge=0, le=4096, description="Tokens that the engine takes in one step; 0: as measured.")
    ] = 0
    cache_mib: Annotated[
        int, Meta(ge=0, le=65_536, description="Memory for prompts seen before; 0: none.")
    ] = 64
    memory_limit_mib: Annotated[
        int, Meta(ge=0, le=1_048_576, description="A worker that needs more is restarted; 0: no limit.")
    ] = 2048


class PlacementName(StrEnum):
    """How a worker is chosen for a request."""

    AFFINITY = "affinity"  # the one that the session had last, else the least loaded
    LEAST_LOADED = "least_loaded"
    ROUND_ROBIN = "round_robin"


class Scheduler(Section, frozen=True):
    """Which worker a request gets, and how long it waits for one."""

    placement: Annotated[
        PlacementName, Meta(description="How a worker is chosen; affinity: the one the session had last.")
    ] = PlacementName.AFFINITY
    queue_limit: Annotated[
        int, Meta(ge=1, le=10_000, description="How many may wait; more are turned away at once.")
    ] = 256
    queue_timeout_s: Annotated[
        float, Meta(ge=0.1, le=600, description="How long one waits before it is turned away.")
    ] = 10.0


class Supervisor(Section, frozen=True):
    """The process that starts and heals the others."""

    drain_s: Annotated[
        float, Meta(ge=0, le=600, description="How long workers may finish when the appliance stops.")
    ] = 10.0
    restart_delay_s: Annotated[
        float, Meta(ge=0, le=600, description="Pause before a worker that died is started again.")
    ] = 0.1


class Appliance(Section, frozen=True):
    """All of `appliance.toml`."""

    gateway: Gateway = Gateway()
    chat: Chat = Chat()
    text: Text = Text()
    scheduler: Scheduler = Scheduler()
    supervisor: Supervisor = Supervisor()


def by_key(settings: msgspec.Struct) -> dict[str, object]:
    """Every setting by its `section.key`."""
    found: dict[str, object] = {}
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if isinstance(value, Section):
            found |= {f"{name}.{key}": getattr(value, key) for key in value.__struct_fields__}
        else:
            found[name] = value
    return found


def gateway_part(appliance: Appliance) -> dict[str, object]:
    """What the gateway's processes are given when they start, by its keys; the rest is the supervisor's alone."""
    return {
        key: value
        for key, value in by_key(appliance).items()
        if key.startswith(("gateway.", "chat.")) or key == "scheduler.queue_timeout_s"
    }
