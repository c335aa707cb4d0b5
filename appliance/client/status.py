"""The whole appliance in some lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from appliance.wire.messages import EngineBuild, Status

from .amounts import duration
from .repairs import repair_lines
from .screen import Part
from .workers import WIDE_COLUMNS, workers_table

#: The builds of the engine of embedding and emotion models.
LITERT = {"xnnpack": "models on the CPU (XNNPACK)", "libedgetpu": "models on Edge TPUs (libedgetpu)"}


def engine_in_words(engine: EngineBuild) -> str:
    """Which build of the engine runs, and how to get a faster one."""
    if engine.build in LITERT:
        return f"engine: LiteRT {engine.version}, {LITERT[engine.build]}"
    if engine.build == "native":
        build = "built for this CPU"
    else:
        build = "the portable build; 'make native' makes one for this CPU, faster for larger models"
    return f"engine: xllamacpp {engine.version}, {build} ({' '.join(engine.features)})"


def status_parts(
    status: Status, *, command: str = "coral-reef ", columns: int = WIDE_COLUMNS
) -> Iterator[Part]:
    """What runs, what it does, what is wrong, for a screen of so many columns. `command` as for `repair_lines`."""
    state = "ready" if status.ready else "not ready"
    yield (
        f"Coral-Reef {status.version} is {state}: {status.summary}; mode {status.mode}; up {duration(status.uptime_s)}"
    )
    yield (
        f"{status.leases} replies now, {status.waiting} waiting; {status.requests} so far "
        f"({status.prompt_tokens} tokens read, {status.completion_tokens} written)"
    )
    yield workers_table(status.workers, columns=columns)
    if status.model != status.configured_model:
        yield f"{status.model} was chosen with '{command}model load'; appliance.toml says {status.configured_model}"
    if status.tpus:
        counts = Counter(tpu.state.replace("_", " ") for tpu in status.tpus)
        yield f"TPUs: {', '.join(f'{count} {state}' for state, count in counts.items())}"
    if status.usb is not None:
        yield f"USB: {status.usb.in_words}"
    yield from dict.fromkeys(engine_in_words(worker.engine) for worker in status.workers if worker.engine)
    yield from repair_lines(status.repairs, command=command)
