"""The settings of `appliance.toml`: what the software does, whatever the network looks like."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from appliance.config.forms import ModelName, Name, OptionalFilePath, OptionalName, TpuPort


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


class Inference(Section, frozen=True):
    """The workers that run the embedding and emotion models: on TPUs, and on the CPU where there are none."""

    cpu_threads: Annotated[
        int, Meta(ge=1, le=64, description="Threads that run these models on the CPU.")
    ] = 1
    invoke_limit_s: Annotated[
        float,
        Meta(ge=0.5, le=60, description="A TPU that has not answered then is stuck: its worker is ended."),
    ] = 2.0
    memory_limit_mib: Annotated[
        int, Meta(ge=0, le=1_048_576, description="A worker that needs more is restarted; 0: no limit.")
    ] = 1024


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


class LayoutName(StrEnum):
    """The trays of a tower: its layers by the TPUs in each."""

    ONE_TRAY = "one_tray"  # everything that is attached
    L4X8 = "4x8"
    L4X12 = "4x12"
    L4X16 = "4x16"
    L6X8 = "6x8"
    L6X12 = "6x12"
    L6X16 = "6x16"
    L8X8 = "8x8"
    L8X12 = "8x12"
    L8X16 = "8x16"


class Tray(Section, frozen=True):
    """One layer of a tower that is wired in its own way."""

    name: Annotated[Name, Meta(description="What it is called.")]
    slots: Annotated[
        list[TpuPort], Meta(min_length=1, max_length=64, description="Its ports, in the order of its slots.")
    ]
    identity: Annotated[
        OptionalFilePath, Meta(description="Where its identity lies, as JSON; empty: see devices.identity.")
    ] = ""
    persona: Annotated[OptionalName, Meta(description="Whom it is bound to, unless its identity says.")] = ""


class Devices(Section, frozen=True):
    """The Edge TPUs: where they are attached, and how hot they may get."""

    layout: Annotated[LayoutName, Meta(description="The tower: layers x slots; one_tray: as it comes.")] = (
        LayoutName.ONE_TRAY
    )
    throttle_c: Annotated[
        float,
        Meta(ge=30, le=110, description="From here on a TPU gets half of its work, in degrees Celsius."),
    ] = 80.0
    shutdown_c: Annotated[
        float, Meta(ge=30, le=110, description="From here on it gets none, in degrees Celsius.")
    ] = 90.0
    hysteresis_c: Annotated[
        float, Meta(ge=0.5, le=30, description="So much cooler it must be to get more again.")
    ] = 5.0
    identity: Annotated[
        OptionalFilePath,
        Meta(
            description="Where a tray's identity lies, as JSON; {tray} stands for its number; empty: nowhere."
        ),
    ] = ""
    trays: Annotated[
        list[Tray],
        Meta(max_length=32, description="Trays that are wired in another way; layout does not count then."),
    ] = []


class Console(Section, frozen=True):
    """The serial console."""

    idle_logout_s: Annotated[
        float,
        Meta(ge=0, le=86_400, description="Who has typed nothing for so long is logged out; 0: nobody is."),
    ] = 600.0


class Appliance(Section, frozen=True):
    """All of `appliance.toml`."""

    gateway: Gateway = Gateway()
    chat: Chat = Chat()
    text: Text = Text()
    inference: Inference = Inference()
    scheduler: Scheduler = Scheduler()
    devices: Devices = Devices()
    console: Console = Console()
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
