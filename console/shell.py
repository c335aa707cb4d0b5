"""Reads commands and runs them, until the person leaves."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence

from appliance.client.screen import printable

from .commands import BY_NAME, COMMANDS
from .commands.help import told
from .context import NAMES_AGE_S, Context
from .editor import Helper, Interrupted, editor_for
from .errors import CommandFailed
from .history import history_of
from .login import is_probe

PROMPT = "coral-reef> "


class Shell:
    """One person's; `run` returns when they leave."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._history = history_of(context.paths.console_history, context.person.name)
        self._editor = editor_for(context.terminal, Helper(self._history, self.complete, self.explain))
        self._names_at = float("-inf")

    async def run(self) -> None:
        """Returns when the person leaves; the history is kept however the session ends."""
        context = self._context
        try:
            while not context.leaving:
                await self._look_up_names()
                try:
                    line = await context.ask_with(self._editor, PROMPT)
                except Interrupted:
                    continue
                except EOFError:
                    return
                await self.do(line)
        finally:
            self._history.save()

    async def do(self, line: str) -> None:
        """Runs one line; what goes wrong is said."""
        context = self._context
        if is_probe(line):
            return
        try:
            words = shlex.split(printable(line))
        except ValueError as error:
            context.say(f"{error}: a quotation that begins must end")
            return
        if not words:
            return
        name, *rest = words
        command = BY_NAME.get(name)
        if command is None:
            context.say(f"There is no command {name!r}; 'help' lists them.")
            return
        try:
            await context.interruptible(command.run(context, rest))
        except Interrupted:
            context.say("^C")
        except EOFError:
            context.say("")
        except CommandFailed as error:
            context.say(f"{name}: {error}")

    def complete(self, text: str) -> Sequence[str]:
        """What the last word of a line that has begun so may become."""
        *before, begun = text.split(" ")
        words = [word for word in before if word]
        if not words:
            found: Sequence[str] = [each.name for each in COMMANDS]
        elif command := BY_NAME.get(words[0]):
            found = command.complete(words[1:], self._context.known)
        else:
            found = ()
        return [each for each in found if each.startswith(begun)]

    def explain(self, text: str) -> str | None:
        """What `?` tells at this point of a line; None within a quotation, where it is a sign like others."""
        if text.count('"') % 2 or text.count("'") % 2:
            return None
        words = text.split()
        if not words or BY_NAME.get(words[0]) is None:
            begun = [each for each in COMMANDS if words and each.name.startswith(words[0])]
            return "\n".join(f"  {each.name:<10}{each.summary}" for each in begun) or told(())
        return told(words)

    async def _look_up_names(self) -> None:
        """Keeps what completes words fresh; without it there is only less to complete."""
        now = asyncio.get_running_loop().time()
        if now - self._names_at < NAMES_AGE_S:
            return
        self._names_at = now
        try:
            await self._context.status()
        except CommandFailed:
            self._context.known = None
