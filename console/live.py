"""A screen that is drawn anew again and again, where the terminal can move its cursor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

from appliance.client.screen import Part

from .terminal import Terminal

HOME, CLEAR_LINE, CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


@asynccontextmanager
async def drawing(terminal: Terminal) -> AsyncIterator[Callable[[Iterable[Part]], Awaitable[None]]]:
    """Gives what draws a whole screen in place of the one before."""
    terminal.clear()
    terminal.write(HIDE_CURSOR)

    async def draw(parts: Iterable[Part]) -> None:
        lines = terminal.drawn(parts)
        lines = [*lines[: terminal.size().rows - 2], "", "Ctrl-C ends."]
        await terminal.line.room()
        terminal.write(HOME + "".join(f"{line}{CLEAR_LINE}\n" for line in lines[:-1]))
        terminal.write(lines[-1] + CLEAR_LINE + CLEAR_BELOW)

    try:
        yield draw
    finally:
        terminal.write(f"\r{CLEAR_LINE}{SHOW_CURSOR}")
