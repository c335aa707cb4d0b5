"""The log of `coral-reef run` on disk too, bounded, so that another terminal can read it (`coral-reef logs`).

Under systemd the journal does this; here the launcher gives its children one pipe as standard error and copies what comes.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

#: The file and its one predecessor have at most this length each.
FILE_LIMIT_BYTES = 4 * 1024 * 1024

#: How often a reader that follows looks for more.
FOLLOW_PERIOD_S = 0.2

#: A reader takes lines from at most so much of the end of each file.
TAIL_BYTES = 1024 * 1024


class LogFile:
    """Appends to `path`; when it is full it becomes `path.1`, whose own predecessor goes."""

    def __init__(self, path: Path, limit_bytes: int = FILE_LIMIT_BYTES) -> None:
        self._path, self._limit_bytes = path, limit_bytes
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = self._open()

    def write(self, data: bytes) -> None:
        """Written at once; OSError (disk full) is the caller's to ignore."""
        if self._file.tell() + len(data) > self._limit_bytes and self._file.tell():
            self._file.close()
            self._path.replace(previous(self._path))
            self._file = self._open()
        self._file.write(data)

    def close(self) -> None:
        self._file.close()

    def _open(self) -> io.FileIO:
        return io.FileIO(
            os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "a"
        )


class Copier:
    """A pipe whose content goes to standard error and into a log file."""

    def __init__(self, file: LogFile) -> None:
        self._read, self.descriptor = os.pipe2(os.O_CLOEXEC)
        self._file = file
        self._thread = threading.Thread(target=self._copy, name="log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """After the children have ended: returns when everything that they said is written."""
        os.close(self.descriptor)
        self._thread.join()
        os.close(self._read)
        self._file.close()

    def _copy(self) -> None:
        while data := os.read(self._read, 65_536):
            # A terminal that is gone, or a full disk, must not stop the appliance: it keeps running, with less to read.
            with contextlib.suppress(OSError):
                sys.stderr.buffer.write(data)
                sys.stderr.buffer.flush()
            with contextlib.suppress(OSError):
                self._file.write(data)


def previous(path: Path) -> Path:
    """Where a full log file goes."""
    return path.with_name(path.name + ".1")


def last_lines(path: Path, count: int) -> list[bytes]:
    """The newest lines of the log, the file before it included when there are too few; none when there is no log."""
    lines: list[bytes] = []
    for each in (path, previous(path)):
        if len(lines) >= count:
            break
        with contextlib.suppress(FileNotFoundError), each.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            start = max(0, end - TAIL_BYTES)
            file.seek(start)
            found = file.read(TAIL_BYTES).splitlines(keepends=True)
            lines = (found[1:] if start else found) + lines
    return lines[len(lines) - count :] if count < len(lines) else lines


def follow(path: Path, ended: Callable[[], bool] = lambda: False) -> Iterator[bytes]:
    """What is added to the log from now on, across changes of the file, until `ended`."""
    file = None
    with contextlib.suppress(FileNotFoundError):
        file = path.open("rb")
        file.seek(0, os.SEEK_END)
    try:
        while not ended():
            if file is not None and (data := file.read(65_536)):
                yield data
                continue
            try:
                changed = file is None or os.fstat(file.fileno()).st_ino != path.stat().st_ino
            except FileNotFoundError:
                changed = False
            if changed:
                if file is not None:
                    yield file.read()  # what was written between our last look and the change
                    file.close()
                file = path.open("rb")
                continue
            time.sleep(FOLLOW_PERIOD_S)
    finally:
        if file is not None:
            file.close()
