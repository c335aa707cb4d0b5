"""`watch`: the status as it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from appliance.client.tpus import change_line
from appliance.wire.messages import (
    EventsLost,
    Message,
    RepairChanged,
    SystemChanged,
    TpuChanged,
    WorkerChanged,
)
from console.context import Context
from console.live import drawing

from .command import Command, only

#: How often the screen is drawn anew: 2 kB each time, a fifth of a UART's second.
PERIOD_S = 1.0


async def run(context: Context, words: Sequence[str]) -> None:
    only(COMMAND, words, "")
    if context.terminal.dumb:
        await _tell(context)
    else:
        await _draw(context)


async def _draw(context: Context) -> None:
    """The whole screen, again and again."""
    async with drawing(context.terminal) as draw:
        while True:
            await draw(await context.status_parts())
            await asyncio.sleep(PERIOD_S)


async def _tell(context: Context) -> None:
    """A line for each change, where the cursor cannot be moved."""
    context.terminal.show(await context.status_parts())
    context.say("What changes from now on; Ctrl-C ends.")
    async with aclosing(context.control.events()) as events:
        async for line in _lines(events):
            await context.terminal.line.room()
            context.say(line)


async def _lines(events: AsyncIterator[Message]) -> AsyncIterator[str]:
    async for event in events:
        match event:
            case WorkerChanged(worker=worker):
                yield f"worker {worker.name}: {worker.state}{f', {worker.detail}' if worker.detail else ''}"
            case RepairChanged(repair=repair, gone=gone):
                yield f"{'no longer: ' if gone else ''}{repair.severity}: {repair.what}"
            case TpuChanged(tpu=tpu):
                yield change_line(tpu)
            case SystemChanged(event=what, detail=detail):
                yield f"{what.replace('_', ' ')}{f': {detail}' if detail else ''}"
            case EventsLost(count=count):
                yield f"({count} changes were too fast to be told)"


COMMAND = Command(
    "watch",
    "the status, live",
    (("watch", "shows the status and what changes, until Ctrl-C"),),
    run,
)
