"""What a command is. Each has a file of its own, with a COMMAND in it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.wire.messages import Status
from console.context import Context
from console.errors import CommandFailed


def nothing(_words: Sequence[str], _known: Status | None) -> Sequence[str]:
    """Where there is nothing to complete."""
    return ()


@dataclass(frozen=True)
class Command:
    """`usage` holds a line for each way to use it: what is typed, two spaces, what it does. `complete` is given the words before
    the one that is typed, the command's own left out, and what is known of the appliance."""

    name: str
    summary: str
    usage: tuple[tuple[str, str], ...]
    run: Callable[[Context, Sequence[str]], Coroutine[Any, Any, None]]
    complete: Callable[[Sequence[str], Status | None], Sequence[str]] = nothing
    aliases: tuple[str, ...] = ()

    def help(self) -> str:
        """All of its usage."""
        width = max(len(typed) for typed, _ in self.usage)
        return "\n".join(f"  {typed:<{width}}  {does}" for typed, does in self.usage)


def wrong_usage(command: Command) -> CommandFailed:
    """What is said of words that a command does not know."""
    return CommandFailed(f"it goes like this:\n{command.help()}")


def only(command: Command, words: Sequence[str], *actions: str, names: int = 0) -> tuple[str, Sequence[str]]:
    """The action and its arguments, of a command with several; no word means the first of them. CommandFailed (its usage) for
    anything else."""
    action, *rest = words or [actions[0]]
    if action not in actions or len(rest) > names:
        raise wrong_usage(command)
    return action, rest
