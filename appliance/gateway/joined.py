"""The head of a response and what follows it at once, in one piece: uvicorn writes them one after the other, and each write is a
call of the kernel and a packet (4 us of the 26 us of a small answer)."""

from __future__ import annotations

import asyncio


class Joined(asyncio.Transport):
    """What one response writes to. Its first piece waits for the second, or for the end of this round of the loop."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._first: bytes | bytearray | memoryview | None = None
        self._begun = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._begun:
            self._begun = True
            self._first = data
            self._loop.call_soon(self._flush)
        elif self._first is not None:
            first, self._first = self._first, None
            self._transport.writelines([first, data])
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._first is not None and not self._transport.is_closing():
            self._transport.write(self._first)
        self._first = None
