"""`coral-reef console`: this terminal becomes a tower's console, over its USB cable or on the one that `coral-reef run` opens."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .exit_status import ExitStatus, Failed
from .place import add_place_options, paths_of
from .serial_ports import Port, find_ports
from .tables import print_table

#: Leaves: Ctrl-], as telnet(1) has it.
ESCAPE = b"\x1d"

#: Until the line was raw, this side has echoed what the tower said: takes that back, and has a new prompt come.
HELLO = b"\x15\r"

#: How often a cable that is out is looked for.
LOOK_S = 0.3

#: What is typed while the line takes nothing.
OUT_LIMIT_BYTES = 1024 * 1024


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "console",
        help="open the serial console",
        description="Opens a tower's serial console in this terminal: over the USB cable, or the one that 'coral-reef run' has "
        "opened here. Comes back by itself when the cable does. Ctrl-] leaves.",
    )
    parser.add_argument("--line", type=Path, metavar="DEVICE", help="as /dev/ttyACM0 or /dev/pts/5")
    parser.add_argument("--list", action="store_true", help="list the towers whose cable is in, and end")
    add_place_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.list:
        return _list()
    if not sys.stdin.isatty():
        raise Failed("the console needs a terminal; 'coral-reef' has commands for scripts", ExitStatus.USAGE)
    line = arguments.line or _local(arguments)
    where = str(line) if line else "a tower's USB cable"
    print(f"Console on {where}. Ctrl-] leaves.", flush=True)
    return _Console(line).run()


def _list() -> int:
    ports = find_ports()
    if not ports:
        print("No tower's cable is in.")
        return ExitStatus.FAILED
    print_table(
        ("device", "serial number", "USB port"),
        [(str(each.device), each.serial, each.place) for each in ports],
    )
    return ExitStatus.OK


def _local(arguments: argparse.Namespace) -> Path | None:
    """The console of the appliance that runs here, if one does and no tower's cable is in."""
    line = paths_of(arguments).console_line
    return line if line.exists() and not find_ports() else None


class _Console:
    """Carries bytes between this terminal and a line, as long as somebody wants it."""

    def __init__(self, line: Path | None) -> None:
        self._line = line
        self._open = -1

    def run(self) -> int:
        signal.signal(signal.SIGWINCH, self._resize)
        with _raw(sys.stdin.fileno()):
            told = False
            while True:
                device = self._device()
                descriptor = _open(device) if device is not None else None
                if descriptor is None:
                    if not told:
                        _say(f"waiting for {self._line or 'the cable'}")
                        told = True
                    if _escaped(LOOK_S):
                        return ExitStatus.OK
                    continue
                _say(f"connected to {device}")
                told = False
                try:
                    if self._carry(descriptor):
                        return ExitStatus.OK
                finally:
                    self._open = -1
                    os.close(descriptor)
                _say("the line has gone")

    def _device(self) -> Path | None:
        """Where the line is now. Failed when there are several, and nobody has said which."""
        if self._line is not None:
            return self._line
        ports: list[Port] = find_ports()
        if len(ports) > 1:
            raise Failed(
                f"several towers are connected: choose one with --line, as {', '.join(str(each.device) for each in ports)}",
                ExitStatus.USAGE,
            )
        return ports[0].device if ports else None

    def _carry(self, line: int) -> bool:
        """True when the person leaves, False when the line has gone."""
        keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
        self._open = line
        self._resize()
        out = bytearray(HELLO)
        while True:
            # What the line does not take waits at the keyboard; not the first megabyte, for Ctrl-] to be heard.
            reading = [line, keyboard] if len(out) < OUT_LIMIT_BYTES else [line]
            readable, writable, _ = select.select(reading, [line] if out else [], [])
            try:
                if line in readable:
                    data = os.read(line, 65_536)
                    if not data:
                        return False
                    _write_all(screen, data)
                if line in writable:
                    del out[: os.write(line, out)]
            except BlockingIOError:
                continue
            except OSError:  # unplugged
                return False
            if keyboard in readable:
                typed = os.read(keyboard, 4096)
                if not typed or ESCAPE in typed:
                    return True
                out += typed

    def _resize(self, *_: object) -> None:
        """A pseudo-terminal passes the size of this terminal on; a serial line cannot."""
        if self._open >= 0:
            with contextlib.suppress(OSError, termios.error):
                termios.tcsetwinsize(self._open, termios.tcgetwinsize(sys.stdout.fileno()))


def _open(device: Path) -> int | None:
    """The line, raw; None when it is not there (any more). Failed when it is there and cannot be used."""
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        raise Failed(
            f"this user may not open {device}: join the group that may ('sudo usermod --append --groups {_group(device)} $USER', "
            "then log in again), or try with sudo",
            ExitStatus.REFUSED,
        ) from None
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Failed(f"{device} is in use by another program: end it first", ExitStatus.IN_USE) from None
        return None
    try:
        tty.setraw(descriptor)
    except termios.error:
        os.close(descriptor)
        raise Failed(f"{device} is no terminal line", ExitStatus.USAGE) from None
    return descriptor


def _group(device: Path) -> str:
    try:
        return device.group()
    except (OSError, KeyError):
        return "dialout"


@contextlib.contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    """This terminal hands over every key, Ctrl-C too, and is as it was afterwards."""
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)
        print(flush=True)


def _escaped(within_s: float) -> bool:
    """Whether the person leaves while there is nothing to be connected to."""
    deadline = time.monotonic() + within_s
    while (left := deadline - time.monotonic()) > 0:
        readable, _, _ = select.select([sys.stdin], [], [], left)
        if readable:
            typed = os.read(sys.stdin.fileno(), 4096)
            if not typed or ESCAPE in typed or b"\x03" in typed:
                return True
    return False


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _say(text: str) -> None:
    _write_all(sys.stdout.fileno(), f"\r\n[{text}]\r\n".encode())
