"""The loop around the keeper, in this process: what it tells systemd and the world, and that it leaves nothing."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from appliance.network.gadget.keeper import Keeper
from appliance.network.gadget.plan import NAME
from appliance.network.gadget.service import Service
from appliance.wire.messages import UsbLink, UsbState
from tests.network.gadget.test_keeper import UDC, Bench


@pytest.fixture
def notified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What systemd hears."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as found:
        found.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield found


@pytest.fixture
def handlers() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def messages(notified: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(notified.recv(4096).decode())
        except BlockingIOError:
            return found


@pytest.mark.usefixtures("handlers")
def test_from_start_to_end(tmp_path: Path, notified: socket.socket) -> None:
    (tmp_path / "tree").mkdir()
    bench = Bench(tmp_path / "tree")
    said: list[UsbLink] = []

    def publish(content: bytes) -> None:
        """What the world does next."""
        said.append(msgspec.json.decode(content, type=UsbLink))
        match len(said):
            case 1:
                bench.tree.add_controller(UDC)
            case 2:
                assert (bench.tree.gadgets / NAME).is_dir()
                bench.tree.set_state(UDC, "configured")
            case 3:
                os.kill(os.getpid(), signal.SIGTERM)

    service = Service(Patient(bench.keeper), bench.tree.udc, publish=publish)  # type: ignore[arg-type]
    signal.signal(signal.SIGTERM, service.stop)
    service.run()
    assert [each.state for each in said] == [UsbState.WAITING, UsbState.UNPLUGGED, UsbState.CONNECTED]
    assert list(bench.tree.gadgets.iterdir()) == []
    heard = messages(notified)
    assert heard[0] == "READY=1\nSTATUS=this machine has no USB device controller (yet)"
    assert "READY=1\nSTATUS=a desktop is connected (high-speed); direct mode on usb0, 10.67.82.1/28" in heard
    assert heard.count("WATCHDOG=1") == 3
    assert heard[-1].startswith("STOPPING=1")


class Patient:
    """A keeper that is looked at again at once: a folder does not tell of changes as sysfs does."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self.status, self.close = keeper.status, keeper.close

    def look(self) -> float:
        self._keeper.look()
        return 0.0
