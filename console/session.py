"""What happens on a line from the moment somebody is there until they have gone: login, shell, and all that may end it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import getpass
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from appliance import __version__
from appliance.paths import Paths

from .context import Context, Person
from .control import Control
from .editor import Interrupted, PlainEditor, Refused
from .errors import CommandFailed, LineLost
from .keyboard import Keyboard
from .line import Line
from .link import LOOK_S, Cable, is_usb, until
from .login import RETRY_S, Door, cannot_be_asked
from .shell import Shell
from .terminal import Terminal

log = logging.getLogger(__name__)

#: Opens the line for a session: `received` and `lost` as for `Line`.
Opener = Callable[[Callable[[bytes], None], Callable[[str], None]], Line]


class Visit:
    """One time that a cable is in. No login where `login` is not set, no end for idleness where `idle_logout_s` is 0."""

    def __init__(
        self, paths: Paths, name: str, cable: Cable, opener: Opener, *, login: bool, idle_logout_s: float
    ) -> None:
        self._paths, self._name, self._cable, self._opener = paths, name, cable, opener
        self._login, self._idle_logout_s = login, idle_logout_s
        self._asking: list[PlainEditor] = []
        self._context: Context | None = None

    async def run(self) -> str:
        """Until the cable is out or the line has gone; returns why. LineLost when it cannot even be opened."""
        keyboard = Keyboard()
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def lose(reason: str) -> None:
            if not lost.done():
                lost.set_result(reason)

        keyboard.refused = self._refused
        line = self._opener(keyboard.received, lose)
        try:
            return await self._first_of(
                self._talk(Terminal(line, keyboard)),
                self._pulled(),
                _answer(lost),
            )
        finally:
            keyboard.close()
            keyboard.forget()
            await line.close()

    async def _first_of(self, *ways: Coroutine[Any, Any, str]) -> str:
        """The first that ends, with the others ended."""
        tasks = [asyncio.create_task(way) for way in ways]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pulled(self) -> str:
        await until(lambda: not self._cable.attached())
        return "nobody is attached any more"

    async def _talk(self, terminal: Terminal) -> str:
        """One person after the other, as long as the line lasts."""
        while True:
            terminal.write(f"\r\nCoral-Reef {__version__} on {socket.gethostname()} ({self._name})\r\n\r\n")
            control, person = await self._welcome(terminal)
            try:
                await self._at_work(terminal, control, person)
            finally:
                self._context = None
                await control.close()
            terminal.keyboard.forget()
            _tidy()
            if not self._login:
                terminal.say("Press Enter to begin again.")
                await self._enter(terminal)

    async def _welcome(self, terminal: Terminal) -> tuple[Control, Person]:
        if self._login:
            door = Door(self._paths, terminal, self._name, usb=is_usb(self._name), asking=self._asking)
            return await door.pass_through()
        complained = False
        while True:
            try:
                return await Control.connected(self._paths), Person(getpass.getuser(), "admin")
            except CommandFailed as error:
                if not complained:
                    terminal.say(cannot_be_asked(error))
                complained = True
                await asyncio.sleep(RETRY_S)

    async def _at_work(self, terminal: Terminal, control: Control, person: Person) -> None:
        """From login to logout. Whoever is logged in is so on the connection: the session ends with it."""
        await terminal.look()
        system = self._paths == Paths.system()
        context = self._context = Context(self._paths, terminal, control, person, system, self._name)
        log.info("%s: %s has begun", self._name, person.name)
        terminal.say(f"Welcome, {person.name}. 'help' tells what can be typed; Ctrl-D logs out.\n")
        ends = [self._shell(context), self._cut(control)]
        if self._idle_logout_s:
            ends.append(self._idle(terminal.keyboard))
        why = await self._first_of(*ends)
        log.info("%s: %s has ended: %s", self._name, person.name, why)
        if not terminal.dumb:
            terminal.write("\x1b[?25h\x1b[0m")
        terminal.say(f"\r\nLogged out: {why}.")

    async def _shell(self, context: Context) -> str:
        await Shell(context).run()
        return "goodbye"

    async def _cut(self, control: Control) -> str:
        await control.ended.wait()
        return "the supervisor has ended the session"

    async def _idle(self, keyboard: Keyboard) -> str:
        loop = asyncio.get_running_loop()
        left = self._idle_logout_s
        while left > 0:
            await asyncio.sleep(left)
            left = keyboard.active_at + self._idle_logout_s - loop.time()
        return f"nothing was typed for {self._idle_logout_s:.0f} s"

    async def _enter(self, terminal: Terminal) -> None:
        editor = PlainEditor(terminal, hidden=True)
        self._asking.append(editor)
        with contextlib.suppress(Interrupted, EOFError):
            await editor.ask("")
        self._asking.remove(editor)

    def _refused(self, count: int, spoilt: bool) -> None:
        """More was pasted than is taken; told wherever the person is."""
        if self._context is not None:
            self._context.refused(count, spoilt)
        elif self._asking:
            self._asking[-1].refuse(Refused(f"[{count} bytes were refused]", spoilt=spoilt))


def _tidy() -> None:
    """prompt_toolkit leaves rings of references, which the collector alone finds, and by itself late: 360 KiB a session."""
    gc.collect()


async def _answer(future: asyncio.Future[str]) -> str:
    return await future


async def visits(visit: Callable[[], Visit], cable: Cable, name: str) -> None:
    """One after the other, for ever."""
    complaint = ""
    while True:
        await until(cable.attached)
        try:
            log.info("%s: free again: %s", name, await visit().run())
            complaint = ""
        except LineLost as error:
            if str(error) != complaint:
                log.warning("%s: %s", name, error)
            complaint = str(error)
            await asyncio.sleep(RETRY_S)
        _tidy()  # after a session that was cut off, too
        await asyncio.sleep(LOOK_S)
