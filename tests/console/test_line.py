"""A line on real pseudo-terminals: nobody there, somebody slow, a hangup."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from console.errors import LineLost
from console.line import OUTPUT_LIMIT_BYTES, PseudoTerminal, open_serial
from console.link import TerminalCable
from tests.waiting import look_until

from .person import person_on_a_line


class Heard:
    """What a line has told."""

    def __init__(self) -> None:
        self.data = b""
        self.lost: list[str] = []

    def received(self, data: bytes) -> None:
        self.data += data


async def test_both_ways() -> None:
    heard = Heard()
    with person_on_a_line() as person:
        line = open_serial(person.device, received=heard.received, lost=heard.lost.append)
        line.write(b"hello")
        await person.sees("hello")
        person.type("back")
        await look_until("it was heard", lambda: heard.data == b"back")
        await line.close()
    assert heard.lost == []


async def test_nobody_reads_and_nobody_is_held_up() -> None:
    """What does not fit is left out, and whoever reads again is told."""
    heard = Heard()
    with person_on_a_line() as person:
        person.stop_reading()
        line = open_serial(person.device, received=heard.received, lost=heard.lost.append)
        for _ in range(64):
            line.write(b"x" * 8192)
            await asyncio.sleep(0)
        waiting = asyncio.create_task(line.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        person.type("still heard")
        await look_until("it was heard", lambda: heard.data == b"still heard")
        person.look_again()
        await waiting
        told = await person.sees(r"\[(\d+) bytes were left out")
        assert person.screen.count("x") <= OUTPUT_LIMIT_BYTES + 65_536  # ours and the kernel's
        assert person.screen.count("x") + int(told[1]) == 64 * 8192
        await line.close()


async def test_closing_does_not_wait_for_who_does_not_read() -> None:
    with person_on_a_line() as person:
        person.stop_reading()
        line = open_serial(person.device, received=lambda _: None, lost=lambda _: None)
        line.write(b"x" * OUTPUT_LIMIT_BYTES)
        waiting = asyncio.create_task(line.room())
        async with asyncio.timeout(10):
            await line.close()
            await waiting
        line.write(b"nothing comes of it")
        assert line.size == (0, 0)


async def test_a_hangup_is_told_once() -> None:
    heard = Heard()
    with person_on_a_line() as person:
        # The last descriptor at the other end closes with the person's: that is a hangup.
        line = open_serial(person.device, received=heard.received, lost=heard.lost.append)
        person.close()
        await look_until("it was told", lambda: bool(heard.lost))
        line.write(b"to nobody")
        await line.room()
        assert len(heard.lost) == 1
        assert line.gone
        await line.close()


async def test_a_device_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(LineLost, match="nowhere"):
        open_serial(tmp_path / "nowhere", received=lambda _: None, lost=lambda _: None)


async def test_a_line_is_one_console_s() -> None:
    with person_on_a_line() as person:
        line = open_serial(person.device, received=lambda _: None, lost=lambda _: None)
        with pytest.raises(LineLost):
            open_serial(person.device, received=lambda _: None, lost=lambda _: None)
        await line.close()


async def test_a_pseudo_terminal_is_attached_while_somebody_has_it_open() -> None:
    ours, theirs = os.openpty()
    os.close(theirs)
    terminal = PseudoTerminal(ours)
    cable, heard = TerminalCable(ours), Heard()
    for _ in range(3):
        assert not cable.attached()
        person = os.open(f"/dev/{terminal.name}", os.O_RDWR | os.O_NOCTTY)
        assert cable.attached()
        line = terminal.open(received=heard.received, lost=heard.lost.append)
        line.write(b"hi")
        assert os.read(person, 2) == b"hi"
        os.close(person)
        await look_until("it was told", lambda: bool(heard.lost))
        heard.lost.clear()
        await line.close()
    terminal.close()


async def test_lines_leave_nothing_open() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    counts = []
    for _ in range(5):
        with person_on_a_line() as person:
            line = open_serial(person.device, received=lambda _: None, lost=lambda _: None)
            line.write(b"x")
            await person.sees("x")
            await line.close()
        counts.append(descriptors())
    assert len(set(counts[1:])) == 1, counts
