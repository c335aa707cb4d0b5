"""`coral-reef tpu` before a control socket of a tower that never was."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

import appliance
from appliance.cli.main import main
from appliance.client import screen, tower
from appliance.devices.errors import NoSuchTpu
from appliance.paths import Paths
from appliance.scheduling.invoke_leases import InvokeLeases
from appliance.scheduling.leases import LeaseTable
from appliance.supervisor.control import ControlSocket
from appliance.telemetry.interfaces import Interfaces
from appliance.wire.messages import (
    Hotplug,
    Status,
    Topic,
    Tpu,
    TpuBus,
    TpuChanged,
    TpuRole,
    TpuState,
    Tray,
)
from tests.supervisor.some_logins import some_logins
from tests.supervisor.some_network import some_desk
from tests.supervisor.test_control import STATUS, SomeOrders

ROOT = Path(appliance.__file__).parents[1]


def tpu(
    slot: int, state: TpuState, *, tray: str = "tray-1", role: TpuRole = TpuRole.LANGUAGE, **more: object
) -> Tpu:
    made = Tpu(
        id=f"usb-1-{tray[-1]}.{slot}",
        bus=TpuBus.USB,
        state=state,
        node=f"/dev/bus/usb/001/{slot:03}",
        sysfs="/sys/x",
        tray=tray,
        slot=slot,
        role=role,
        load_limit=1.0,
    )
    return msgspec.structs.replace(made, **more)


TOWER = msgspec.structs.replace(
    STATUS,
    tpus=[
        tpu(1, TpuState.READY, since_s=90.0, speed_mbps=480),
        tpu(2, TpuState.LEASED, role=TpuRole.PERCEPTION, worker="tpu-1"),
        tpu(3, TpuState.GONE, role=TpuRole.MEMORY),
        tpu(8, TpuState.BOOT_LOADER, role=TpuRole.MEMORY, stands_in=True),
        tpu(
            1,
            TpuState.HOT,
            tray="tray-2",
            temperature_c=84.4,
            detail="gets half of its work",
            load_limit=0.5,
        ),
        tpu(2, TpuState.QUARANTINED, tray="tray-2", detail="went away 5 times"),
    ],
    trays=[
        Tray(name="tray-1", slots=8, identity="reef-0042", persona="marina"),
        Tray(name="tray-2", slots=8, problem="/x is no tray identity"),
    ],
    hotplug=Hotplug.UDEV,
)


class TowerOrders(SomeOrders):
    async def quarantine_tpu(self, tpu_id: str) -> str:
        if tpu_id != "usb-1-1.1":
            raise NoSuchTpu(f"no TPU is called {tpu_id!r}")
        return "used no more"


@contextmanager
def tower_at(paths: Paths, status: Status) -> Iterator[tuple[ControlSocket, asyncio.AbstractEventLoop]]:
    """A control socket in a thread of its own."""
    paths.supervisor.mkdir(parents=True)
    loop = asyncio.new_event_loop()
    control = ControlSocket(
        paths.control_socket,
        LeaseTable(queue_limit=1),
        InvokeLeases(limit=1),
        status=lambda: status,
        traffic=Interfaces().traffic,
        socket_of=lambda worker: ("", ""),
        orders=TowerOrders(),
        logins=some_logins(paths.supervisor),
        network=some_desk(),
        why_none_is_ready=lambda: "",
        queue_timeout_s=1.0,
    )
    loop.run_until_complete(control.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield control, loop
    finally:
        asyncio.run_coroutine_threadsafe(control.close(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()


@pytest.fixture
def state() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def run(state: Path, *arguments: str) -> int:
    return main(["tpu", *arguments, "--state", str(state)])


def test_list(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tower_at(Paths.under(state), TOWER):
        assert run(state, "list") == 0
        out = capsys.readouterr().out
        rows = [line.split() for line in out.splitlines()]
        assert ["usb-1-1.1", "tray-1", "1", "language", "ready", "1", "min"] in rows
        assert ["usb-1-1.8", "tray-1", "8", "memory", "(reserve)", "boot", "loader", "0", "s"] in rows
        assert any(row[:6] == ["usb-1-2.1", "tray-2", "1", "language", "hot", "84"] for row in rows)
        assert run(state, "list", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert (len(found["tpus"]), len(found["trays"]), found["hotplug"]) == (6, 2, "udev")


def drawn(status: Status) -> list[str]:
    page = io.StringIO()
    screen.show(tower.tower_parts(status), Console(file=page, width=200, highlight=False))
    return page.getvalue().splitlines()


def test_the_drawing() -> None:
    lines = [line.rstrip() for line in drawn(TOWER)]
    assert lines == [
        "       ╭──────────────────────────╮",
        "tray-2 │ L  L                     │ 2 of 8, at most 84 °C",
        "       │ ▲  ■  ·  ·  ·  ·  ·  ·   │ /x is no tray identity",
        "       ├──────────────────────────┤",
        "tray-1 │ L  P  M              M*  │ 3 of 8",
        "       │ ●  ◆  -  ·  ·  ·  ·  ○   │ reef-0042, persona marina",
        "       ╰──────────────────────────╯",
        (
            "● 1 ready   ○ 1 ready, not opened yet   ◆ 1 at work   ▲ 1 hot   ■ 1 in quarantine   - 1 gone   "
            "L language   P perception   M memory   * stands in for one that does not work"
        ),
    ]


def test_every_state_and_role_has_a_look() -> None:
    assert set(tower.LOOKS) == set(TpuState)
    assert set(tower.ROLES) == set(TpuRole)
    signs = [look.sign for look in (*tower.LOOKS.values(), tower.EMPTY)]
    assert len(set(signs)) == len(signs)  # told apart without colours


def test_a_tray_of_many_rows() -> None:
    big = msgspec.structs.replace(
        STATUS,
        tpus=[tpu(slot, TpuState.READY) for slot in range(1, 19)],
        trays=[Tray(name="tray-1", slots=18)],
        hotplug=Hotplug.POLLED,
    )
    lines = drawn(big)
    assert [line.count("●") for line in lines] == [0, 0, 16, 0, 2, 0, 1, 0]
    assert len({len(line) for line in lines if line.endswith("│")}) <= 1
    assert lines[-1].startswith("No udev runs here")


def test_nothing_attached(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tower_at(Paths.under(state), STATUS):
        assert run(state, "list") == 0
    assert capsys.readouterr().out.startswith("No TPU is attached: the processor runs all models.\n")


def test_show(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tower_at(Paths.under(state), TOWER):
        assert run(state, "show", "usb-1-1.1") == 0
        out = capsys.readouterr().out
        assert "place        tray-1, slot 1\n" in out
        assert "bus          USB, 480 Mbit/s (slow: use a USB 3 port and cable)\n" in out
        assert run(state, "show", "usb-1-2.1", "--json") == 0
        assert json.loads(capsys.readouterr().out)["load_limit"] == 0.5
        assert run(state, "show", "usb-9-9") == 1
        assert (
            capsys.readouterr().err
            == "coral-reef: no TPU is called 'usb-9-9'; 'coral-reef tpu list' shows them\n"
        )


def test_orders(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tower_at(Paths.under(state), TOWER):
        assert run(state, "reset", "usb-1-1.1") == 0
        assert run(state, "quarantine", "usb-1-1.1") == 0
        assert capsys.readouterr().out == "usb-1-1.1 was reset\nused no more\n"
        assert run(state, "quarantine", "usb-9-9") == 1
        assert capsys.readouterr().err == "coral-reef: no TPU is called 'usb-9-9'\n"
    assert run(state, "reset", "usb-1-1.1") == 69


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "appliance", *words]


def test_watch(state: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with (
        tower_at(Paths.under(state), TOWER) as (control, loop),
        subprocess.Popen(
            command("tpu", "watch", "--state", str(state)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        ) as watching,
    ):
        assert watching.stdout is not None
        assert watching.stderr is not None
        shown = [watching.stdout.readline().split()[0] for _ in TOWER.tpus]
        assert shown == [each.id for each in TOWER.tpus]
        for each in TOWER.tpus[1], TOWER.tpus[4]:
            loop.call_soon_threadsafe(control.publish, Topic.TPU, TpuChanged(tpu=each))
        assert watching.stdout.readline() == "usb-1-1.2            tray-1 slot 2: leased, worker tpu-1\n"
        assert (
            watching.stdout.readline()
            == "usb-1-2.1            tray-2 slot 1: hot, 84 °C: gets half of its work\n"
        )
        asyncio.run_coroutine_threadsafe(control.close(), loop).result(20)
        assert watching.wait(30) == 69
        assert watching.stderr.read().startswith("coral-reef: the appliance does not run (any more)")


def completed(state: Path, line: str) -> list[str]:
    """What the shell would offer."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "CORAL_REEF_STATE": str(state),
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(state / "out"),
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    code = "import sys; sys.argv[0] = 'coral-reef'; from appliance.cli.main import main; main()"
    subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=60, cwd=state)
    return (state / "out").read_text().split()


def test_the_shell_is_told_the_tpus(state: Path) -> None:
    with tower_at(Paths.under(state), TOWER):
        assert completed(state, "coral-reef tpu reset usb-1-2.") == ["usb-1-2.1", "usb-1-2.2"]
    assert completed(state, "coral-reef tpu show usb") == []
