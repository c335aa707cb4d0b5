"""What is typed on a line, as prompt_toolkit wants it: bytes to keys, one line at a time, and Ctrl-C while a command runs."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from prompt_toolkit.input.base import Input
from prompt_toolkit.input.typeahead import clear_typeahead
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys

from .intake import CTRL_C, LINE_LIMIT_BYTES, QUIET_S, WAITING_LIMIT_BYTES, Intake

#: Longer than this no key is; what goes on without one is a paste in brackets, which nobody has asked the terminal for.
KEY_LIMIT_BYTES = LINE_LIMIT_BYTES


class Keyboard(Input):
    """The keys of a line. Whoever reads is attached; while nobody is, a command runs, and `interrupted` hears of Ctrl-C."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._intake = Intake()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._keys: list[KeyPress] = []
        self._parser = Vt100Parser(self._pressed)
        self._keyless = 0
        self._callback: Callable[[], None] | None = None
        self._resting: asyncio.TimerHandle | None = None
        self._closed = False
        self.interrupted: Callable[[], object] | None = None
        self.refused: Callable[[int, bool], None] | None = None
        self.active_at = self._loop.time()

    def received(self, data: bytes) -> None:
        """Takes what came from the line."""
        now = self.active_at = self._loop.time()
        if self._resting is not None and self._intake.rest(
            now
        ):  # first, so that what comes now is not spoilt with it
            self._resting.cancel()
            self._rest()
        if self._callback is None and CTRL_C in data:
            self._intake.clear()
            data = data.rpartition(CTRL_C)[2]
            if self.interrupted is not None:
                self.interrupted()
        self._intake.feed(data, now)
        if self._intake.refused and self._resting is None:
            self._resting = self._loop.call_later(QUIET_S, self._rest)
        if self._intake.waiting:
            self._wake()

    def _rest(self) -> None:
        """Tells of what was refused, once the paste is over."""
        self._resting = None
        if not self._intake.rest(self._loop.time()):
            self._resting = self._loop.call_later(QUIET_S, self._rest)
            return
        spoilt, self._intake.spoilt = self._intake.spoilt, False
        if self.refused is not None:
            self.refused(self._intake.report(), spoilt)

    def forget(self) -> None:
        """Throws away what was typed and not read."""
        self._intake.clear()
        self._keys.clear()
        self._parser.reset()
        self._decoder.reset()
        clear_typeahead(self)

    def _wake(self) -> None:
        if self._callback is not None:
            self._loop.call_soon(self._call)

    def _call(self) -> None:
        if self._callback is not None and (self._keys or self._intake.waiting or self._closed):
            self._callback()
            if self._intake.waiting:
                self._wake()

    def _pressed(self, key: KeyPress) -> None:
        self._keyless = 0
        # A paste in brackets may hold line ends: not as one key.
        if key.key is Keys.BracketedPaste and any(each in key.data for each in "\r\n"):
            return
        self._keys.append(key)

    # --- what prompt_toolkit asks for -----------------------------------------------------------------------------

    def read_keys(self) -> list[KeyPress]:
        """The keys of at most one line: what comes after Enter is for whoever reads next."""
        data = self._intake.read()
        self._keyless += len(data)
        self._parser.feed(self._decoder.decode(data))
        if self._keyless > KEY_LIMIT_BYTES:
            self._parser.reset()
            self._keyless = 0
        return self._taken()

    def peek(self) -> list[KeyPress]:
        """The keys of all that waits, as answers of a terminal are looked for; they stay for who reads next, answers apart."""
        before, self._keys = self._keys, []
        found = self.read_keys()
        self.unread(before + [key for key in found if key.key is not Keys.CPRResponse])
        return found

    def unread(self, keys: list[KeyPress]) -> None:
        """Puts back what was read too much, for who reads next."""
        self._keys = (keys + self._keys)[:WAITING_LIMIT_BYTES]

    def flush_keys(self) -> list[KeyPress]:
        """An Escape that nothing has followed is the key itself."""
        self._parser.flush()
        return self._taken()

    def _taken(self) -> list[KeyPress]:
        keys, self._keys = self._keys, []
        return keys

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Nothing more comes: whoever reads gets an EOFError."""
        self._closed = True
        if self._resting is not None:
            self._resting.cancel()
        self._wake()

    @contextlib.contextmanager
    def _attached(self, callback: Callable[[], None] | None) -> Iterator[None]:
        before, self._callback = self._callback, callback
        self._wake()
        try:
            yield
        finally:
            self._callback = before

    def attach(self, input_ready_callback: Callable[[], None]) -> AbstractContextManager[None]:
        return self._attached(input_ready_callback)

    def detach(self) -> AbstractContextManager[None]:
        return self._attached(None)

    def raw_mode(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()  # the line is raw already

    def cooked_mode(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def fileno(self) -> int:
        raise io.UnsupportedOperation("keys come from a line, not from a file")

    def typeahead_hash(self) -> str:
        return "console"  # one line a process: see `forget`
