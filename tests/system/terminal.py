"""A command in a terminal of its own, as a person sits before it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

CTRL_C = "\x03"
CTRL_D = "\x04"

#: For an answer on the screen.
ANSWER_TIMEOUT_S = 30.0


class Terminal:
    """What the command shows, and the keyboard."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process, self._descriptor = process, descriptor
        self._output = b""
        self._seen = 0

    @property
    def screen(self) -> str:
        """Everything that was shown so far."""
        return self._output.decode("utf-8", errors="replace").replace("\r\n", "\n")

    def type(self, text: str) -> None:
        """Presses keys."""
        os.write(self._descriptor, text.encode())

    def paste(self, data: bytes) -> None:
        """Types as fast as the command reads, and looks at what it shows meanwhile."""
        while data:
            readable, writable, _ = select.select(
                [self._descriptor], [self._descriptor], [], ANSWER_TIMEOUT_S
            )
            assert readable or writable, f"it neither reads nor writes for {ANSWER_TIMEOUT_S:g} s"
            if readable:
                self._read(0)
            if writable:
                data = data[os.write(self._descriptor, data[:1024]) :]

    def expect(self, pattern: str, *, within_s: float = ANSWER_TIMEOUT_S) -> re.Match[str]:
        """Reads until `pattern` appears after what was expected before; AssertionError when it does not."""
        deadline = time.monotonic() + within_s
        while True:
            if found := re.compile(pattern).search(self.screen, self._seen):
                self._seen = found.end()
                return found
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} did not appear in {within_s:g} s:\n{self.screen[self._seen :]}"
            assert self._read(left), f"it ended before {pattern!r} appeared:\n{self.screen[self._seen :]}"

    def wait(self, *, within_s: float = ANSWER_TIMEOUT_S) -> int:
        """Reads to the end of the command; its exit status."""
        deadline = time.monotonic() + within_s
        while self._read(max(0.0, deadline - time.monotonic())):
            assert time.monotonic() < deadline, f"it did not end in {within_s:g} s:\n{self.screen}"
        return self.process.wait(max(1.0, deadline - time.monotonic()))

    def _read(self, timeout_s: float) -> bool:
        """Takes what there is; False at the end."""
        readable, _, _ = select.select([self._descriptor], [], [], timeout_s)
        if not readable:
            return True
        try:
            data = os.read(self._descriptor, 65_536)
        except OSError:  # EIO: the last process has closed the terminal
            return False
        self._output += data
        return bool(data)


@contextmanager
def terminal(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Iterator[Terminal]:
    """Runs `command` in a session of its own with a terminal of its own, so that Ctrl-C reaches it as a signal."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            cwd=cwd,
            env={**env, "TERM": "dumb"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
    finally:
        os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(ours)
