"""Reads a line from a person: with prompt_toolkit where the terminal moves its cursor, else with the means of a teletype. Both
have history, completion and help as one types."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session, run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyPress, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.utils import get_cwidth

from .history import History
from .terminal import Terminal


def nothing(_: str) -> Sequence[str]:
    """Where there is nothing to complete."""
    return ()


@dataclass
class Helper:
    """What helps while a line is typed. `complete` gives what the last word may become; `explain` what there is to say at this
    point, None where `?` is a character like any other."""

    history: History = field(default_factory=History)
    complete: Callable[[str], Sequence[str]] = nothing
    explain: Callable[[str], str | None] = lambda _: None


class Interrupted(Exception):
    """Ctrl-C. Not KeyboardInterrupt, for which asyncio ends its loop."""


class Refused(Exception):
    """More was pasted than is taken; the argument is a sentence about it. `spoilt`: part of it stands in the line."""

    def __init__(self, message: str, *, spoilt: bool) -> None:
        super().__init__(message)
        self.spoilt = spoilt


class Editor(ABC):
    """Asks for lines, one at a time. Ctrl-C raises Interrupted; Ctrl-D where nothing is typed, or a line that ends, EOFError."""

    def __init__(self, terminal: Terminal, helper: Helper | None = None) -> None:
        self.terminal, self.helper = terminal, helper or Helper()

    async def ask(self, prompt: str) -> str:
        """What was typed."""
        before = ""
        while True:
            try:
                line = await self._edit(prompt, before)
            except Refused as refused:
                self.terminal.say(f"\n{refused}" if self.terminal.dumb else str(refused))
                before = "" if refused.spoilt else self._typed()
                continue
            self.helper.history.store_string(line)
            return line

    @abstractmethod
    def refuse(self, refused: Refused) -> bool:
        """Tells of a paste that is too long; False when nobody is asked now."""

    @abstractmethod
    async def _edit(self, prompt: str, before: str) -> str:
        """One line, which begins with `before`; raises what `refuse` was told."""

    @abstractmethod
    def _typed(self) -> str:
        """What stands on the line now."""


class FullEditor(Editor):
    """prompt_toolkit's, with the bindings of Emacs; candidates are listed below the line, as shells do."""

    def __init__(self, terminal: Terminal, helper: Helper | None = None) -> None:
        super().__init__(terminal, helper)
        output = terminal.output()
        with create_app_session(input=terminal.keyboard, output=output):
            self._session: PromptSession[str] = PromptSession(
                input=terminal.keyboard,
                output=output,
                history=self.helper.history,
                completer=_Completer(self.helper.complete),
                complete_while_typing=False,
                complete_style=CompleteStyle.READLINE_LIKE,
                editing_mode=EditingMode.EMACS,
                enable_suspend=False,
                enable_open_in_editor=False,
                key_bindings=self._bindings(),
                interrupt_exception=Interrupted,
            )
        self._output = output

    def refuse(self, refused: Refused) -> bool:
        answer = self._session.app.future
        # One that was just given, by Enter among the last keys, is taken: what is refused came after it.
        if not self._session.app.is_running or answer is None or answer.done():
            return False
        self._session.app.exit(exception=refused)
        return True

    async def _edit(self, prompt: str, before: str) -> str:
        with create_app_session(input=self.terminal.keyboard, output=self._output):
            return await self._session.prompt_async(
                prompt,
                default=before,
                # Before the first key, which may have been typed ahead: else an arrow finds nothing.
                pre_run=self._session.default_buffer.load_history_if_not_yet_loaded,
                handle_sigint=False,
                set_exception_handler=False,
            )

    def _typed(self) -> str:
        return self._session.default_buffer.text

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()

        @bindings.add("?")
        def _(event: KeyPressEvent) -> None:
            told = self.helper.explain(event.current_buffer.document.text_before_cursor)
            if told is None:
                event.current_buffer.insert_text("?")
            else:
                run_in_terminal(lambda: self.terminal.say(told))

        return bindings


class _Completer(Completer):
    def __init__(self, complete: Callable[[str], Sequence[str]]) -> None:
        self._complete = complete

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> list[Completion]:
        before = document.text_before_cursor
        begun, found = len(last_word(before)), self._complete(before)
        end = " " if len(found) == 1 else ""
        return [Completion(f"{each}{end}", start_position=-begun) for each in found]


class PlainEditor(Editor):
    """For a terminal that only knows signs, line feeds and backspaces, and for what is typed before anybody knows who it is.

    `hidden`: nothing is shown of what is typed. `held`: nothing is shown of a line as long as this holds for it. `ignored`: a
    line for which this holds never was."""

    def __init__(
        self,
        terminal: Terminal,
        helper: Helper | None = None,
        *,
        hidden: bool = False,
        held: Callable[[str], bool] = lambda _: False,
        ignored: Callable[[str], bool] = lambda _: False,
    ) -> None:
        super().__init__(terminal, helper)
        self._hidden, self._held, self._ignored = hidden, held, ignored
        self._text = self._shown = self._prompt = ""
        self._place = 0  # in the history, counted from its end; 0: the line that is being typed
        self._answer: asyncio.Future[str] | None = None

    def refuse(self, refused: Refused) -> bool:
        if self._answer is None or self._answer.done():
            return False
        self._answer.set_exception(refused)
        return True

    async def _edit(self, prompt: str, before: str) -> str:
        self._answer = asyncio.get_running_loop().create_future()
        self._prompt, self._text, self._shown, self._place = prompt, before, "", 0
        self.terminal.write(prompt)
        self._update(before)
        keyboard = self.terminal.keyboard
        try:
            with keyboard.attach(self._read):
                return await self._answer
        finally:
            self._answer = None

    def _typed(self) -> str:
        return self._text

    def _read(self) -> None:
        keyboard = self.terminal.keyboard
        if self._answer is None or self._answer.done():
            return  # what comes now is for who asks next
        keys = keyboard.read_keys()
        for number, key in enumerate(keys):
            try:
                self._press(key)
            except (Interrupted, EOFError) as error:
                self._end(error)
            if self._answer is None or self._answer.done():
                keyboard.unread(keys[number + 1 :])
                return
        if keyboard.closed:
            self._end(EOFError())

    def _end(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def _press(self, press: KeyPress) -> None:
        match press.key:
            case Keys.ControlM | Keys.ControlJ if self._ignored(self._text):
                self._update("")
            case Keys.ControlM | Keys.ControlJ:
                self.terminal.write("\n")
                if self._answer is not None and not self._answer.done():
                    self._answer.set_result(self._text)
            case Keys.ControlC:
                self.terminal.write("^C\n")
                raise Interrupted
            case Keys.ControlD:
                if not self._text:
                    self.terminal.write("\n")
                    raise EOFError
            case Keys.ControlH | Keys.Delete:
                self._update(self._text[:-1])
            case Keys.ControlU:
                self._update("")
            case Keys.ControlW:
                self._update(self._text.rstrip()[: -len(last_word(self._text.rstrip())) or None])
            case Keys.ControlL:
                self._again()
            case Keys.Up | Keys.ControlP:
                self._recall(1)
            case Keys.Down | Keys.ControlN:
                self._recall(-1)
            case Keys.ControlI:
                self._complete()
            case "?" if (told := self.helper.explain(self._text)) is not None:
                self.terminal.write("?\n")
                self.terminal.say(told)
                self._again()
            case str() as sign if not isinstance(sign, Keys) and sign.isprintable():
                self._update(self._text + sign)

    def _update(self, text: str) -> None:
        """Makes the line `text`, and the screen show it."""
        self._text = text
        wanted = "" if self._hidden or self._held(text) else text
        same = len(beginning([wanted, self._shown]))
        back = sum(get_cwidth(each) for each in self._shown[same:])
        self.terminal.write("\b \b" * back + wanted[same:])
        self._shown = wanted

    def _again(self) -> None:
        self.terminal.write(f"\r\n{self._prompt}{self._shown}")

    def _recall(self, step: int) -> None:
        lines = self.helper.history.lines
        if 0 <= self._place + step <= len(lines):
            self._place += step
            self._update(lines[-self._place] if self._place else "")

    def _complete(self) -> None:
        found = list(self.helper.complete(self._text))
        begun = last_word(self._text)
        common = beginning(found)
        if len(found) == 1:
            common += " "
        if len(common) > len(begun):
            self._update(self._text.removesuffix(begun) + common)
        elif found:
            self.terminal.write("\r\n" + "  ".join(found))
            self._again()


def last_word(text: str) -> str:
    """What is being typed: from the last space on."""
    return text[text.rfind(" ") + 1 :]


def beginning(texts: Sequence[str]) -> str:
    """What all of them begin with."""
    if not texts:
        return ""
    low, high = min(texts), max(texts)
    same = next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[:same]


def editor_for(terminal: Terminal, helper: Helper) -> Editor:
    """The best that a terminal can have."""
    return PlainEditor(terminal, helper) if terminal.dumb else FullEditor(terminal, helper)
