"""`coral-reef status`: what runs, what it does, what is wrong."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from appliance.wire.messages import EngineBuild, Status

from .ask import ask_status
from .exit_status import ExitStatus
from .place import add_place_options, paths_of
from .repair import show_repairs
from .tables import duration, print_json
from .worker import show_workers


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "status", help="show what the appliance does", description="Shows workers, requests and repairs."
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    add_place_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    status = ask_status(paths_of(arguments))
    if arguments.json:
        print_json(status)
    else:
        show(status)
    return ExitStatus.OK if status.ready else ExitStatus.FAILED


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


def show(status: Status) -> None:
    """Prints the status for people."""
    state = "ready" if status.ready else "not ready"
    print(
        f"Coral-Reef {status.version} is {state}: {status.summary}; mode {status.mode}; up {duration(status.uptime_s)}"
    )
    print(
        f"{status.leases} replies now, {status.waiting} waiting; {status.requests} so far "
        f"({status.prompt_tokens} tokens read, {status.completion_tokens} written)"
    )
    show_workers(status.workers)
    if status.model != status.configured_model:
        print(
            f"{status.model} was chosen with 'coral-reef model load'; appliance.toml says {status.configured_model}"
        )
    if status.tpus:
        counts = Counter(tpu.state.replace("_", " ") for tpu in status.tpus)
        print(f"TPUs: {', '.join(f'{count} {state}' for state, count in counts.items())}")
    if status.usb is not None:
        print(f"USB: {status.usb.in_words}")
    for build in dict.fromkeys(engine_in_words(worker.engine) for worker in status.workers if worker.engine):
        print(build)
    show_repairs(status.repairs)
