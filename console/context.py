"""What a command has to work with: who asks, where it draws, whom it asks."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from appliance.client.screen import Part
from appliance.client.status import status_parts
from appliance.paths import Paths
from appliance.wire.messages import Done, IssuedToken, IssueToken, Message, Status, UserRole

from .control import Control
from .editor import Editor, Helper, Interrupted, PlainEditor, Refused, editor_for
from .errors import CommandFailed
from .intake import LINE_LIMIT_BYTES
from .terminal import Terminal

T = TypeVar("T")

#: How old a status may be that only completes words.
NAMES_AGE_S = 5.0


@dataclass(frozen=True)
class Person:
    """Who sits there."""

    name: str
    role: UserRole

    @property
    def administers(self) -> bool:
        return self.role == "admin"


@dataclass
class Context:
    """One person's session. `system`: the appliance is a service of this machine's."""

    paths: Paths
    terminal: Terminal
    control: Control
    person: Person
    system: bool
    line: str
    leaving: bool = False
    known: Status | None = None
    _asking: Editor | None = field(default=None, repr=False)

    def say(self, text: str) -> None:
        """A line of text."""
        self.terminal.say(text)

    async def status(self) -> Status:
        """What the appliance does now; the names in it complete what is typed next."""
        self.known = await self.control.status()
        return self.known

    async def status_parts(self) -> Iterator[Part]:
        """The status as it is drawn here."""
        return status_parts(await self.status(), command="", columns=self.terminal.size().columns)

    async def order(self, message: Message, *, timeout_s: float) -> None:
        """Has the supervisor do something, and says what it says."""
        done = await self.control.ask(message, Done, timeout_s=timeout_s)
        self.say(done.detail)

    async def token(self) -> str:
        """A bearer token for the gateway, worth what this person is as long as the session lasts."""
        issued = await self.control.ask(IssueToken(request_id="-", name=self.person.name), IssuedToken)
        return issued.token

    def require_admin(self) -> None:
        """CommandFailed for everybody else."""
        if not self.person.administers:
            raise CommandFailed("only an administrator may do that")

    # --- questions ------------------------------------------------------------------------------------------------

    async def ask(self, prompt: str, helper: Helper) -> str:
        """A line, with all the help that the terminal can give. Interrupted, EOFError."""
        return await self.ask_with(editor_for(self.terminal, helper), prompt)

    async def ask_with(self, editor: Editor, prompt: str) -> str:
        """A line, by an editor that is there already."""
        self._asking = editor
        try:
            return await editor.ask(prompt)
        finally:
            self._asking = None

    async def ask_hidden(self, prompt: str) -> str:
        """A password."""
        return await self.ask_with(PlainEditor(self.terminal, hidden=True), prompt)

    async def confirm(self, question: str) -> bool:
        """Whether the person says yes."""
        try:
            answer = await self.ask_with(PlainEditor(self.terminal), f"{question} [y/N] ")
        except (Interrupted, EOFError):
            return False
        return answer.strip().lower() in ("y", "yes")

    def refused(self, count: int, spoilt: bool) -> None:
        """More was pasted than is taken."""
        told = Refused(
            f"[{count} bytes were refused: a line has at most {LINE_LIMIT_BYTES}, and few come at a time]",
            spoilt=spoilt,
        )
        if self._asking is None or not self._asking.refuse(told):
            self.say(f"\n{told}")

    # --- Ctrl-C ---------------------------------------------------------------------------------------------------

    async def interruptible(self, work: Coroutine[Any, Any, T]) -> T:
        """Does the work until Ctrl-C is pressed, which raises Interrupted."""
        keyboard = self.terminal.keyboard
        task = asyncio.create_task(work)
        before, keyboard.interrupted = keyboard.interrupted, task.cancel
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise Interrupted from None
        finally:
            keyboard.interrupted = before
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
