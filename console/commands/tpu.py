"""`tpu`: the Edge TPUs and their trays."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

from appliance.client.tpus import change_line, tpu_lines, tpus_parts
from appliance.wire.messages import EventsLost, Status, Topic, TpuChanged, TpuQuarantine, TpuReset
from console.context import Context
from console.errors import CommandFailed

from .command import Command, only

#: A reset takes some tenths of a second; a port that hangs, much longer.
ORDER_TIMEOUT_S = 60.0

NAMED = ("show", "reset", "quarantine")


async def run(context: Context, words: Sequence[str]) -> None:
    action, names = only(COMMAND, words, "list", "watch", *NAMED, names=1)
    if (action in NAMED) != bool(names):
        raise CommandFailed(f"it goes like this:\n{COMMAND.help()}")
    match action:
        case "list":
            context.terminal.show(tpus_parts(await context.status()))
        case "watch":
            await _watch(context)
        case "show":
            found = [tpu for tpu in (await context.status()).tpus if tpu.id == names[0]]
            if not found:
                raise CommandFailed(f"no TPU is called {names[0]!r}; 'tpu list' shows them")
            context.terminal.show(tpu_lines(found[0]))
        case "reset":
            context.require_admin()
            await context.order(TpuReset(request_id="-", id=names[0]), timeout_s=ORDER_TIMEOUT_S)
        case "quarantine":
            context.require_admin()
            await context.order(TpuQuarantine(request_id="-", id=names[0]), timeout_s=ORDER_TIMEOUT_S)


async def _watch(context: Context) -> None:
    context.terminal.show(change_line(tpu) for tpu in (await context.status()).tpus)
    context.say("What changes from now on; Ctrl-C ends.")
    async with aclosing(context.control.events([Topic.TPU])) as events:
        async for event in events:
            await context.terminal.line.room()
            match event:
                case TpuChanged(tpu=tpu):
                    context.say(change_line(tpu))
                case EventsLost(count=count):
                    context.say(f"({count} changes were too fast to be told)")


def complete(words: Sequence[str], known: Status | None) -> Sequence[str]:
    if not words:
        return ("list", "watch", *NAMED)
    return [tpu.id for tpu in known.tpus] if known and words[0] in NAMED and len(words) == 1 else ()


COMMAND = Command(
    "tpu",
    "the Edge TPUs, and a drawing of the tower",
    (
        ("tpu", "lists them and draws the tower"),
        ("tpu show TPU", "all that is known of one"),
        ("tpu watch", "a line for each change, until Ctrl-C"),
        ("tpu reset TPU", "resets one and uses it again"),
        ("tpu quarantine TPU", "uses one no more, until it is reset"),
    ),
    run,
    complete,
)
