"""`coral-reef model load NAME`: lets a model write the replies of the running appliance; replies under way go on to their end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from appliance.client.amounts import size
from appliance.paths import Paths
from appliance.wire.errors import Disconnected, WireError
from appliance.wire.messages import Failure, ModelLoad, ModelLoaded, ModelLoading

from .ask import ANSWER_TIMEOUT_S, connected
from .exit_status import ExitStatus, Failed
from .model_names import complete_text_model
from .place import add_place_options, paths_of
from .tables import print_json

#: Starting the worker's process comes on top of the supervisor's own time for loading.
GRACE_S = 90.0


def add_parser(actions: Any) -> None:
    parser = actions.add_parser(
        "load",
        help="let one write the replies",
        description="Loads a model into the running appliance. New replies come from it as soon as it is ready; those under way "
        "end on the one before. Holds until another is loaded or text.model in appliance.toml is changed.",
    )
    named = parser.add_argument("name", metavar="NAME", help="as 'coral-reef model list' shows it")
    named.completer = complete_text_model
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    add_place_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    loaded = load(paths_of(arguments), arguments.name)
    if arguments.json:
        print_json(loaded)
    else:
        show(loaded)
    return ExitStatus.OK


def show(loaded: ModelLoaded) -> None:
    """Prints what has happened."""
    print(
        f"{loaded.model} writes the replies now: worker {loaded.worker}, {loaded.context_tokens} tokens a reply"
    )
    if loaded.draining:
        replies = "1 reply goes" if loaded.draining == 1 else f"{loaded.draining} replies go"
        print(f"{replies} on with the model before until they end")


def load(paths: Paths, name: str) -> ModelLoaded:
    """Asks the supervisor and waits until the model is live, saying so on a terminal. Failed with the reason when it is not."""
    try:
        with waiting() as say:
            return asyncio.run(_load(paths, name, say))
    except Disconnected:
        raise Failed("the supervisor ended before it answered", ExitStatus.UNAVAILABLE) from None
    except TimeoutError:
        raise Failed("the supervisor did not answer in time", ExitStatus.UNAVAILABLE) from None
    except WireError as error:
        raise Failed(str(error)) from None


async def _load(paths: Paths, name: str, say: Callable[[str], None]) -> ModelLoaded:
    async with asyncio.timeout(ANSWER_TIMEOUT_S) as patience, connected(paths) as connection:
        await connection.send(ModelLoad(request_id="load", model=name))
        while True:
            match await connection.receive():
                case ModelLoading(worker=worker, size_bytes=size_bytes, deadline_s=deadline_s):
                    patience.reschedule(asyncio.get_running_loop().time() + deadline_s + GRACE_S)
                    say(f"loading {name} ({size(size_bytes)}) on {worker}")
                case ModelLoaded() as loaded:
                    return loaded
                case Failure(message=message):
                    raise Failed(message)


@contextlib.contextmanager
def waiting() -> Iterator[Callable[[str], None]]:
    """A line with the time that has passed, on a terminal's standard error; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    began = time.monotonic()
    with console.status("asking the supervisor") as status:

        class Clock:
            """Renders anew at each refresh."""

            text = "asking the supervisor"

            def __rich__(self) -> str:
                return f"{self.text}: {time.monotonic() - began:.0f} s"

        clock = Clock()
        status.update(clock)

        def say(text: str) -> None:
            clock.text = text

        yield say
