"""`help`: what can be typed."""

from __future__ import annotations

from collections.abc import Sequence

from console.context import Context
from console.errors import CommandFailed

from .command import Command

KEYS = """\
Tab completes, ? tells what can come next, the arrow keys bring back what was typed before.
Ctrl-C ends what runs, Ctrl-D logs out."""


async def run(context: Context, words: Sequence[str]) -> None:
    context.say(told(words))


def told(words: Sequence[str]) -> str:
    """What there is to say about a command, or about all. CommandFailed for one that there is not."""
    from . import BY_NAME, COMMANDS

    if not words:
        lines = [f"  {each.name:<10}{each.summary}" for each in COMMANDS]
        return "\n".join([*lines, KEYS])
    command = BY_NAME.get(words[0])
    if command is None:
        raise CommandFailed(f"there is no command {words[0]!r}; 'help' lists them")
    return command.help()


def complete(words: Sequence[str], _known: object) -> Sequence[str]:
    from . import COMMANDS

    return () if words else [each.name for each in COMMANDS]


COMMAND = Command(
    "help",
    "what can be typed",
    (("help [COMMAND]", "tells of all commands, or of one"),),
    run,
    complete,
    aliases=("?",),
)
