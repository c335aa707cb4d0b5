"""Waiting for a condition with a deadline: what these tests do where others sleep."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

#: Between two looks at a condition.
LOOK_S = 0.02


def wait_for(
    what: str, condition: Callable[[], T | None], *, within_s: float = 30.0, look_s: float = LOOK_S
) -> T:
    """The first true value of `condition`; AssertionError naming `what` when there is none in time. Looks every `look_s`."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(look_s)


async def wait_until(what: str, condition: Callable[[], T | None], *, within_s: float = 30.0) -> T:
    """`wait_for` beside other coroutines; the condition itself runs in a thread."""
    return await asyncio.to_thread(wait_for, what, condition, within_s=within_s)


async def look_until(what: str, condition: Callable[[], T | None], *, within_s: float = 30.0) -> T:
    """`wait_for` for what belongs to this loop: the condition runs in it."""

    async def look() -> T | None:
        return condition()

    return await ask_until(what, look, within_s=within_s)


async def ask_until(what: str, ask: Callable[[], Awaitable[T | None]], *, within_s: float = 30.0) -> T:
    """The first true answer; AssertionError naming `what` when there is none in time."""
    deadline = time.monotonic() + within_s
    while True:
        value = await ask()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(LOOK_S)


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(*pids: int, within_s: float = 30.0) -> None:
    """Until none of these processes runs."""
    wait_for(f"processes {pids} have ended", lambda: not any(map(running, pids)), within_s=within_s)
