"""kill -9 of each process in turn: who was talking hears of it at once, who asks next is answered, nothing is left over."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.waiting import wait_for, wait_until

from .booted import Booted, booted, configure
from .talk import Event, chat_message, events_in, question, receive, websocket

pytestmark = pytest.mark.system

#: What the owner was promised about a worker that dies.
ERROR_WITHIN_S = 1.0
NEXT_CHAT_WITHIN_S = 10.0

#: For what was promised no time.
HEALED_WITHIN_S = 30.0

Listener = Callable[[Booted], Any]


@pytest.fixture
def endless(state: Path) -> Iterator[Booted]:
    """An appliance of its own for each test, whose replies last."""
    configure(state, "[gateway]\nprocesses = 1\n", endless_model=True)
    with booted(state) as found:
        yield found


@asynccontextmanager
async def over_server_sent_events(appliance: Booted) -> AsyncIterator[AsyncIterator[Event]]:
    """The events of an endless reply."""

    async def events(response: httpx.Response) -> AsyncIterator[Event]:
        async for line in response.aiter_lines():
            for event in events_in([line]):
                yield event

    async with (
        httpx.AsyncClient(
            base_url=appliance.url, headers=appliance.headers, timeout=60, trust_env=False
        ) as client,
        client.stream("POST", "/api/v1/chat/stream", json=question()) as response,
    ):
        assert response.status_code == 200
        yield events(response)


@asynccontextmanager
async def over_websocket(appliance: Booted) -> AsyncIterator[AsyncIterator[Event]]:
    """The events of an endless reply."""
    async with websocket(appliance) as socket:

        async def events() -> AsyncIterator[Event]:
            while True:
                yield await receive(socket)

        await socket.send(chat_message())
        yield events()


async def until_text(events: AsyncIterator[Event]) -> None:
    """Reads until the reply is well under way."""
    for _ in range(5):
        event = await anext(events)
        assert event["type"] in ("system", "token"), event


async def until_error(events: AsyncIterator[Event]) -> Event:
    async for event in events:
        assert event["type"] in ("token", "error"), event
        if event["type"] == "error":
            return event
    raise AssertionError("the stream ended without a word")


def kill(pid: int) -> float:
    """SIGKILL; returns the time."""
    os.kill(pid, signal.SIGKILL)
    return time.monotonic()


def one_process(appliance: Booted, title: str) -> int:
    return int(wait_for(f"a process {title!r} runs", lambda: appliance.pids(title))[0])


@pytest.mark.parametrize(
    "listen", [over_server_sent_events, over_websocket], ids=["server-sent events", "websocket"]
)
async def test_worker(
    endless: Booted, listen: Listener, record_property: Callable[[str, object], None]
) -> None:
    worker = await asyncio.to_thread(endless.worker_pid)
    async with listen(endless) as events:
        await until_text(events)
        killed = kill(worker)
        error = await until_error(events)
        heard_s = time.monotonic() - killed
        reply = await asyncio.to_thread(endless.chat, max_tokens=10)
        answered_s = time.monotonic() - killed
    record_property("error heard after, s", round(heard_s, 3))
    record_property("next chat answered after, s", round(answered_s, 3))
    print(f"killed worker: error heard after {heard_s:.3f} s, next chat answered after {answered_s:.3f} s")
    assert error["payload"]["code"] == "worker_lost"
    assert heard_s < ERROR_WITHIN_S
    assert reply["usage"]["completion_tokens"] == 10
    assert answered_s < NEXT_CHAT_WITHIN_S
    status = await asyncio.to_thread(endless.status)
    assert (status["leases"], status["workers"][0]["restarts"]) == (0, 1)
    assert status["workers"][0]["pid"] != worker
    assert "SIGKILL" in endless.log
    assert worker not in endless.processes()
    assert len(endless.pids("worker text")) == 1


async def test_worker_with_every_place_taken(endless: Booted) -> None:
    """All sixteen streams hear of it, and so does a client that waits for a whole reply."""
    worker = await asyncio.to_thread(endless.worker_pid)
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(over_server_sent_events(endless)) for _ in range(15)]
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=endless.url, headers=endless.headers, timeout=60, trust_env=False)
        )
        asking = asyncio.create_task(client.post("/api/v1/chat", json=question()))
        await asyncio.gather(*(until_text(events) for events in streams))
        await asyncio.to_thread(endless.wait_for_leases, 16)
        killed = kill(worker)
        errors = await asyncio.gather(*(until_error(events) for events in streams))
        heard_s = time.monotonic() - killed
        response = await asking
    assert {error["payload"]["code"] for error in errors} == {"worker_lost"}
    assert heard_s < ERROR_WITHIN_S
    if response.status_code == 200:  # it had no word yet: the next worker has written all of it
        assert response.json()["finish_reason"] == "length"
    else:
        assert (response.status_code, response.json()["code"]) == (502, "worker_lost")
    reply = await asyncio.to_thread(endless.chat, max_tokens=10)
    assert reply["finish_reason"] == "length"
    await asyncio.to_thread(endless.wait_until_idle)


async def test_worker_again_and_again(endless: Booted) -> None:
    """Each time the next chat waits for the new one; the pause between two starts grows, the patience of a request is 10 s."""
    for restarts in range(1, 5):
        kill(await asyncio.to_thread(endless.worker_pid))
        reply = await asyncio.to_thread(endless.chat, max_tokens=5)
        assert reply["usage"]["completion_tokens"] == 5
        assert (await asyncio.to_thread(endless.status))["workers"][0]["restarts"] == restarts


async def test_stopped_worker_is_no_reason_to_hang_at_the_end(endless: Booted) -> None:
    """A worker that does not answer any more is killed when the appliance stops (the fixture sees to the rest)."""
    os.kill(await asyncio.to_thread(endless.worker_pid), signal.SIGSTOP)
    assert (await asyncio.to_thread(endless.status))["leases"] == 0


async def test_forkserver(endless: Booted) -> None:
    worker = await asyncio.to_thread(endless.worker_pid)
    forkserver = one_process(endless, "forkserver")
    async with over_server_sent_events(endless) as events:
        await until_text(events)
        kill(forkserver)
        assert (await until_error(events))["payload"]["code"] == "worker_lost"
    # Its worker dies with it, and both come back.
    endless.wait_until_gone([forkserver, worker])
    assert (await asyncio.to_thread(endless.chat, max_tokens=10))["finish_reason"] == "length"
    assert await asyncio.to_thread(endless.worker_pid) != worker
    assert one_process(endless, "forkserver") != forkserver
    assert len(endless.pids("worker text")) == len(endless.pids("forkserver")) == 1


async def test_supervisor(endless: Booted) -> None:
    """`run` starts it again; what was asked meanwhile waits for that."""
    worker = await asyncio.to_thread(endless.worker_pid)
    forkserver, supervisor = one_process(endless, "forkserver"), one_process(endless, "supervisor")
    gateway = one_process(endless, "gateway")
    async with over_server_sent_events(endless) as events:
        await until_text(events)
        kill(supervisor)
        error = await until_error(events)
        reply = await asyncio.to_thread(endless.chat, max_tokens=10)
    assert error["payload"]["message"]
    assert reply["finish_reason"] == "length"
    endless.wait_until_gone([supervisor, forkserver, worker])
    await asyncio.to_thread(endless.wait_until_healthy, within_s=HEALED_WITHIN_S)
    assert endless.pids("gateway") == [gateway], "the gateway was not to be touched"
    for title in ("supervisor", "forkserver", "worker text"):
        assert len(endless.pids(title)) == 1, title
    await asyncio.to_thread(endless.wait_until_idle)


async def test_supervisor_while_others_ask(endless: Booted) -> None:
    """Sixteen requests sent while there is no supervisor: each waits, and each is answered."""
    await asyncio.to_thread(endless.worker_pid)
    kill(one_process(endless, "supervisor"))
    replies = await asyncio.gather(*(asyncio.to_thread(endless.chat, max_tokens=5) for _ in range(16)))
    assert [reply["usage"]["completion_tokens"] for reply in replies] == [5] * 16


async def test_gateway(endless: Booted) -> None:
    """Its clients lose their connections, its leases are freed, and it comes back on the same port."""
    url, gateway = endless.url, one_process(endless, "gateway")
    worker = await asyncio.to_thread(endless.worker_pid)
    async with over_server_sent_events(endless) as events:
        await until_text(events)
        kill(gateway)
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await until_error(events)
    # The socket stays open in the launcher: a new connection waits in its queue and is answered.
    await asyncio.to_thread(endless.wait_until_healthy, within_s=HEALED_WITHIN_S)
    await asyncio.to_thread(endless.wait_until_idle)
    assert endless.url == url
    assert (await asyncio.to_thread(endless.chat, max_tokens=10))["finish_reason"] == "length"
    assert endless.pids("gateway") != [gateway]
    assert len(endless.pids("gateway")) == 1
    assert await asyncio.to_thread(endless.worker_pid) == worker, "the worker was not to be touched"


async def test_one_gateway_of_two(state: Path) -> None:
    """The streams of the other one go on to their end."""
    configure(state, "[gateway]\nprocesses = 2\n", endless_model=True)
    with booted(state) as appliance:
        await wait_until("two gateways run", lambda: len(appliance.pids("gateway")) == 2)
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                httpx.AsyncClient(
                    base_url=appliance.url, headers=appliance.headers, timeout=60, trust_env=False
                )
            )
            streams: dict[int, list[httpx.Response]] = {pid: [] for pid in appliance.pids("gateway")}
            for count in range(16):
                if count >= 8 and all(streams.values()):
                    break
                response = await stack.enter_async_context(
                    client.stream("POST", "/api/v1/chat/stream", json=question(max_tokens=2000))
                )
                streams[appliance.gateway_of(response)].append(response)
            assert all(streams.values()), f"one gateway took every connection: {streams}"
            killed, other = streams
            kill(killed)

            async def last_event(response: httpx.Response) -> Event:
                async with asyncio.timeout(60):
                    lines = [line async for line in response.aiter_lines()]
                return list(events_in(lines))[-1]

            broken = await asyncio.gather(
                *(last_event(each) for each in streams[killed]), return_exceptions=True
            )
            assert {type(each) for each in broken} <= {httpx.RemoteProtocolError, httpx.ReadError}
            for event in await asyncio.gather(*(last_event(each) for each in streams[other])):
                assert event["type"] == "done", event
                assert event["payload"]["finish_reason"] == "length"
        await asyncio.to_thread(appliance.wait_until_idle)
        await wait_until("two gateways run again", lambda: len(appliance.pids("gateway")) == 2)
        assert (await asyncio.to_thread(appliance.chat, max_tokens=5))["finish_reason"] == "length"


@pytest.mark.timeout(600)
async def test_every_part_at_once(endless: Booted, *, long_run: bool) -> None:
    """All but the launcher; more than four times in a row would make it give up."""
    for _ in range(3 if long_run else 1):
        await every_part_at_once(endless)


async def every_part_at_once(endless: Booted) -> None:
    await asyncio.to_thread(endless.worker_pid)
    before = set(endless.processes()) - {endless.process.pid}
    # Supervisor, forkserver, two workers, the gateways' parent, one gateway, the console.
    assert len(before) == 7
    for pid in before:
        kill(pid)
    endless.wait_until_gone(before)
    await asyncio.to_thread(endless.wait_until_healthy, within_s=HEALED_WITHIN_S)
    assert (await asyncio.to_thread(endless.chat, max_tokens=10))["finish_reason"] == "length"


def test_a_part_that_keeps_dying(endless: Booted) -> None:
    """`run` gives up with the status for that, says which part it was, and leaves nothing behind."""
    others = set(endless.processes()) - {endless.process.pid}

    def kill_the_supervisor() -> bool:
        for pid in endless.pids("supervisor"):
            kill(pid)
        others.update(set(endless.processes()) - {endless.process.pid})
        return endless.process.poll() is not None

    wait_for("the launcher gives up", kill_the_supervisor, within_s=90)
    assert endless.process.returncode == 69
    assert "supervisor ended with status -9; stopping" in endless.log
    assert "Traceback" not in endless.log
    endless.wait_until_gone(others)
    endless.process.returncode = 0  # for the fixture, which expects an orderly end


def test_launcher(endless: Booted) -> None:
    """`run` itself: nothing that it started outlives it, and a new one starts where the old one was killed."""
    endless.worker_pid()
    others = set(endless.processes()) - {endless.process.pid}
    assert len(others) == 7
    session = endless.chat(max_tokens=10)["session_id"]
    kill(endless.process.pid)
    assert endless.process.wait(10) == -signal.SIGKILL
    endless.wait_until_gone(others)
    with booted(endless.state) as again:
        assert again.chat(max_tokens=10, session_id=session)["session_id"] == session
        again.stop()
    endless.process.returncode = 0  # for the fixture, which expects an orderly end
