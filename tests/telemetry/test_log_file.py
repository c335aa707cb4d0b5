"""The log on disk: bounded, read from its end, followed across a change of the file."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from appliance.telemetry.log_file import Copier, LogFile, follow, last_lines, previous


def test_two_files_at_most(tmp_path: Path) -> None:
    path = tmp_path / "logs/log"
    file = LogFile(path, limit_bytes=100)
    for number in range(100):
        file.write(b"line %3d\n" % number)
    file.close()
    assert sorted(path.parent.iterdir()) == [path, previous(path)]
    assert all(each.stat().st_size <= 100 for each in path.parent.iterdir())
    assert path.stat().st_mode & 0o777 == 0o600
    assert last_lines(path, 12) == [b"line %3d\n" % number for number in range(88, 100)]
    assert last_lines(path, 2) == [b"line  98\n", b"line  99\n"]
    assert last_lines(path, 0) == []


def test_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    for word in (b"one\n", b"two\n"):
        file = LogFile(tmp_path / "log")
        file.write(word)
        file.close()
    assert last_lines(tmp_path / "log", 9) == [b"one\n", b"two\n"]


def test_no_log(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "log", 9) == []


def test_what_is_said_is_shown_and_kept(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    copier = Copier(LogFile(tmp_path / "log"))
    os.write(copier.descriptor, b"hello\n" * 100)
    copier.close()
    assert (tmp_path / "log").read_bytes() == b"hello\n" * 100
    assert capfdbinary.readouterr().err == b"hello\n" * 100


def test_following_across_a_change(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = LogFile(path, limit_bytes=20)
    file.write(b"before\n")
    heard = bytearray()
    complete, following = threading.Event(), threading.Event()

    def ended() -> bool:
        following.set()
        return complete.is_set()

    def listen() -> None:
        for data in follow(path, ended):
            heard.extend(data)
            if heard.endswith(b"9\n"):
                complete.set()

    listener = threading.Thread(target=listen)
    listener.start()
    assert following.wait(10)
    for number in range(10):
        before = len(heard)
        file.write(b"%d\n" % number)
        while len(heard) == before:  # a reader that is left behind by two changes misses lines
            assert listener.is_alive()
            complete.wait(0.01)
    listener.join(10)
    assert bytes(heard) == b"".join(b"%d\n" % number for number in range(10))
    file.close()
