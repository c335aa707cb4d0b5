"""A supervisor that goes away and comes back."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import uvloop
from websockets.asyncio.client import connect

from appliance.chat.errors import Unavailable
from appliance.gateway.links import SupervisorLink
from appliance.wire.frames import encode
from appliance.wire.messages import EventsLost, Hello, SystemChanged

from .conftest import health_that_is

if TYPE_CHECKING:
    from tests.gateway.conftest import Served

MODULE = pytest.mark.asyncio(loop_scope="module")

CHAT = "/api/v1/chat"


@MODULE
async def test_away_then_back(served: Served) -> None:
    question = {"persona_id": "coral", "message": "is anybody there"}
    await served.fake.stop_supervisor()
    down = await health_that_is(served.client, 503)
    assert down.json()["status"] == "down"
    began = time.monotonic()
    response = await served.client.post(CHAT, json=question)
    waited_s = time.monotonic() - began
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["detail"] == "the supervisor is not running; try again in a moment"
    assert response.headers["retry-after"] == "1"
    assert 0.4 < waited_s < 5  # PATIENCE_S
    status = await served.client.get("/api/v1/system/status")
    assert status.status_code == 503
    stream = await served.client.post(f"{CHAT}/stream", json=question)
    started, error = (msgspec.json.decode(line[6:]) for line in stream.text.split("\n\n")[:-1])
    assert (started["type"], error["type"]) == ("system", "error")
    assert error["payload"]["code"] == "unavailable"
    headers = {"Authorization": f"Bearer {served.key}"}
    address = f"{served.url.replace('http', 'ws')}/ws"
    async with connect(address, proxy=None, additional_headers=headers) as socket:
        await socket.send(msgspec.json.encode({"type": "chat", "payload": question}).decode())
        events = [msgspec.json.decode(await socket.recv()) for _ in range(2)]
    assert [event["type"] for event in events] == ["system", "error"]
    assert events[1]["payload"]["code"] == "unavailable"
    # A request that waits when it comes back is answered.
    waiting = asyncio.create_task(served.client.post(CHAT, json=question))
    await asyncio.sleep(0)
    await served.fake.start_supervisor()
    assert (await waiting).status_code == 200
    await served.connected()


@MODULE
async def test_a_stream_that_waits_for_a_supervisor_that_dies(served: Served) -> None:
    served.fake.mute = True
    asked = len(served.fake.requests)
    try:
        asking = asyncio.create_task(
            served.client.post(CHAT, json={"persona_id": "coral", "message": "lost"})
        )
        status = asyncio.create_task(served.client.get("/api/v1/system/status"))
        await served.fake.until_asked(asked + 1)
        await served.fake.stop_supervisor()
        assert [(await each).status_code for each in (asking, status)] == [503, 503]
    finally:
        served.fake.mute = False
        await served.fake.start_supervisor()
    await served.connected()


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    yield path
    shutil.rmtree(path)


def test_a_supervisor_that_ends_right_after_its_hello(folder: Path) -> None:
    """Who waits for it hears Unavailable, whatever the moment of its end. uvloop reads the hello and the end in one go."""
    path = str(folder / "control.sock")

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(encode(Hello(name="supervisor")))
        writer.close()
        await writer.wait_closed()

    async def scenario() -> None:
        link = SupervisorLink(path, patience_s=1)
        link.start()
        asking = asyncio.create_task(link.lease("r", "s"))
        server = await asyncio.start_unix_server(connected, path)
        try:
            async with server:
                with pytest.raises(Unavailable):
                    await asking
        finally:
            await link.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


@MODULE
async def test_a_wait_that_is_given_up_is_withdrawn(served: Served) -> None:
    link = SupervisorLink(str(served.paths.control_socket), patience_s=1)
    link.start()
    served.fake.mute = True
    try:
        asking = asyncio.create_task(link.lease("withdrawn", "s"))
        async with asyncio.timeout(5), served.fake.changed:
            await served.fake.changed.wait_for(lambda: served.fake.requests[-1].request_id == "withdrawn")
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await served.fake.until("settled", "withdrawn")
    finally:
        served.fake.mute = False
        await link.close()
    assert not link._leases


@MODULE
async def test_a_status_that_does_not_come_leaves_nothing_behind(served: Served) -> None:
    link = SupervisorLink(str(served.paths.control_socket), patience_s=5, answer_s=0.05)
    link.start()
    served.fake.mute = True
    try:
        for _ in range(3):
            with pytest.raises(Unavailable, match="does not answer"):
                await link.status()
        assert not link._statuses
    finally:
        served.fake.mute = False
        await link.close()


@MODULE
async def test_who_is_told_of_a_reload(served: Served) -> None:
    """Each time the supervisor says so, and when it was away: it may have read other files at its start."""
    told = asyncio.Semaphore(0)
    link = SupervisorLink(str(served.paths.control_socket), on_reloaded=told.release)
    link.start()
    try:
        async with asyncio.timeout(10):
            await link.status()
            assert told.locked(), "nothing has changed since it started"
            served.fake.publish(SystemChanged(event="reload_refused"))
            served.fake.publish(SystemChanged(event="reloaded"))
            await told.acquire()
            served.fake.publish(EventsLost(count=1))
            await told.acquire()
            await served.fake.stop_supervisor()
            await served.fake.start_supervisor()
            await told.acquire()
            await link.status()
        assert told.locked()
    finally:
        await link.close()
    await served.connected()


@MODULE
async def test_nobody_ever(folder: Path) -> None:
    link = SupervisorLink(str(folder / "none.sock"), patience_s=0.05)
    link.start()
    with pytest.raises(Unavailable, match="not running"):
        await link.lease("r", "s")
    with pytest.raises(Unavailable):
        await link.status()
    assert not link.connected
    await link.close()
