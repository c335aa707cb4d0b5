"""Who sits there: name and password on a hardware line, or the first user's where nobody has one yet.

What is typed here comes from strangers and from programs: ModemManager sends AT commands to every new serial device for some ten
seconds. Those are neither echoed nor taken for a name.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from appliance.paths import Paths
from appliance.wire.messages import FirstUser, LoggedIn, Login, LoginNeeds, LoginQuestion

from .context import Person
from .control import Control, Denied
from .editor import Interrupted, PlainEditor
from .errors import CommandFailed
from .terminal import Terminal

#: What a password has at most: see `wire.messages`.
PASSWORD_LIMIT_CHARS = 1024

NAMES = "Names have small letters, digits, '-' and '_'."

#: A desktop's terminal that nobody has set up echoes what we say back to us, prompts and all: after so many lines without a name
#: it is not heard for a while, longer each time. Who has been silent for longer begins anew.
NAMELESS_FREE = 5
NAMELESS_LIMIT_S = 4.0
FORGIVEN_S = 5.0

#: Who has typed a name and then nothing more has gone.
PATIENCE_S = 60.0

#: Hashing takes 50 ms; others may be before one.
LOGIN_TIMEOUT_S = 30.0

#: How often a supervisor that does not run, or a line that cannot be opened, is tried again.
RETRY_S = 1.0

#: As `identity.users` has them: anything else is noise, or a slip of the keyboard.
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")

#: A command to a modem, whole; then what may still become one. Names of users have no capitals (`identity.users`).
_AT = re.compile(r"AT.*|at([+&%^$#*!\\/].*)?")
_AT_BEGUN = re.compile(r"A|a|AT.*|at([+&%^$#*!\\/].*)?")


def is_probe(line: str) -> bool:
    """Whether a program asks for a modem, and no person speaks."""
    return _AT.fullmatch(line.strip()) is not None


def may_be_probe(begun: str) -> bool:
    """Whether a line that has begun so may become a probe: nothing of it is echoed."""
    return _AT_BEGUN.fullmatch(begun) is not None


def cannot_be_asked(error: CommandFailed) -> str:
    """What a person is told who waits for the supervisor."""
    return f"The appliance cannot be asked now: {error}"


class Door:
    """The login of one line. `usb`: whoever sits there has the tower's own cable in hand."""

    def __init__(
        self, paths: Paths, terminal: Terminal, line: str, *, usb: bool, asking: list[PlainEditor]
    ) -> None:
        self._paths, self._terminal, self._line, self._usb = paths, terminal, line, usb
        self._asking = asking
        self._complained = False
        self._nameless = 0  # lines in a row without a name in them
        self._nameless_at = 0.0

    async def pass_through(self) -> tuple[Control, Person]:
        """Who has come in, and the connection on which they are logged in; the caller closes it."""
        while True:
            try:
                if found := await self._try():
                    return found
            except CommandFailed as error:
                if not self._complained:
                    self._terminal.say(cannot_be_asked(error))
                    self._complained = True
                await asyncio.sleep(RETRY_S)

    async def _try(self) -> tuple[Control, Person] | None:
        async with self._connection() as control:
            needs = await control.ask(LoginQuestion(request_id="-", line=self._line), LoginNeeds)
        self._complained = False
        if needs.retry_after_s:
            await self._wait(needs.retry_after_s)
        try:
            return await self._first(needs) if needs.first_user else await self._login()
        except (Interrupted, EOFError, TimeoutError):
            self._terminal.keyboard.forget()
            return None

    async def _login(self) -> tuple[Control, Person] | None:
        name = await self._name("login: ")
        if not name:
            return None
        password = await self._secret("Password: ")
        if not password:
            return None
        wanted = Login(request_id="-", name=name, password=password, line=self._line, usb=self._usb)
        return await self._enter(wanted)

    async def _first(self, needs: LoginNeeds) -> tuple[Control, Person] | None:
        if not self._usb:
            self._terminal.say(
                "Nobody can log in yet. The first user is made on the USB line (the tower's Type-B port),\n"
                "or by 'coral-reef user add NAME' on this machine. Press Enter to look again."
            )
            await self._edit(PlainEditor(self._terminal, hidden=True), "", patience_s=None)
            return None
        self._terminal.say(
            "Nobody can log in yet. Because you hold the tower's own cable, you may choose name and\n"
            f"password of its administrator now. {NAMES}"
        )
        name = await self._name("Name of the administrator: ")
        if not name:
            return None
        password = await self._secret("New password: ")
        if await self._secret("Once more: ") != password:
            self._terminal.say("These were two different passwords.")
            return None
        return await self._enter(FirstUser(request_id="-", name=name, password=password, usb=self._usb))

    async def _enter(self, wanted: Login | FirstUser) -> tuple[Control, Person] | None:
        control = await Control.connected(self._paths)
        try:
            found = await control.ask(wanted, LoggedIn, timeout_s=LOGIN_TIMEOUT_S)
        except Denied as error:
            await control.close()
            self._terminal.say(f"{error}\n")
            if error.retry_after_s:
                await self._wait(error.retry_after_s)
            return None
        except BaseException:
            await control.close()
            raise
        return control, Person(found.name, found.role)

    async def _wait(self, seconds: float) -> None:
        """As long as nobody is heard on this line; what is typed meanwhile is for nobody."""
        self._terminal.say(f"Too many wrong passwords: wait {seconds:.0f} s.")
        await asyncio.sleep(seconds)
        self._terminal.keyboard.forget()

    async def _name(self, prompt: str) -> str:
        """The name; empty where there is none in the line. As long as nothing is typed, it waits."""
        editor = PlainEditor(self._terminal, held=may_be_probe, ignored=is_probe)
        line = (await self._edit(editor, prompt, patience_s=None)).strip()
        if _NAME.fullmatch(line):
            self._nameless = 0
            return line
        if line and line.isascii():
            self._terminal.say(NAMES)
        now = asyncio.get_running_loop().time()
        self._nameless = self._nameless + 1 if now < self._nameless_at + FORGIVEN_S else 1
        self._nameless_at = now
        if self._nameless > NAMELESS_FREE:
            await asyncio.sleep(min(2.0 ** (self._nameless - NAMELESS_FREE), NAMELESS_LIMIT_S))
            self._terminal.keyboard.forget()
            self._nameless_at = asyncio.get_running_loop().time()
        return ""

    async def _secret(self, prompt: str) -> str:
        editor = PlainEditor(self._terminal, hidden=True)
        return (await self._edit(editor, prompt, patience_s=PATIENCE_S))[:PASSWORD_LIMIT_CHARS]

    async def _edit(self, editor: PlainEditor, prompt: str, *, patience_s: float | None) -> str:
        self._asking.append(editor)
        try:
            async with asyncio.timeout(patience_s):
                return await editor.ask(prompt)
        finally:
            self._asking.remove(editor)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Control]:
        control = await Control.connected(self._paths)
        try:
            yield control
        finally:
            await control.close()
