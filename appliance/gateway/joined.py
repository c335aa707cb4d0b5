"""The head of a response and what follows it at once, in one piece: uvicorn writes them one after the other, and each write is a
call of the kernel and a packet (4 us of the 26 us of a small answer)."""

from __future__ import annotations

import asyncio
import time

from appliance.telemetry.network_counters import Channel, Counter, NetworkCounters

#: Where the status stands in "HTTP/1.1 200 OK".
_STATUS = slice(9, 12)
_INTERIM, _ERROR = b"14"


class Joined(asyncio.Transport):
    """What one response writes to, and where it is counted: bytes, status, and what it took until it began. Its first piece waits
    for the second, or for the end of this round of the loop."""

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, counters: NetworkCounters
    ) -> None:
        self._transport, self._loop, self._counters = transport, loop, counters
        self._since: float | None = time.perf_counter()
        self._first: bytes | bytearray | memoryview | None = None
        self._begun = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._since is not None and data[9] != _INTERIM:
            self._counters.took(Channel.HTTP, time.perf_counter() - self._since)
            self._since = None
            if data[9] >= _ERROR:
                self._counters.failed(int(bytes(data[_STATUS])))
        if not self._begun:
            self._begun = True
            self._first = data
            self._loop.call_soon(self._flush)
        elif self._first is not None:
            first, self._first = self._first, None
            self._transport.writelines([first, data])
            self._counters.row[Counter.BYTES_OUT] += len(first) + len(data)
        else:
            self._transport.write(data)
            self._counters.row[Counter.BYTES_OUT] += len(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._first is not None and not self._transport.is_closing():
            self._transport.write(self._first)
            self._counters.row[Counter.BYTES_OUT] += len(self._first)
        self._first = None


class Counted(asyncio.Transport):
    """The transport of a WebSocket, whose bytes are counted, and its handshake when that is refused."""

    def __init__(self, transport: asyncio.Transport, counters: NetworkCounters) -> None:
        self._transport, self._counters = transport, counters
        self._begun = False
        for name in _PASSED_ON:
            setattr(self, name, getattr(transport, name))

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._counters.row[Counter.BYTES_OUT] += len(data)
        if not self._begun and data:
            self._begun = True
            if data[9] >= _ERROR:
                self._counters.failed(int(bytes(data[_STATUS])))
        self._transport.write(data)


_PASSED_ON = (
    "abort",
    "close",
    "get_extra_info",
    "get_write_buffer_size",
    "is_closing",
    "is_reading",
    "pause_reading",
    "resume_reading",
    "set_protocol",
    "set_write_buffer_limits",
    "write_eof",
)
