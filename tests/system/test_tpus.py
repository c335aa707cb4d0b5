"""The whole appliance while TPUs are plugged in and out: events, repairs, the API, the command line."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.devices.table import FLAPS
from tests.devices.hotplug import Testbed
from tests.waiting import wait_for

from .booted import COMMAND, Booted, booted, configure, environment, state_folder
from .talk import receive_system_event, websocket

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    with Testbed() as found:
        yield found


@pytest.fixture(scope="module")
def tower(testbed: Testbed) -> Iterator[Booted]:
    """An appliance in a tower of four layers of eight, with a TPU in each slot of the first."""
    testbed.orders(*(testbed.usb(f"1-1.{hub}.{port}") for hub in (1, 2) for port in range(1, 5)))
    with state_folder() as state:
        configure(state, '[devices]\nlayout = "4x8"\n')
        with booted(state, more=testbed.variables) as found:
            yield found


def tpus(tower: Booted) -> dict[str, Any]:
    with tower.client() as client:
        response = client.get("/api/v1/system/tpus")
    assert response.status_code == 200, response.text
    return {tpu["id"]: tpu for tpu in response.json()["tpus"]}


def command(tower: Booted, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words, "--state", str(tower.state)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_they_are_there_from_the_start(tower: Booted) -> None:
    found = tpus(tower)
    assert {(tpu["tray"], tpu["slot"], tpu["state"]) for tpu in found.values()} == {
        ("tray-1", slot, "boot_loader") for slot in range(1, 9)
    }
    with tower.client() as client:
        one = client.get("/api/v1/system/tpus/usb-1-1.2.4").json()
        assert (one["role"], one["slot"]) == ("reserve", 8)
        trays = client.get("/api/v1/system/tpus").json()["trays"]
    assert [(tray["name"], tray["slots"]) for tray in trays] == [
        (f"tray-{layer}", 8) for layer in range(1, 5)
    ]


def test_plugged_in_and_out(tower: Booted, testbed: Testbed) -> None:
    with subprocess.Popen(
        [*COMMAND, "tpu", "watch", "--json", "--state", str(tower.state)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        try:
            assert watching.stdout is not None
            there = [json.loads(watching.stdout.readline())["id"] for _ in tpus(tower)]
            assert there == list(tpus(tower))
            testbed.orders(testbed.usb("1-2.1.1"))
            wait_for("it is there", lambda: "usb-1-2.1.1" in tpus(tower))
            testbed.orders(testbed.unusb("1-2.1.1"))
            wait_for("it is gone", lambda: tpus(tower)["usb-1-2.1.1"]["state"] == "gone")
            testbed.orders(testbed.usb("1-2.1.1"))
            wait_for("it is back", lambda: tpus(tower)["usb-1-2.1.1"]["state"] == "boot_loader")
            told = [json.loads(watching.stdout.readline()) for _ in range(3)]
            assert [(tpu["id"], tpu["state"]) for tpu in told] == [
                ("usb-1-2.1.1", "boot_loader"),
                ("usb-1-2.1.1", "gone"),
                ("usb-1-2.1.1", "boot_loader"),
            ]
        finally:
            watching.terminate()


async def test_told_over_a_websocket(tower: Booted, testbed: Testbed) -> None:
    async with asyncio.timeout(60), websocket(tower) as socket:
        await socket.send(json.dumps({"type": "subscribe", "payload": {"channels": ["system"]}}))
        await receive_system_event(socket, "subscribed")
        await asyncio.to_thread(testbed.orders, testbed.usb("1-4.1.1"))
        told = await receive_system_event(socket, "tpu")
        assert (told["id"], told["tray"], told["state"]) == ("usb-1-4.1.1", "tray-4", "boot_loader")


def test_flapping_ends_in_a_repair_and_the_repair_mends_it(tower: Booted, testbed: Testbed) -> None:
    for _ in range(FLAPS):
        testbed.orders(testbed.unusb("1-1.1.2"), testbed.usb("1-1.1.2"))
    wait_for("quarantine", lambda: tpus(tower)["usb-1-1.1.2"]["state"] == "quarantined")
    reserve = tpus(tower)["usb-1-1.2.4"]
    assert (reserve["role"], reserve["stands_in"]) == ("perception", True)
    name = "tpu_quarantined:usb-1-1.1.2"
    assert name in [repair["id"] for repair in tower.status()["repairs"]]
    fixed = command(tower, "repair", "fix", name)
    assert (fixed.returncode, fixed.stdout) == (0, "usb-1-1.1.2 was reset\n")
    assert tpus(tower)["usb-1-1.1.2"]["state"] == "boot_loader"
    assert not tpus(tower)["usb-1-1.2.4"]["stands_in"]
    assert name not in [repair["id"] for repair in tower.status()["repairs"]]


def test_the_owners_quarantine(tower: Booted) -> None:
    assert command(tower, "tpu", "quarantine", "usb-1-1.1.1").returncode == 0
    assert "quarantined" in command(tower, "tpu", "show", "usb-1-1.1.1").stdout
    drawn = command(tower, "tpu", "list").stdout
    assert "1 in quarantine" in drawn
    assert command(tower, "tpu", "reset", "usb-1-1.1.1").stdout == "usb-1-1.1.1 was reset\n"
    assert tpus(tower)["usb-1-1.1.1"]["state"] == "boot_loader"


def test_another_layout(tower: Booted) -> None:
    """A reload moves them; a file that is wrong moves nothing."""
    configure(tower.state, '[[devices.trays]]\nname = "top"\nslots = ["usb-1-1.1.3", "usb-*-1.1.4"]\n')
    assert command(tower, "reload").returncode == 0
    found = tpus(tower)
    assert (found["usb-1-1.1.3"]["tray"], found["usb-1-1.1.4"]["slot"]) == ("top", 2)
    assert found["usb-1-1.1.1"]["tray"] == "unplaced"
    configure(tower.state, '[[devices.trays]]\nname = "top"\nslots = ["usb-1-1.1.3", "usb-*-1.1.3"]\n')
    assert command(tower, "reload").returncode == 0
    (what,) = [each["what"] for each in tower.status()["repairs"] if each["kind"] == "configuration_warning"]
    assert "is the same port as devices.trays[0].slots[0] on line 3" in what
    configure(tower.state, "[devices]\nthrottle_c = 99\n")
    assert command(tower, "reload").returncode == 78
    assert tpus(tower)["usb-1-1.1.3"]["tray"] == "top"
    configure(tower.state, '[devices]\nlayout = "4x8"\n')
    assert command(tower, "reload").returncode == 0


def test_a_chat_goes_on_meanwhile(tower: Booted, testbed: Testbed) -> None:
    testbed.orders(testbed.unusb("1-1.2.1"))
    assert tower.chat()["content"]
    testbed.orders(testbed.usb("1-1.2.1"))
    assert tower.chat()["content"]
