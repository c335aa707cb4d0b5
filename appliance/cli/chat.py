"""`coral-reef chat [PERSONA]`: talk in the terminal. Replies appear as they are written; Ctrl-C cancels one, Ctrl-D ends."""

from __future__ import annotations

import argparse
import contextlib
import sys
import unicodedata
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec

from .exit_status import ExitStatus, Failed
from .place import add_place_options, key_of, paths_of, url_of

#: A connection that is not made within this will not be.
CONNECT_TIMEOUT_S = 5.0

#: A reply may take as long as it takes, but the gateway sends something every 15 s meanwhile.
SILENCE_TIMEOUT_S = 60.0

HELP = """\
/persona NAME   talk to somebody else        /new    begin a new conversation
/personas       who there is to talk to      /quit   end (or Ctrl-D)
Ctrl-C cancels a reply, also one that still waits."""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "chat",
        help="talk to a persona",
        description="Talks to a persona in the terminal. Ctrl-C cancels a reply, Ctrl-D ends.",
        epilog=f"while chatting:\n{HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    persona = parser.add_argument(
        "persona",
        nargs="?",
        metavar="PERSONA",
        help="coral, finn, marina, pike, pearl or ray (default: coral)",
    )
    persona.completer = _complete_persona
    parser.add_argument("-m", "--message", help="ask this, print the reply and end")
    parser.add_argument("--session", metavar="ID", help="go on with this conversation")
    parser.add_argument(
        "--json", action="store_true", help="print every message of the stream as a line of JSON"
    )
    parser.add_argument(
        "--url", help="address of the appliance (default: the one that runs here, or $CORAL_REEF_URL)"
    )
    parser.add_argument(
        "--key-file", type=Path, metavar="FILE", help="API key (default: $CORAL_REEF_KEY or admin.key)"
    )
    add_place_options(parser)
    parser.set_defaults(run=run)


def _complete_persona(**_: Any) -> list[str]:
    from appliance.chat.personas import load_personas

    return list(load_personas())


def printable(text: str) -> str:
    """Text without control characters but line ends and tabs: a model must not steer the terminal."""
    return "".join(each for each in text if each in "\n\t" or unicodedata.category(each) != "Cc")


class Conversation:
    """One conversation over HTTP."""

    def __init__(self, client: Any, persona_id: str, session_id: str | None) -> None:
        self._client = client
        self.persona_id = persona_id
        self.session_id = session_id

    def ask(self, message: str) -> Generator[dict[str, Any], None, None]:
        """The messages of one reply, as they come. Closing the iterator cancels the reply."""
        import httpx

        body = {"persona_id": self.persona_id, "message": message}
        if self.session_id:
            body["session_id"] = self.session_id
        try:
            with self._client.stream("POST", "/api/v1/chat/stream", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refusal(response)
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        event: dict[str, Any] = msgspec.json.decode(line[6:])
                        if event["type"] == "system" and event["payload"].get("event") == "request_started":
                            self.session_id = event["payload"]["data"]["session_id"]
                        yield event
        except httpx.TransportError as error:
            raise Failed(
                f"lost the appliance at {self._client.base_url}: {error}", ExitStatus.UNAVAILABLE
            ) from None

    def personas(self) -> list[dict[str, str]]:
        """Who there is to talk to."""
        response = self._client.get("/api/v1/personas")
        if response.status_code != 200:
            raise _refusal(response)
        found: list[dict[str, str]] = response.json()["personas"]
        return found


def _refusal(response: Any) -> Failed:
    try:
        detail = response.json().get("detail") or response.reason_phrase
    except ValueError:
        detail = response.text[:200] or response.reason_phrase
    status = ExitStatus.REFUSED if response.status_code in (401, 403) else ExitStatus.FAILED
    return Failed(str(detail), status)


def run(arguments: argparse.Namespace) -> int:
    import httpx

    paths = paths_of(arguments)
    url, key = url_of(arguments, paths), key_of(arguments, paths)
    try:
        httpx.URL(url)
    except httpx.InvalidURL as error:
        raise Failed(
            f"{url!r} is no address: {error}; expected one like http://127.0.0.1:8080", ExitStatus.USAGE
        ) from None
    # An API key in a header only: a proxy variable of the shell must not see it either, hence trust_env.
    with httpx.Client(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"},
        timeout=httpx.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        trust_env=False,
    ) as client:
        conversation = Conversation(client, arguments.persona or "coral", arguments.session)
        try:
            if arguments.message is not None:
                return _one(conversation, arguments.message, as_json=arguments.json)
            return _many(conversation, as_json=arguments.json)
        except httpx.TransportError as error:
            raise Failed(f"cannot reach {url}: {error}", ExitStatus.UNAVAILABLE) from None


def _one(conversation: Conversation, message: str, *, as_json: bool) -> int:
    try:
        return _say(conversation, message, as_json=as_json)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return ExitStatus.INTERRUPTED


def _many(conversation: Conversation, *, as_json: bool) -> int:
    talks = sys.stdin.isatty()
    names = {each["id"]: each["name"] for each in conversation.personas()}
    if conversation.persona_id not in names:
        raise Failed(f"no persona is called {conversation.persona_id!r}; there are: {', '.join(names)}")
    if talks:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives input() its editing and history)
        print(
            f"You are talking to {names[conversation.persona_id]}. /help shows what else you can do; Ctrl-D ends."
        )
    status = int(ExitStatus.OK)
    while True:
        try:
            line = input("you> " if talks else "").strip()
        except EOFError:
            if talks:
                print()
            return status
        except KeyboardInterrupt:
            print()
            continue
        if not line:
            continue
        if line.startswith("/"):
            if line in ("/quit", "/exit", "/bye"):
                return status
            _command(conversation, line, names)
            continue
        try:
            before = f"{names[conversation.persona_id]}> " if talks and not as_json else ""
            print(before, end="", flush=True)
            status = _say(conversation, line, as_json=as_json, before=before)
        except KeyboardInterrupt:
            print(" [cancelled]", flush=True)
        except Failed as error:
            print(f"coral-reef: {error}", file=sys.stderr)
            status = int(error.status)
            if not talks or error.status is ExitStatus.REFUSED:
                return status


def _command(conversation: Conversation, line: str, names: dict[str, str]) -> None:
    word, _, rest = line.partition(" ")
    if word == "/new":
        conversation.session_id = None
        print("A new conversation.")
    elif word == "/personas":
        for each in conversation.personas():
            print(f"{each['id']:<8} {each['role']:<10} {each['description']}")
    elif word == "/persona" and rest.strip().lower() in names:
        conversation.persona_id = rest.strip().lower()
        print(f"You are talking to {names[conversation.persona_id]}.")
    elif word == "/persona":
        print(f"/persona NAME, one of: {', '.join(names)}")
    else:
        print(HELP)


class _Notice:
    """A few words at the end of a line, until something else is printed there; only where somebody looks at a terminal."""

    def __init__(self, before: str, *, wanted: bool) -> None:
        """`before` is what the line begins with."""
        self._before, self._wanted = before, wanted and sys.stdout.isatty()
        self._shown = ""

    def __enter__(self) -> _Notice:
        return self

    def __exit__(self, *_: object) -> None:
        self.show("")

    def show(self, text: str) -> None:
        """In the place of what was shown before."""
        if not self._wanted or text == self._shown:
            return
        # Two more than was shown: a terminal writes ^C where Ctrl-C was pressed.
        blank = " " * (len(self._before) + len(self._shown) + 2)
        self._shown = text  # first: Ctrl-C may come at any moment
        print(f"\r{blank}\r{self._before}{text}", end="", flush=True)


def _notice_of(event: dict[str, Any]) -> str:
    """What the reply waits for."""
    payload = event["payload"]
    data = payload.get("data") or {}
    match event["type"], payload.get("event"):
        case "system", "queued":
            return f"[place {data['position']} in the queue]"
        case "system", "progress":
            return f"[reading, {100 * data['done'] // max(data['total'], 1)} %]"
    return ""


def _say(conversation: Conversation, message: str, *, as_json: bool, before: str = "") -> int:
    """Asks and prints the reply as it comes, on a line that begins with `before`. Leaving early (Ctrl-C) closes the stream, which
    cancels the reply."""
    notice = _Notice(before, wanted=not as_json)
    with contextlib.closing(conversation.ask(message)) as events, notice:
        for event in events:
            notice.show(_notice_of(event))
            if as_json:
                print(msgspec.json.encode(event).decode(), flush=True)
            payload = event["payload"]
            match event["type"]:
                case "token" if not as_json:
                    print(printable(payload["content"]), end="", flush=True)
                case "done":
                    if not as_json:
                        print(
                            " [cut off: too long]" if payload["finish_reason"] == "length" else "", flush=True
                        )
                    return ExitStatus.OK
                case "error":
                    if not as_json:
                        print(flush=True)
                        print(f"coral-reef: {printable(payload['message'])}", file=sys.stderr)
                    return ExitStatus.FAILED
    raise Failed("the reply ended early", ExitStatus.UNAVAILABLE)
