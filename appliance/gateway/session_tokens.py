"""Tokens of sessions on this side: the supervisor says whose they are, and is asked once in a few seconds."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from appliance.identity.session_tokens import token_digest
from appliance.wire.messages import TokenHolder

#: How long an answer is good for. An ended session is told of at once; this is for what was not told.
TTL_S = 5.0

#: Only valid ones are remembered; there are as many as people at serial lines.
REMEMBERED = 64


class SessionTokens:
    """`ask` asks the supervisor whose token has that digest; `clock` gives seconds and never goes back."""

    def __init__(
        self, ask: Callable[[bytes], Awaitable[TokenHolder | None]], clock: Callable[[], float]
    ) -> None:
        self._ask, self._clock = ask, clock
        self._holders: OrderedDict[bytes, tuple[float, TokenHolder]] = OrderedDict()
        self._ended = asyncio.Event()

    async def holder_of(self, text: str) -> TokenHolder | None:
        """Whose token `text` is; None when it is none, or nobody's (any more). Unavailable when the supervisor is away."""
        digest = token_digest(text)
        return None if digest is None else await self._holder_of(digest)

    async def over(self, text: str) -> None:
        """Returns when a token is worth nothing any more."""
        while True:
            ended = self._ended
            if await self.holder_of(text) is None:
                return
            await ended.wait()

    def forget(self) -> None:
        """A session has ended, it does not matter which: all are asked about again."""
        self._holders.clear()
        self._ended.set()
        self._ended = asyncio.Event()

    async def _holder_of(self, digest: bytes) -> TokenHolder | None:
        now = self._clock()
        if (found := self._holders.get(digest)) is not None and now - found[0] < TTL_S:
            return found[1]
        ended = self._ended
        holder = await self._ask(digest)
        if holder is not None and ended is self._ended:  # else what it said may be no longer true
            self._holders[digest] = now, holder
            self._holders.move_to_end(digest)
            while len(self._holders) > REMEMBERED:
                self._holders.popitem(last=False)
        return holder
