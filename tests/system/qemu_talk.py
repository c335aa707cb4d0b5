"""QEMU's two languages of JSON lines: QMP, to QEMU itself, and that of the guest agent, to a program in the machine."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

#: Between two questions whether a command has ended: each costs the machine some of the time that the command could have. The
#: first comes soon, each later one after a quarter of what it has taken so far, at most the second figure.
LOOK_S, LOOK_LIMIT_S = 0.05, 2.0

#: QEMU takes a line at once; an agent that does not run yet leaves it in a buffer that is long enough.
SEND_TIMEOUT_S = 60.0


class Gone(AssertionError):
    """QEMU has ended, or closed its side."""


class _Lines:
    """One JSON value a line, each way."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket, self._read = ours, b""

    def send(self, value: object, *, before: bytes = b"") -> None:
        self._socket.settimeout(SEND_TIMEOUT_S)
        try:
            self._socket.sendall(before + json.dumps(value).encode() + b"\n")
        except OSError as error:
            raise Gone(f"QEMU does not listen: {error}") from None

    def line(self, deadline: float) -> bytes:
        """TimeoutError when there is none by then."""
        while b"\n" not in self._read:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self._socket.recv(65_536)
            except ConnectionError as error:
                raise Gone(f"QEMU has ended: {error}") from None
            if not data:
                raise Gone("QEMU has ended")
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line

    def forget(self) -> None:
        self._read = b""


class Monitor:
    """QMP on a connected socket."""

    def __init__(self, ours: socket.socket) -> None:
        self._lines = _Lines(ours)
        deadline = time.monotonic() + 30
        assert b"QMP" in self._lines.line(deadline)
        self.execute("qmp_capabilities")

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] = MappingProxyType({}),
        *,
        timeout_s: float = 120.0,
    ) -> Any:
        """What the command returns; AssertionError with what QEMU says when it refuses."""
        self._lines.send({"execute": command, "arguments": dict(arguments)})
        deadline = time.monotonic() + timeout_s
        while True:
            answer = json.loads(self._lines.line(deadline))
            assert "error" not in answer, f"QEMU refuses {command} {arguments}: {answer['error']['desc']}"
            if "return" in answer:
                return answer["return"]

    def wait_for_event(self, name: str, *, within_s: float) -> None:
        """Until QEMU tells of one; TimeoutError when it does not. Those that come during a command are not kept."""
        deadline = time.monotonic() + within_s
        while json.loads(self._lines.line(deadline)).get("event") != name:
            pass

    def type(self, line: str) -> None:
        """A line of the human monitor, which says nothing when all went well."""
        said = self.execute("human-monitor-command", {"command-line": line})
        assert not said.strip(), f"{line}: {said}"


class Agent:
    """The guest agent on a connected socket."""

    def __init__(self, ours: socket.socket) -> None:
        self._lines = _Lines(ours)
        self._number = 0

    def synchronize(self, within_s: float) -> bool:
        """Whether it answers; what it answered to earlier questions is dropped."""
        self._lines.forget()
        self._number += 1
        number = self._number + int(time.time()) * 1000
        # 0xff ends whatever half a question may still lie in its ear.
        self._lines.send({"execute": "guest-sync", "arguments": {"id": number}}, before=b"\xff")
        deadline = time.monotonic() + within_s
        try:
            while True:
                try:
                    answer = json.loads(self._lines.line(deadline).lstrip(b"\xff"))
                except ValueError:
                    continue
                if answer.get("return") == number:
                    return True
        except TimeoutError:
            return False

    def ask(self, command: str, arguments: Mapping[str, object], *, timeout_s: float = 300.0) -> Any:
        """What the command returns."""
        self._lines.send({"execute": command, "arguments": dict(arguments)})
        answer = json.loads(self._lines.line(time.monotonic() + timeout_s))
        assert "error" not in answer, f"the guest agent refuses {command}: {answer['error']['desc']}"
        return answer["return"]

    def run(self, words: list[str], *, given: bytes = b"", timeout_s: float) -> tuple[int, bytes, bytes]:
        """Exit status, standard output and standard error of a command; TimeoutError when it goes on for longer."""
        deadline = time.monotonic() + timeout_s
        arguments = {"path": words[0], "arg": words[1:], "capture-output": True}
        if given:
            arguments["input-data"] = base64.b64encode(given).decode()
        started = self.ask("guest-exec", arguments)
        began = time.monotonic()
        while True:
            state = self.ask("guest-exec-status", {"pid": started["pid"]})
            if state["exited"]:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"{words} has not ended after {timeout_s:g} s")
            time.sleep(min(max(LOOK_S, (time.monotonic() - began) / 4), LOOK_LIMIT_S))
        assert not state.get("out-truncated"), f"{words} said too much"
        status = -int(state["signal"]) if "signal" in state else int(state["exitcode"])
        return (
            status,
            base64.b64decode(state.get("out-data", "")),
            base64.b64decode(state.get("err-data", "")),
        )
