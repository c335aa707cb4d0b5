"""A conversation as a client keeps it, free of how bytes travel: whoever has the connection sends `body` and gives the lines of
the answer to `event`, then the events to a `Printer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from rich.cells import cell_len

from .folding import Folding
from .screen import printable

#: Where messages are posted; the answer is server-sent events.
STREAM_PATH = "/api/v1/chat/stream"
PERSONAS_PATH = "/api/v1/personas"

#: A reply may take as long as it takes, but the gateway sends something every 15 s meanwhile.
SILENCE_TIMEOUT_S = 60.0

#: A connection that is not made within this will not be.
CONNECT_TIMEOUT_S = 5.0

#: What can be typed instead of a message, and which of it ends.
HELP = """\
/persona NAME   talk to somebody else        /new    begin a new conversation
/personas       who there is to talk to      /quit   end (or Ctrl-D)
Ctrl-C cancels a reply, also one that still waits."""
ENDS = ("/quit", "/exit", "/bye")

#: Of an answer that is no JSON, so much is shown.
REFUSAL_CHARS = 200


class Conversation:
    """With whom, and which one: the session's id is known once the first reply has begun."""

    def __init__(self, persona_id: str, session_id: str | None = None) -> None:
        self.persona_id = persona_id
        self.session_id = session_id

    def body(self, message: str) -> dict[str, str]:
        """What is posted to say `message`."""
        body = {"persona_id": self.persona_id, "message": message}
        if self.session_id:
            body["session_id"] = self.session_id
        return body

    def event(self, line: str) -> dict[str, Any] | None:
        """The event in a line of the answer; None when there is none in it."""
        if not line.startswith("data: "):
            return None
        event: dict[str, Any] = msgspec.json.decode(line[6:])
        if event["type"] == "system" and event["payload"].get("event") == "request_started":
            self.session_id = event["payload"]["data"]["session_id"]
        return event


def refusal(body: bytes, reason: str) -> str:
    """What a person is told of an answer that is not 200; `reason` when its body says nothing."""
    try:
        problem = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body.decode("utf-8", "replace")[:REFUSAL_CHARS] or reason
    return str((problem.get("detail") if isinstance(problem, dict) else None) or reason)


class Outcome(NamedTuple):
    """How a reply ended; `problem` is empty when all is well."""

    problem: str = ""


class Printer:
    """Writes a reply as it comes, on a line that begins with `before`. On a screen of so many `columns` its lines end between
    words, and what it waits for stands there until the first one."""

    def __init__(
        self, write: Callable[[str], None], before: str = "", *, columns: Callable[[], int] | None = None
    ) -> None:
        self._write, self._before, self._notices = write, before, columns is not None
        self._folding = Folding(write, columns, column=cell_len(before)) if columns else None
        self._notice = ""

    def take(self, event: dict[str, Any]) -> Outcome | None:
        """Writes an event; says when it was the last."""
        self._show(notice_of(event))
        payload = event["payload"]
        match event["type"]:
            case "token":
                (self._folding or self._write)(printable(payload["content"]))
            case "done":
                self._flush()
                self._write(" [cut off: too long]\n" if payload["finish_reason"] == "length" else "\n")
                return Outcome()
            case "error":
                self._flush()
                self._write("\n")
                return Outcome(printable(payload["message"]))
        return None

    def close(self) -> None:
        """What is left when the reply is cancelled: a notice to be taken away, half a word."""
        self._show("")
        self._flush()

    def _flush(self) -> None:
        if self._folding is not None:
            self._folding.flush()

    def _show(self, notice: str) -> None:
        if not self._notices or notice == self._notice:
            return
        # Two more than was shown: a terminal writes ^C where Ctrl-C was pressed.
        blank = " " * (len(self._before) + len(self._notice) + 2)
        self._notice = notice  # first: Ctrl-C may come at any moment
        self._write(f"\r{blank}\r{self._before}{notice}")


def notice_of(event: dict[str, Any]) -> str:
    """What the reply waits for."""
    payload = event["payload"]
    data = payload.get("data") or {}
    match event["type"], payload.get("event"):
        case "system", "queued":
            return f"[place {data['position']} in the queue]"
        case "system", "progress":
            return f"[reading, {100 * data['done'] // max(data['total'], 1)} %]"
    return ""
