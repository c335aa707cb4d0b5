"""Typing a line: the real prompt_toolkit and our own, on real pseudo-terminals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from console.context import Context
from console.editor import Editor, FullEditor, Helper, Interrupted, PlainEditor, beginning, editor_for
from console.history import History
from console.keyboard import Keyboard
from console.line import open_serial
from console.login import is_probe, may_be_probe
from console.terminal import Terminal

from .person import Person, person_on_a_line

UP, DOWN, LEFT = "\x1b[A", "\x1b[B", "\x1b[D"
CTRL_C, CTRL_D, CTRL_U, CTRL_W = "\x03", "\x04", "\x15", "\x17"

WORDS = ("status", "shutdown", "tpu", "worker")


def complete(text: str) -> Sequence[str]:
    return [word for word in WORDS if word.startswith(text.rpartition(" ")[2])]


@asynccontextmanager
async def terminal_of(person: Person) -> AsyncIterator[Terminal]:
    keyboard = Keyboard()
    line = open_serial(person.device, received=keyboard.received, lost=lambda _: keyboard.close())
    try:
        yield Terminal(line, keyboard)
    finally:
        keyboard.close()
        await line.close()


@pytest.fixture(params=["smart", "dumb"])
async def before(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Person, Editor]]:
    """Somebody before either kind of terminal, and the editor that it gets."""
    with person_on_a_line(smart=request.param == "smart") as person:
        async with terminal_of(person) as terminal:
            await terminal.look()
            assert terminal.dumb == (request.param == "dumb")
            helper = Helper(History(), complete, lambda text: None if '"' in text else f"about <{text}>")
            yield person, editor_for(terminal, helper)


async def typed(person: Person, editor: Editor, *keys: str | bytes) -> str:
    """What the editor makes of these keys, Enter included."""
    asked = asyncio.create_task(editor.ask("$ "))
    await person.sees(r"\$")
    for each in keys:
        person.type(each)
    try:
        async with asyncio.timeout(30):
            return await asked
    finally:
        asked.cancel()


async def test_a_line(before: tuple[Person, Editor]) -> None:
    person, editor = before
    assert type(editor) is (PlainEditor if editor.terminal.dumb else FullEditor)
    assert await typed(person, editor, "status\r") == "status"
    assert await typed(person, editor, "stati\x7fus\r") == "status"
    assert await typed(person, editor, "nonsense", CTRL_U, "status\r") == "status"
    assert await typed(person, editor, "tpu list", CTRL_W, "show\r") == "tpu show"
    assert await typed(person, editor, "grüße, 水\r") == "grüße, 水"
    assert await typed(person, editor, "\r") == ""


async def test_history(before: tuple[Person, Editor]) -> None:
    person, editor = before
    for line in ("one", "two", "three"):
        await typed(person, editor, f"{line}\r")
    assert await typed(person, editor, UP, UP, "\r") == "two"
    assert await typed(person, editor, UP, UP, UP, DOWN, "\r") == "three"
    assert editor.helper.history.lines == ["one", "two", "three", "two", "three"]


async def test_completion(before: tuple[Person, Editor]) -> None:
    person, editor = before
    assert (await typed(person, editor, "tp\t\r")).strip() == "tpu"
    asked = asyncio.create_task(editor.ask("$ "))
    await person.sees(r"\$")
    person.type("s\t\t")
    await person.sees("status")
    await person.sees("shutdown")
    person.type("h\t\r")
    assert (await asked).strip() == "shutdown"


async def test_help_as_one_types(before: tuple[Person, Editor]) -> None:
    person, editor = before
    asked = asyncio.create_task(editor.ask("$ "))
    await person.sees(r"\$")
    person.type("tpu ?")
    await person.sees("about <tpu >")
    person.type('"?\r')
    assert await asked == 'tpu "?', "the line is as it was, and in a quotation it is a sign like others"


async def test_ctrl_c_and_ctrl_d(before: tuple[Person, Editor]) -> None:
    person, editor = before
    with pytest.raises(Interrupted):
        await typed(person, editor, "some", CTRL_C)
    with pytest.raises(EOFError):
        await typed(person, editor, CTRL_D)
    assert await typed(person, editor, "some", CTRL_D, "thing\r") == "something"


async def test_what_was_typed_ahead_is_for_who_asks_next(before: tuple[Person, Editor]) -> None:
    person, editor = before
    assert await typed(person, editor, "one\rtwo\rth") == "one"
    assert await editor.ask("$ ") == "two"
    assert await typed(person, editor, "ree\r") == "three"


async def test_the_end_of_the_line_ends_the_question(before: tuple[Person, Editor]) -> None:
    person, editor = before
    asked = asyncio.create_task(editor.ask("$ "))
    await person.sees(r"\$")
    person.close()
    with pytest.raises(EOFError):
        await asked


async def test_a_paste_that_is_too_long(before: tuple[Person, Editor]) -> None:
    """A megabyte is refused, politely; what is typed then is a line like any other."""
    person, editor = before
    keyboard = editor.terminal.keyboard
    context = Context(None, editor.terminal, None, None, False, "test")  # type: ignore[arg-type]
    keyboard.refused = context.refused
    asked = asyncio.create_task(context.ask_with(editor, "$ "))
    await person.sees(r"\$")
    await person.paste(b"x" * 1_000_000)
    await person.sees(r"\[10000\d\d bytes were refused")
    await person.sees(r"\$")
    person.type("status\r")
    assert await asked == "status"


async def test_a_password_is_not_shown() -> None:
    with person_on_a_line() as person:
        async with terminal_of(person) as terminal:
            editor = PlainEditor(terminal, hidden=True)
            assert await typed(person, editor, "secrex\x7ft", "\r") == "secret"
            assert "s" not in person.screen


@pytest.mark.parametrize("probe", ["AT", "ATE1", "AT+GCAP", "ATI", "at+cgmi", "AT+CPIN?", "at"])
async def test_a_probe_never_was(probe: str) -> None:
    with person_on_a_line() as person:
        async with terminal_of(person) as terminal:
            editor = PlainEditor(terminal, held=may_be_probe, ignored=is_probe)
            assert await typed(person, editor, *probe, "\r", "anna\r") == "anna"
            await person.sees("anna\n")
            assert person.screen == "$ anna\n"


@pytest.mark.parametrize("name", ["anna", "atlas", "a", "bat", "Anna"])
async def test_names_are_echoed(name: str) -> None:
    with person_on_a_line() as person:
        async with terminal_of(person) as terminal:
            editor = PlainEditor(terminal, held=may_be_probe, ignored=is_probe)
            asked = asyncio.create_task(editor.ask("$ "))
            await person.sees(r"\$")
            person.type(name)
            if len(name) > 1:
                await person.sees(rf" {name}")
            person.type("\r")
            assert await asked == name


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(st.lists(st.binary(max_size=40), max_size=10))
def test_any_bytes_leave_the_editor_alive(junk: list[bytes]) -> None:
    """Whatever comes, a Ctrl-C and a line later all is well."""

    async def one(*, smart: bool) -> None:
        with person_on_a_line(smart=smart) as person:
            async with terminal_of(person) as terminal:
                await terminal.look()
                editor = editor_for(terminal, Helper(History(), complete))
                answers: list[str] = []

                async def ask() -> None:
                    while "status" not in answers:
                        try:
                            answers.append(await editor.ask("$ "))
                        except (Interrupted, EOFError):
                            continue

                asking = asyncio.create_task(ask())
                for each in junk:
                    await person.paste(each)
                await person.paste(b"\x03\x03\x1b\x1b\x03")
                while "status" not in answers and not asking.done():
                    person.type(f"{CTRL_C}{CTRL_U}status\r")
                    await asyncio.wait([asking], timeout=0.1)
                await asking

    for smart in (False, True):
        asyncio.run(one(smart=smart))


@given(st.lists(st.text("ab", max_size=5), max_size=5))
def test_the_common_beginning(texts: list[str]) -> None:
    found = beginning(texts)
    assert all(text.startswith(found) for text in texts)
    longer = {text[: len(found) + 1] for text in texts}
    assert len(longer) != 1 or found in texts
