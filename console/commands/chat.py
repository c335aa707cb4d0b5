"""`chat`: a conversation, through the gateway as any client has it. Ctrl-C cancels a reply."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from appliance.client.address import gateway_url
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
from console.context import Context
from console.editor import Helper, Interrupted, editor_for
from console.errors import CommandFailed
from console.history import History

from .command import Command, wrong_usage

if TYPE_CHECKING:
    import httpx

DEFAULT = "coral"

#: As they ship; the gateway says which there really are.
PERSONAS = ("coral", "finn", "marina", "pike", "pearl", "ray")


async def run(context: Context, words: Sequence[str]) -> None:
    import httpx  # a seventh of what the console takes to start

    if len(words) > 1:
        raise wrong_usage(COMMAND)
    url = gateway_url(context.paths)
    if url is None:
        raise CommandFailed("the gateway does not run; 'status' shows what does")
    async with httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {await context.token()}"},
        timeout=httpx.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        trust_env=False,
    ) as client:
        await _Talk(context, client, Conversation(words[0].lower() if words else DEFAULT)).run()


class _Talk:
    """One `chat`, from its first to its last line. What is said is in no file here: the appliance keeps it, encrypted."""

    def __init__(self, context: Context, client: httpx.AsyncClient, conversation: Conversation) -> None:
        self._context, self._client, self._conversation = context, client, conversation
        self._names: dict[str, str] = {}

    async def run(self) -> None:
        self._names = {each["id"]: each["name"] for each in await self._personas()}
        if self._conversation.persona_id not in self._names:
            there = ", ".join(self._names)
            raise CommandFailed(f"no persona is called {self._conversation.persona_id!r}; there are: {there}")
        self._context.say(f"You are talking to {self._name}. /help shows what else you can do; Ctrl-D ends.")
        editor = editor_for(self._context.terminal, Helper(History(), self._complete))
        while True:
            try:
                line = (await self._context.ask_with(editor, "you> ")).strip()
            except Interrupted:
                continue
            except EOFError:
                return
            if line in ENDS:
                return
            if line.startswith("/"):
                await self._command(line)
            elif line:
                await self._say(line)

    @property
    def _name(self) -> str:
        return self._names[self._conversation.persona_id]

    async def _say(self, line: str) -> None:
        self._context.terminal.write(f"{self._name}> ")
        try:
            await self._context.interruptible(self._reply(line))
        except Interrupted:
            self._context.say(" [cancelled]")
        except CommandFailed as error:
            self._context.say(f"\n{error}")

    async def _reply(self, line: str) -> None:
        terminal = self._context.terminal
        printer = Printer(terminal.write, f"{self._name}> ", columns=lambda: terminal.size().columns)
        with contextlib.closing(printer):
            async with aclosing(self._events(line)) as events:
                async for event in events:
                    await terminal.line.room()
                    if outcome := printer.take(event):
                        if outcome.problem:
                            terminal.say(outcome.problem)
                        return
        raise CommandFailed("the reply ended early")

    async def _events(self, line: str) -> AsyncGenerator[dict[str, Any], None]:
        """The messages of one reply, as they come. To stop reading them cancels the reply."""
        import httpx

        body = self._conversation.body(line)
        try:
            async with self._client.stream("POST", STREAM_PATH, json=body) as response:
                if response.status_code != 200:
                    raise CommandFailed(refusal(await response.aread(), response.reason_phrase))
                async for each in response.aiter_lines():
                    if event := self._conversation.event(each):
                        yield event
        except httpx.TransportError as error:
            raise CommandFailed(f"lost the gateway: {error}") from None

    async def _personas(self) -> list[dict[str, str]]:
        import httpx

        try:
            response = await self._client.get(PERSONAS_PATH)
        except httpx.TransportError as error:
            raise CommandFailed(f"cannot reach the gateway: {error}") from None
        if response.status_code != 200:
            raise CommandFailed(refusal(response.content, response.reason_phrase))
        found: list[dict[str, str]] = response.json()["personas"]
        return found

    async def _command(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        name = rest.strip().lower()
        if word == "/new":
            self._conversation.session_id = None
            self._context.say("A new conversation.")
        elif word == "/personas":
            for each in await self._personas():
                self._context.say(f"{each['id']:<8} {each['role']:<10} {each['description']}")
        elif word == "/persona" and name in self._names:
            self._conversation.persona_id = name
            self._context.say(f"You are talking to {self._name}.")
        elif word == "/persona":
            self._context.say(f"/persona NAME, one of: {', '.join(self._names)}")
        else:
            self._context.say(HELP)

    def _complete(self, text: str) -> Sequence[str]:
        before, space, begun = text.rpartition(" ")
        if space:
            return [each for each in self._names if before == "/persona" and each.startswith(begun)]
        commands = ("/help", "/new", "/persona", "/personas", "/quit")
        return [each for each in commands if begun and each.startswith(begun)]


def complete(words: Sequence[str], _known: object) -> Sequence[str]:
    return () if words else PERSONAS


COMMAND = Command(
    "chat",
    "talk to a persona",
    (("chat [PERSONA]", f"talks to {', '.join(PERSONAS)}; Ctrl-C cancels a reply, Ctrl-D ends"),),
    run,
    complete,
)
