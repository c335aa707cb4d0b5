"""Somebody before a line, in the test's own loop: what is on the screen, and the keys."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from console.terminal import WHERE
from tests.waiting import look_until

#: For an answer on the screen.
WITHIN_S = 30.0

#: What a terminal says that stands at the end of a screen of 80 times 24.
HERE = "\x1b[24;80R"


class Person:
    """At the end of a pseudo-terminal that the console does not have. `smart`: the terminal answers where its cursor is."""

    def __init__(self, descriptor: int, device: Path, *, smart: bool = False) -> None:
        self._descriptor, self.device, self._smart = descriptor, device, smart
        self._output = b""
        self._seen = self._answered = 0
        self.echo, self._last_at = False, 0.0
        os.set_blocking(descriptor, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._read)

    @property
    def screen(self) -> str:
        return self._output.decode("utf-8", "replace").replace("\r\n", "\n")

    def type(self, text: str | bytes) -> None:
        """Presses keys; fails when the line takes no more."""
        data = text.encode() if isinstance(text, str) else text
        assert os.write(self._descriptor, data) == len(data)

    async def paste(self, data: bytes) -> None:
        """Types as fast as the line takes it."""
        while data:
            with suppress(BlockingIOError):
                data = data[os.write(self._descriptor, data) :]
            await asyncio.sleep(0)

    async def sees(self, pattern: str, *, within_s: float = WITHIN_S) -> re.Match[str]:
        """Waits until it appears after what was seen before."""

        def look() -> re.Match[str] | None:
            return re.compile(pattern).search(self.screen, self._seen)

        try:
            found = await look_until(pattern, look, within_s=within_s)
        except AssertionError:
            raise AssertionError(f"{pattern!r} did not appear:\n{self.screen[self._seen :]!r}") from None
        self._seen = found.end()
        return found

    def quiet_for(self, seconds: float) -> bool:
        """Whether nothing has been shown for so long."""
        return self._loop.time() - self._last_at > seconds

    def stop_reading(self) -> None:
        """Looks away: from now on the line fills up."""
        self._loop.remove_reader(self._descriptor)

    def look_again(self) -> None:
        self._loop.add_reader(self._descriptor, self._read)

    def close(self) -> None:
        """Pulls the cable, as far as a pseudo-terminal has one."""
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, 65_536)
        except OSError:
            self._loop.remove_reader(self._descriptor)
            return
        if not data:
            self._loop.remove_reader(self._descriptor)
        self._output += data
        self._last_at = self._loop.time()
        if self.echo:
            with suppress(BlockingIOError):
                os.write(self._descriptor, data)
        while self._smart and self.screen.count(WHERE) > self._answered:
            self._answered += 1
            self.type(HERE)


@contextmanager
def person_on_a_line(*, smart: bool = False) -> Iterator[Person]:
    """Somebody whose line the console opens as `device`."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)  # nobody echoes but the console
    found = Person(ours, Path(os.ttyname(theirs)), smart=smart)
    # The console opens it while we still have it open: a pseudo-terminal forgets its settings at the last close.
    try:
        yield found
    finally:
        os.close(theirs)
        with suppress(OSError):
            found.close()
