"""The desktop's side of the console: which serial ports lead to a tower, and what is said when none does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.cli.main import main
from appliance.cli.serial_ports import Port, find_ports

ROOT = Path(__file__).resolve().parents[2]


class Desktop:
    """A machine with serial ports, as its kernel shows them."""

    def __init__(self, root: Path) -> None:
        self.sys, self.dev = root / "sys", root / "dev"
        (self.sys / "class/tty").mkdir(parents=True)

    def plug(self, tty: str, place: str, **attributes: str) -> None:
        device = self.sys / "devices/pci0000:00/usb1" / place
        interface = device / f"{place}:1.0"
        (interface / "tty" / tty).mkdir(parents=True)
        for name, value in attributes.items():
            (device / name).write_text(f"{value}\n", "utf-8")
        (interface / "tty" / tty / "device").symlink_to("../..")
        (self.sys / "class/tty" / tty).symlink_to(interface / "tty" / tty)


TOWER = {
    "idVendor": "1d6b",
    "idProduct": "0104",
    "manufacturer": "Coral-Reef",
    "product": "Tower",
    "serial": "0042",
}


@pytest.fixture
def desktop(tmp_path: Path) -> Desktop:
    return Desktop(tmp_path)


def test_a_tower_among_others(desktop: Desktop) -> None:
    desktop.plug("ttyACM0", "1-1", idVendor="2341", idProduct="0043", manufacturer="Arduino", serial="7")
    desktop.plug(
        "ttyACM1", "1-2", idVendor="1d6b", idProduct="0104", manufacturer="Somebody", product="Gadget"
    )
    desktop.plug("ttyACM10", "1-4", **TOWER)
    desktop.plug("ttyACM2", "1-3", **{**TOWER, "manufacturer": "", "product": "Coral-Reef"})
    desktop.plug("ttyACM3", "1-5", idVendor="1d6b")  # half gone
    assert find_ports(desktop.sys, desktop.dev) == [
        Port(desktop.dev / "ttyACM2", "0042", "1-3"),
        Port(desktop.dev / "ttyACM10", "0042", "1-4"),
    ]


def test_a_port_that_goes_meanwhile(desktop: Desktop) -> None:
    (desktop.sys / "class/tty/ttyACM0").symlink_to("nowhere")
    assert find_ports(desktop.sys, desktop.dev) == []


def test_a_machine_without_any(tmp_path: Path) -> None:
    assert find_ports(tmp_path) == []


def test_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "console"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("coral-reef: the console needs a terminal")


def test_the_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.cli import console

    monkeypatch.setattr(console, "find_ports", lambda: [Port(Path("/dev/ttyACM0"), "0042", "1-3")])
    assert main(["console", "--list"]) == 0
    assert capsys.readouterr().out.split()[-3:] == ["/dev/ttyACM0", "0042", "1-3"]
    monkeypatch.setattr(console, "find_ports", list)
    assert main(["console", "--list"]) == 1
    assert "No tower" in capsys.readouterr().out
