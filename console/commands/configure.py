"""`configure`: changes network.yaml step by step and applies it at once, with the way back kept open."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from appliance.client.network import revisions_part
from appliance.client.screen import printable
from appliance.config.edit import EditError, with_value, without
from appliance.config.keys import continuations, values_at
from appliance.wire.messages import (
    NetworkApply,
    NetworkCancel,
    NetworkConfirm,
    NetworkDiff,
    NetworkPast,
    NetworkPlan,
    NetworkRevisions,
    NetworkRevisionShown,
    NetworkRevisionText,
)
from console.context import Context
from console.editor import Helper, Interrupted, editor_for
from console.errors import CommandFailed
from console.history import History

from .command import Command, wrong_usage

PROMPT = "configure> "

#: DHCP may take 45 s a port; then everything goes back.
APPLY_TIMEOUT_S = 600.0

#: What `commit confirmed` waits unless said otherwise.
CONFIRM_S = 60.0

HELP = """\
  set PATH VALUE              set interfaces.primary.ip 10.0.0.5; set vlans[0] {id: 10, parent: primary}
  delete PATH                 delete interfaces.secondary
  show                        the text as it would be
  diff                        what has changed in it, and what applying it would do
  commit                      applies it; when something fails, everything goes back
  commit confirmed [SECONDS]  the same, and it goes back by itself unless 'confirm' follows (60 s)
  confirm                     keeps what was committed so
  cancel                      takes it back now
  history                     what was in effect, newest first
  rollback [STEPS]            takes the text from so many changes ago (1)
  discard                     begins anew with network.yaml
  exit                        leaves; what was not committed is lost"""

_WORDS = (
    "set",
    "delete",
    "show",
    "diff",
    "commit",
    "confirm",
    "cancel",
    "history",
    "rollback",
    "discard",
    "exit",
    "help",
)

#: A secret that is written out: quoted, in a block of its own, or up to the end of the line, whatever else stands there.
_SECRET = re.compile(
    r"""(?P<key>\b(?:password|credential|turn_secret)["']?\s*:[ \t]*+\n?+[ \t]*+)
    (?!["']?\$\{[A-Za-z_][A-Za-z0-9_]*\}["']?[ \t]*(?:[,}\#\n]|$))
    (?: "(?:[^"\\]|\\.)*" | '(?:[^']|'')*' | [|>][^\n]*(?:\n[ \t]+[^\n]*|\n(?=\n))* | [^\n]+ )""",
    re.VERBOSE | re.DOTALL,
)

_MASK = "********"


async def run(context: Context, words: Sequence[str]) -> None:
    context.require_admin()
    if words:
        raise wrong_usage(COMMAND)
    await _Configuring(context, await _text(context, None)).run()


async def _text(context: Context, steps: int | None) -> str:
    shown = await context.control.ask(NetworkRevisionText(request_id="-", steps=steps), NetworkRevisionShown)
    return shown.text


class _Configuring:
    """One `configure`, from its first to its last line."""

    def __init__(self, context: Context, text: str) -> None:
        self._context = context
        self._before = self._now = text

    async def run(self) -> None:
        self._context.say(
            "Changes are made to a copy; 'commit' applies them. 'help' tells what can be typed."
        )
        editor = editor_for(
            self._context.terminal, Helper(History(), complete, lambda text: None if "'" in text else HELP)
        )
        while True:
            try:
                line = (await self._context.ask_with(editor, PROMPT)).strip()
            except Interrupted:
                continue
            except EOFError:
                line = "exit"
            if line in ("exit", "quit"):
                if self._now == self._before or await self._context.confirm("Leave without 'commit'?"):
                    return
                continue
            try:
                await self._context.interruptible(self._do(line))
            except Interrupted:
                self._context.say("^C")
            except (CommandFailed, EditError) as error:
                self._context.say(str(error))

    async def _do(self, line: str) -> None:
        word, _, rest = printable(line).strip().partition(" ")
        rest = rest.strip()
        match word:
            case "set" if " " in rest:
                path, _, value = rest.partition(" ")
                self._now = with_value(self._now, path, value.strip())
            case "delete" if rest:
                self._now = without(self._now, rest)
            case "show" if not rest:
                self._context.terminal.show([masked(self._now)])
            case "diff" if not rest:
                await self._diff()
            case "commit":
                await self._commit(rest.split())
            case "confirm" if not rest:
                await self._context.order(NetworkConfirm(request_id="-"), timeout_s=APPLY_TIMEOUT_S)
            case "cancel" if not rest:
                await self._context.order(NetworkCancel(request_id="-"), timeout_s=APPLY_TIMEOUT_S)
            case "history" if not rest:
                past = await self._context.control.ask(NetworkPast(request_id="-"), NetworkRevisions)
                self._context.terminal.show([revisions_part(past)])
            case "rollback" if rest.isdecimal() or not rest:
                self._now = await _text(self._context, int((rest or "1")[:4]))
                self._context.say("Taken; 'diff' shows what it changes, 'commit' applies it.")
            case "discard" if not rest:
                self._now = self._before = await _text(self._context, None)
            case "":
                pass
            case _:
                self._context.say(HELP)

    async def _diff(self) -> None:
        lines = difflib.unified_diff(
            masked(self._before).splitlines(), masked(self._now).splitlines(), lineterm="", n=2
        )
        changed = list(lines)[2:]
        self._context.terminal.show(changed)
        found = await self._context.control.ask(NetworkDiff(request_id="-", text=self._now), NetworkPlan)
        self._context.terminal.show([f"warning: {line}" for line in found.warnings])
        self._context.terminal.show(found.lines or ["Applying it would change nothing."])

    async def _commit(self, words: Sequence[str]) -> None:
        confirm_s = 0.0
        if words:
            if words[0] != "confirmed" or len(words) > 2 or (words[1:] and not words[1].isdecimal()):
                raise CommandFailed("it goes like this: commit, or commit confirmed [SECONDS]")
            confirm_s = float(words[1][:6]) if words[1:] else CONFIRM_S
            if not 1 <= confirm_s <= 86_400:
                raise CommandFailed("expected 1 to 86400 seconds")
        await self._context.order(
            NetworkApply(request_id="-", text=self._now, confirm_s=confirm_s), timeout_s=APPLY_TIMEOUT_S
        )
        self._before = self._now


def masked(text: str) -> str:
    """A text of network.yaml without the secrets that are written out in it."""
    return _SECRET.sub(lambda match: match["key"] + _MASK, text)


def complete(text: str) -> Sequence[str]:
    """What the last word of a line that has begun so may become."""
    words = text.split(" ")
    match words:
        case [begun]:
            return [word for word in _WORDS if word.startswith(begun)]
        case ["set" | "delete", path]:
            return continuations(path)
        case ["set", path, begun]:
            return [value for value in values_at(path) if value.startswith(begun)]
        case ["commit", begun]:
            return [word for word in ("confirmed",) if word.startswith(begun)]
        case _:
            return ()


COMMAND = Command(
    "configure",
    "change the network step by step",
    (("configure", "edits a copy of network.yaml; 'help' in there tells more"),),
    run,
)
