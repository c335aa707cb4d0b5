"""The monitor on this machine's own libudev; what it sees of TPUs is in `tests/system/test_hotplug.py`."""

from __future__ import annotations

import errno
import os

import pytest
import pyudev

from appliance.devices.monitor import Monitor, Overflow


def test_nothing_happens_here() -> None:
    monitor = Monitor()
    os.fstat(monitor.fileno())
    assert monitor.take(64) == []


def test_without_libudev(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("No library named udev")

    monkeypatch.setattr(pyudev, "Context", missing)
    with pytest.raises(OSError, match="No library named udev"):
        Monitor()


def test_lost_events_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says ENOBUFS when a socket has overflowed: too many events for a test to make."""

    def overflowed(_monitor: object, timeout: float) -> None:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    monitor = Monitor()
    monkeypatch.setattr(pyudev.Monitor, "poll", overflowed)
    with pytest.raises(Overflow, match="No buffer space available"):
        monitor.take(64)
