"""The whole appliance with TPUs that are plugged in and out: udev's events are umockdev's, libedgetpu is the stand-in."""

from __future__ import annotations

import asyncio
import os
import signal
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from tests.devices.hotplug import Testbed
from tests.edgetpu.stand_in import Fake, StandIn, add_text_models
from tests.waiting import wait_for

from .booted import Booted, booted, command, configure, state_folder

pytestmark = pytest.mark.system

PORTS = ["1-1.1", "1-1.2", "1-1.3"]
FAKES = [Fake(f"usb-{port}") for port in PORTS]
TEXTS = [f"the tide at {hour} o'clock and what it brings" for hour in range(64)]


@dataclass
class Tower:
    """A running appliance, and who plugs its TPUs."""

    appliance: Booted
    testbed: Testbed
    stand_in: StandIn

    def plug(self, *ports: str) -> None:
        self.testbed.orders(*(self.testbed.usb(port, running=True) for port in ports))

    def unplug(self, *ports: str) -> None:
        self.testbed.orders(*(self.testbed.unusb(port) for port in ports))

    def embed(self, texts: list[str] = TEXTS) -> dict[str, Any]:
        with self.appliance.client() as client:
            response = client.post("/api/v1/embeddings", json={"input": texts, "encoding_format": "base64"})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        assert [each["index"] for each in found["data"]] == list(range(len(texts)))
        return found

    def states(self) -> dict[str, str]:
        return {each["id"]: each["state"] for each in self.appliance.status()["tpus"]}

    def until_open(self, count: int) -> None:
        """Until TPU workers have so many open."""

        def look() -> bool:
            workers = self.appliance.status()["workers"]
            found = sum(int(each["slots"]) for each in workers if each["kind"] == "tpu")
            return found == count

        wait_for(f"{count} TPUs are open", look)


@pytest.fixture(scope="module")
def tower(stand_in: StandIn) -> Iterator[Tower]:
    with Testbed() as testbed, state_folder() as state, pytest.MonkeyPatch.context() as patch:
        for name in ("LD_PRELOAD", "UMOCKDEV_DIR"):
            patch.setenv(name, testbed.environment[name])
        configure(state, "[inference]\ninvoke_limit_s = 1.0\n")
        add_text_models(state / "models")
        stand_in.tell(*FAKES, open_ms=100)
        with booted(state) as appliance:
            yield Tower(appliance, testbed, stand_in)


@pytest.fixture(autouse=True)
def all_unplugged(tower: Tower) -> Iterator[None]:
    yield
    tower.stand_in.tell(*FAKES, open_ms=100)
    there = [port for port in PORTS if tower.states().get(f"usb-{port}") not in (None, "gone")]
    tower.unplug(*there)
    wait_for("no TPU worker is left", lambda: not tower.appliance.pids("worker tpu"))
    for fake in FAKES:  # or the tests, one after the other, would look as if it came and went by itself
        if tower.states().get(fake.id) is not None:
            assert command(tower.appliance, "tpu", "reset", fake.id).returncode == 0


def test_plugged_used_and_unplugged(tower: Tower) -> None:
    before = tower.embed()
    assert before["ran_on"] == ["cpu"]
    assert before["model"] == "coral-reef-embedding"
    tower.plug(*PORTS)
    tower.until_open(3)
    assert set(tower.states().values()) == {"leased"}
    after = tower.embed()
    assert after["data"] == before["data"]
    assert set(after["ran_on"]) <= {fake.id for fake in FAKES}
    worker = next(each for each in tower.appliance.status()["workers"] if each["kind"] == "tpu")
    assert worker["engine"]["build"] == "libedgetpu"
    assert worker["detail"] == "3 of 3 TPUs open"
    tower.unplug(*PORTS)
    wait_for("they are gone", lambda: set(tower.states().values()) == {"gone"})
    assert tower.embed()["ran_on"] == ["cpu"]


def test_a_reply_tells_what_it_expresses(tower: Tower) -> None:
    async def ask() -> list[dict[str, Any]]:
        async with (
            aiohttp.ClientSession(headers=tower.appliance.headers) as session,
            session.ws_connect(tower.appliance.websocket_url) as socket,
        ):
            await socket.send_json({"type": "chat", "payload": {"persona_id": "pike", "message": "Hello"}})
            found: list[dict[str, Any]] = []
            while not found or found[-1]["type"] not in ("done", "error"):
                found.append(await socket.receive_json(timeout=60))
            return found

    *_, emotion, done = asyncio.run(ask())
    assert done["type"] == "done"
    assert emotion["type"] == "persona_emotion"
    assert emotion["payload"].keys() == {"persona_id", "emotion", "intensity"}
    assert emotion["payload"]["persona_id"] == "pike"
    assert 0 <= emotion["payload"]["intensity"] <= 1


def test_unplugged_while_it_works(tower: Tower) -> None:
    """Whatever is asked meanwhile is answered, and with the same vectors."""
    expected = tower.embed()["data"]
    tower.stand_in.tell(*(Fake(fake.id, ms=5) for fake in FAKES))
    tower.plug(*PORTS)
    tower.until_open(3)

    async def ask_while() -> list[dict[str, Any]]:
        asked = [asyncio.create_task(asyncio.to_thread(tower.embed)) for _ in range(8)]
        await asyncio.to_thread(wait_for, "they work", lambda: tower.stand_in.heard("invoke", FAKES[0]) > 10)
        tower.stand_in.tell(Fake(FAKES[0].id, "error"), *FAKES[1:])
        tower.unplug(PORTS[0])
        return await asyncio.gather(*asked)

    found = asyncio.run(ask_while())
    assert all(each["data"] == expected for each in found)
    tower.unplug(*PORTS[1:])


def test_replugged_in_one_go(tower: Tower) -> None:
    """It was away for so short a time that it was usable before and after: its worker opens it anew all the same."""
    before = tower.stand_in.heard("open")
    tower.plug(*PORTS)
    # By the worker for each of the two models, and once by the probe.
    wait_for("they have their models", lambda: tower.stand_in.heard("open") == before + 2 * len(PORTS) + 1)
    tower.until_open(3)
    opened = tower.stand_in.heard("open", FAKES[0])
    tower.testbed.orders(tower.testbed.unusb(PORTS[0]), tower.testbed.usb(PORTS[0], running=True))
    wait_for("it was opened anew", lambda: tower.stand_in.heard("open", FAKES[0]) > opened)
    tower.until_open(3)
    wait_for("all are at work", lambda: set(tower.states().values()) == {"leased"})
    workers = {each["worker"] for each in tower.appliance.status()["tpus"]}
    assert workers == {each["name"] for each in tower.appliance.status()["workers"] if each["kind"] == "tpu"}


def test_a_stuck_tpu(tower: Tower) -> None:
    expected = tower.embed()["data"]
    tower.plug(*PORTS)
    tower.until_open(3)
    (worker,) = tower.appliance.pids("worker tpu")
    tower.stand_in.tell(Fake(FAKES[0].id, "wedge"), *FAKES[1:])
    assert tower.embed()["data"] == expected
    wait_for("its worker was ended", lambda: worker not in tower.appliance.processes())
    tower.stand_in.tell(*FAKES)
    tower.until_open(2)
    assert tower.embed()["data"] == expected


def test_a_worker_that_is_killed(tower: Tower) -> None:
    expected = tower.embed()["data"]
    tower.plug(*PORTS)
    tower.until_open(3)
    (worker,) = tower.appliance.pids("worker tpu")
    os.kill(worker, signal.SIGKILL)
    assert tower.embed()["data"] == expected
    tower.until_open(3)
    assert tower.embed()["data"] == expected


def test_vectors_as_numbers_are_the_same(tower: Tower) -> None:
    with tower.appliance.client() as client:
        numbers = client.post("/api/v1/embeddings", json={"input": "tide"}).json()
    (found,) = numbers["data"]
    assert sum(each * each for each in array("f", found["embedding"])) == pytest.approx(1)
    assert numbers["usage"] == {"prompt_tokens": 1, "total_tokens": 1}
