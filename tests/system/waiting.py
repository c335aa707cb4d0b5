"""Waiting for a condition with a deadline: what these tests do where others sleep."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Between two looks at a condition.
LOOK_S = 0.02


def wait_for(what: str, condition: Callable[[], T | None], *, within_s: float = 30.0) -> T:
    """The first true value of `condition`; AssertionError naming `what` when there is none in time."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(LOOK_S)


async def wait_until(what: str, condition: Callable[[], T | None], *, within_s: float = 30.0) -> T:
    """`wait_for` beside other coroutines; the condition itself runs in a thread."""
    return await asyncio.to_thread(wait_for, what, condition, within_s=within_s)
