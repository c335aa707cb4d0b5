"""`coral-reef chat [PERSONA]`: talk in the terminal. Replies appear as they are written; Ctrl-C cancels one, Ctrl-D ends."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec

from appliance.client.conversation import (
    CONNECT_TIMEOUT_S,
    ENDS,
    HELP,
    PERSONAS_PATH,
    SILENCE_TIMEOUT_S,
    STREAM_PATH,
    Conversation,
    Printer,
    refusal,
)

from .exit_status import ExitStatus, Failed
from .place import add_place_options, key_of, paths_of, url_of


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


class _Stream:
    """A conversation over HTTP."""

    def __init__(self, client: Any, conversation: Conversation) -> None:
        self._client, self.conversation = client, conversation

    def ask(self, message: str) -> Generator[dict[str, Any], None, None]:
        """The messages of one reply, as they come. Closing the iterator cancels the reply."""
        import httpx

        try:
            with self._client.stream("POST", STREAM_PATH, json=self.conversation.body(message)) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refusal(response)
                for line in response.iter_lines():
                    if event := self.conversation.event(line):
                        yield event
        except httpx.TransportError as error:
            raise Failed(
                f"lost the appliance at {self._client.base_url}: {error}", ExitStatus.UNAVAILABLE
            ) from None

    def personas(self) -> list[dict[str, str]]:
        """Who there is to talk to."""
        response = self._client.get(PERSONAS_PATH)
        if response.status_code != 200:
            raise _refusal(response)
        found: list[dict[str, str]] = response.json()["personas"]
        return found


def _refusal(response: Any) -> Failed:
    status = ExitStatus.REFUSED if response.status_code in (401, 403) else ExitStatus.FAILED
    return Failed(refusal(response.content, response.reason_phrase), status)


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
        stream = _Stream(client, Conversation(arguments.persona or "coral", arguments.session))
        try:
            if arguments.message is not None:
                return _one(stream, arguments.message, as_json=arguments.json)
            return _many(stream, as_json=arguments.json)
        except httpx.TransportError as error:
            raise Failed(f"cannot reach {url}: {error}", ExitStatus.UNAVAILABLE) from None


def _one(stream: _Stream, message: str, *, as_json: bool) -> int:
    try:
        return _say(stream, message, as_json=as_json)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return ExitStatus.INTERRUPTED


def _many(stream: _Stream, *, as_json: bool) -> int:
    talks, conversation = sys.stdin.isatty(), stream.conversation
    names = {each["id"]: each["name"] for each in stream.personas()}
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
            if line in ENDS:
                return status
            _command(stream, line, names)
            continue
        try:
            before = f"{names[conversation.persona_id]}> " if talks and not as_json else ""
            print(before, end="", flush=True)
            status = _say(stream, line, as_json=as_json, before=before)
        except KeyboardInterrupt:
            print(" [cancelled]", flush=True)
        except Failed as error:
            print(f"coral-reef: {error}", file=sys.stderr)
            status = int(error.status)
            if not talks or error.status is ExitStatus.REFUSED:
                return status


def _command(stream: _Stream, line: str, names: dict[str, str]) -> None:
    conversation = stream.conversation
    word, _, rest = line.partition(" ")
    if word == "/new":
        conversation.session_id = None
        print("A new conversation.")
    elif word == "/personas":
        for each in stream.personas():
            print(f"{each['id']:<8} {each['role']:<10} {each['description']}")
    elif word == "/persona" and rest.strip().lower() in names:
        conversation.persona_id = rest.strip().lower()
        print(f"You are talking to {names[conversation.persona_id]}.")
    elif word == "/persona":
        print(f"/persona NAME, one of: {', '.join(names)}")
    else:
        print(HELP)


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _columns() -> int:
    return max(shutil.get_terminal_size().columns, 2)


def _say(stream: _Stream, message: str, *, as_json: bool, before: str = "") -> int:
    """Asks and prints the reply as it comes, on a line that begins with `before`. Leaving early (Ctrl-C) closes the stream, which
    cancels the reply."""
    columns = _columns if sys.stdout.isatty() and not as_json else None
    printer = Printer((lambda _: None) if as_json else _write, before, columns=columns)
    with contextlib.closing(stream.ask(message)) as events, contextlib.closing(printer):
        for event in events:
            if as_json:
                print(msgspec.json.encode(event).decode(), flush=True)
            if outcome := printer.take(event):
                if not outcome.problem:
                    return ExitStatus.OK
                if not as_json:
                    print(f"coral-reef: {outcome.problem}", file=sys.stderr)
                return ExitStatus.FAILED
    raise Failed("the reply ended early", ExitStatus.UNAVAILABLE)
