"""`status`: what runs, what it does, what is wrong."""

from __future__ import annotations

from collections.abc import Sequence

from console.context import Context

from .command import Command, only


async def run(context: Context, words: Sequence[str]) -> None:
    only(COMMAND, words, "")
    context.terminal.show(await context.status_parts())


COMMAND = Command(
    "status",
    "what runs, what it does, what is wrong",
    (("status", "shows workers, replies, TPUs and repairs"),),
    run,
)
