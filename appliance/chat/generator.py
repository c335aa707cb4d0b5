"""What writes the text, seen from the chat: a place on a worker, and a reply written there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from appliance.wire.messages import Finished, Sampling, Turn


class Generation(Protocol):
    """A place on a worker, for one reply."""

    async def run(
        self,
        turns: Sequence[Turn],
        sampling: Sampling,
        on_text: Callable[[str], None],
        on_progress: Callable[[int, int], None],
        *,
        whole: bool,
    ) -> Finished:
        """Writes the reply, calling `on_text` with each piece and, while a long prompt is read, `on_progress` with the tokens
        that were read and their total. With `whole`, nobody reads along, and pieces may be larger and later. GenerationFailed
        when the worker dies or gives up."""
        ...

    def cancel(self) -> None:
        """Asks for the end of `run`, which then returns Finished(cancelled)."""
        ...


class Generator(Protocol):
    """Gives places."""

    def lease(
        self, request_id: str, session_id: str, *, model: str, adapter: str, on_queued: Callable[[int], None]
    ) -> AbstractAsyncContextManager[Generation]:
        """A place, and the session's lock with it. `on_queued` hears the place in the queue, 1 for the next, whenever it changes.

        `model` is empty for the default model, `adapter` for none. NotServed when nobody has them, Unavailable when there is no
        place in time.
        """
        ...
