"""A terminal line that is read and written without ever waiting: the serial gadget (ttyGS0), a UART, or a pseudo-terminal.

A line may have nobody at its other end for days. Nothing that is written then may hold anybody up: output is kept up to a limit
and sent as the line takes it. The kernel keeps what was written and waits for it in close(2), up to 15 s for the serial gadget
(u_serial.c, GS_CLOSE_TIMEOUT): that happens in a thread, and the wait ends by a signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import struct
import termios
import threading
import tty
from collections.abc import Callable
from pathlib import Path

import serial

from .errors import LineLost

log = logging.getLogger(__name__)

#: What a session may owe a slow line: some screens. What does not fit is left out, and the person is told.
OUTPUT_LIMIT_BYTES = 64 * 1024

#: Who has much to say waits until less than this is owed: 0.4 s of a UART at 115200 baud.
ROOM_BYTES = 4096

READ_BYTES = 4096
WRITE_BYTES = 4096

#: As fast as a UART gets everywhere; the serial gadget does not care.
BAUD = 115_200

#: How long close(2) may take by itself, then how often it is interrupted, and how long all of it may take.
CLOSE_PATIENCE_S = 0.1
CLOSE_INTERRUPT_S = 0.05
CLOSE_LIMIT_S = 2.0


class Line:
    """One opened descriptor of a line; owns it. `received` is given what comes in, `lost` is called once, when it has gone."""

    def __init__(
        self,
        name: str,
        descriptor: int,
        *,
        received: Callable[[bytes], None],
        lost: Callable[[str], None],
        release: Callable[[], None] | None = None,
    ) -> None:
        self.name, self._descriptor = name, descriptor
        self._received, self._on_lost = received, lost
        self._release = release or (lambda: os.close(descriptor))
        self._loop = asyncio.get_running_loop()
        self._out = bytearray()
        self._left_out = 0
        self._waits_for_room = False
        self._has_room = asyncio.Event()
        self._has_room.set()
        self.gone = False
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._readable)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns as whoever is at the other end has set them; (0, 0) when the line cannot know."""
        if self.gone:
            return 0, 0
        try:
            return termios.tcgetwinsize(self._descriptor)
        except (OSError, termios.error):
            return 0, 0

    def write(self, data: bytes) -> None:
        """Sends as soon as the line takes it. Beyond the limit it is left out; a note says so when there is room."""
        if self.gone:
            return
        if len(self._out) + len(data) > OUTPUT_LIMIT_BYTES:
            self._left_out += len(data)
            return
        self._out += data
        if len(self._out) > ROOM_BYTES:
            self._has_room.clear()
        if not self._waits_for_room:
            self._writable()

    async def room(self) -> None:
        """Returns when little is owed to the line, or it has gone."""
        await self._has_room.wait()

    async def close(self) -> None:
        """Gives the line up, within CLOSE_LIMIT_S whoever is at the other end."""
        self._give_up()
        # Without a handler the signal would end the process. No SA_RESTART: what it interrupts, ends.
        signal.signal(signal.SIGUSR1, lambda *_: None)
        thread = threading.Thread(target=self._close, name=f"close {self.name}", daemon=True)
        thread.start()
        patience, deadline = CLOSE_PATIENCE_S, self._loop.time() + CLOSE_LIMIT_S
        await asyncio.to_thread(thread.join, patience)
        while thread.is_alive() and self._loop.time() < deadline:
            assert thread.ident is not None
            signal.pthread_kill(thread.ident, signal.SIGUSR1)
            await asyncio.to_thread(thread.join, CLOSE_INTERRUPT_S)
        if thread.is_alive():
            log.error("%s does not close: left to the kernel", self.name)

    def _close(self) -> None:
        with contextlib.suppress(OSError, termios.error):
            termios.tcflush(self._descriptor, termios.TCIOFLUSH)
        with contextlib.suppress(OSError):
            self._release()

    def _give_up(self) -> None:
        if self.gone:
            return
        self.gone = True
        self._loop.remove_reader(self._descriptor)
        self._loop.remove_writer(self._descriptor)
        self._out.clear()
        self._has_room.set()

    def _lose(self, reason: str) -> None:
        if not self.gone:
            self._give_up()
            self._on_lost(reason)

    def _readable(self) -> None:
        try:
            data = os.read(self._descriptor, READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:  # EIO after a hangup
            self._lose(error.strerror or str(error))
            return
        if data:
            self._received(data)
        else:
            self._lose("hung up")

    def _writable(self) -> None:
        try:
            taken = os.write(self._descriptor, self._out[:WRITE_BYTES])
        except BlockingIOError:
            taken = 0
        except OSError as error:
            self._lose(error.strerror or str(error))
            return
        del self._out[:taken]
        if len(self._out) <= ROOM_BYTES:
            if self._left_out:
                self._out += f"\r\n[{self._left_out} bytes were left out: this line is slow]\r\n".encode()
                self._left_out = 0
            self._has_room.set()
        if bool(self._out) != self._waits_for_room:
            self._waits_for_room = bool(self._out)
            if self._waits_for_room:
                self._loop.add_writer(self._descriptor, self._writable)
            else:
                self._loop.remove_writer(self._descriptor)


def open_serial(path: Path, *, received: Callable[[bytes], None], lost: Callable[[str], None]) -> Line:
    """Opens a serial device for this process alone, raw, at BAUD. LineLost when that cannot be."""
    try:
        port = serial.Serial(str(path), BAUD, timeout=0, write_timeout=0, exclusive=True)
    except (OSError, termios.error) as error:  # pyserial's own is an OSError
        raise LineLost(f"cannot open {path}: {error}") from None
    return Line(path.name, port.fileno(), received=received, lost=lost, release=port.close)


class PseudoTerminal:
    """A pseudo-terminal that people attach to at `/dev/NAME`; `descriptor` is our end of it, and ours to close."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.name = descriptor, f"pts/{_number_of(descriptor)}"

    def open(self, *, received: Callable[[bytes], None], lost: Callable[[str], None]) -> Line:
        """A line to whoever is attached. Raw from now on: what is typed is echoed by us or not at all."""
        with contextlib.suppress(OSError, termios.error):
            tty.setraw(self.descriptor)
        return Line(self.name, os.dup(self.descriptor), received=received, lost=lost)

    def close(self) -> None:
        """Whoever is attached reads an end."""
        os.close(self.descriptor)


def _number_of(descriptor: int) -> int:
    """Which one it is: ioctl_tty(2), TIOCGPTN."""
    (number,) = struct.unpack("I", fcntl.ioctl(descriptor, 0x8004_5430, b"\0" * 4))
    return int(number)
