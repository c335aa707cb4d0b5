"""Runs in the virtual machine: somebody in a terminal of their own, who does what the steps on standard input say. Prints as JSON
how long each step took, by the machine's clock, and all that was on the screen.

A step is [what, text]: `type` presses keys, `paste` types as fast as it is taken, `see` waits for a pattern, `run` has a shell
command done elsewhere (a cable is pulled), `end` waits until the command has ended.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time

ASKED, HERE = b"\x1b[6n", b"\x1b[24;80R"

PIECE_BYTES = 512


class Person:
    """Before the terminal of a command that has just been started."""

    def __init__(self, command: list[str], within_s: float) -> None:
        self._within_s = within_s
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.environ["TERM"] = "vt100"
            os.execvp(command[0], command)  # noqa: S606
        termios.tcsetwinsize(self._terminal, (24, 80))
        self.screen = b""
        self._seen = self._answered = 0

    def do(self, what: str, text: str) -> None:
        match what:
            case "type":
                os.write(self._terminal, text.encode())
            case "paste":
                self._paste(text.encode())
            case "see":
                self._see(text)
            case "run":
                subprocess.run(["sh", "-c", text], check=True, capture_output=True, timeout=self._within_s)
            case "end":
                while self._look(self._within_s):
                    pass
                os.waitpid(self._pid, 0)

    def _look(self, timeout_s: float) -> bool:
        """Takes what is shown; False when the command has ended."""
        if not select.select([self._terminal], [], [], timeout_s)[0]:
            return True
        try:
            data = os.read(self._terminal, 65_536)
        except OSError:
            return False
        self.screen += data
        while self.screen.count(ASKED) > self._answered:
            self._answered += 1
            os.write(self._terminal, HERE)
        return bool(data)

    def _see(self, pattern: str) -> None:
        deadline = time.monotonic() + self._within_s
        while True:
            if found := re.compile(pattern.encode()).search(self.screen, self._seen):
                self._seen = found.end()
                return
            if not self._look(0.2):
                raise OSError("the command has ended")
            if time.monotonic() > deadline:
                raise TimeoutError(f"did not appear in {self._within_s:g} s")

    def _paste(self, data: bytes) -> None:
        while data:
            self._look(0)
            if not select.select([], [self._terminal], [], self._within_s)[1]:
                raise TimeoutError(f"{len(data)} bytes were not taken")
            data = data[os.write(self._terminal, data[:PIECE_BYTES]) :]


def main() -> None:
    person = Person(sys.argv[2:], float(sys.argv[1]))
    times: list[float] = []
    failed = ""
    for what, text in json.loads(sys.stdin.read()):
        began = time.monotonic()
        try:
            person.do(what, text)
        except (subprocess.SubprocessError, OSError) as error:
            failed = f"{what} {text[:100]!r}: {error}"
            break
        times.append(round(time.monotonic() - began, 3))
    print(json.dumps({"times": times, "failed": failed, "screen": person.screen.decode("utf-8", "replace")}))


if __name__ == "__main__":
    main()
