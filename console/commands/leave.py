"""`exit`: the end of the session."""

from __future__ import annotations

from collections.abc import Sequence

from console.context import Context

from .command import Command, only


async def run(context: Context, words: Sequence[str]) -> None:
    only(COMMAND, words, "")
    context.leaving = True


COMMAND = Command("exit", "log out", (("exit", "logs out; so does Ctrl-D"),), run, aliases=("logout", "quit"))
