"""The place on a worker, before the scripted one of this folder."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from appliance.gateway.generator import LeasedGeneration
from appliance.gateway.links import WorkerLink
from appliance.wire.frames import connect
from appliance.wire.messages import FinishReason, FromWorker, Sampling, Turn

if TYPE_CHECKING:
    from tests.gateway.conftest import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("turns_of_the_loop", range(6))
async def test_a_cancel_at_any_moment_of_the_beginning_is_heard(
    served: Served, turns_of_the_loop: int
) -> None:
    """Also one that runs between two steps of what begins the reply."""
    worker = WorkerLink(await connect(served.fake.socket, FromWorker, name="gateway"), "text-1")
    message = f"cancelled after {turns_of_the_loop}"
    served.fake.scripts[message] = served.script(gate=asyncio.Event())

    async def again() -> WorkerLink:
        raise AssertionError("the worker lives")

    generation = LeasedGeneration(message, "", worker, again)
    running = asyncio.create_task(
        generation.run([Turn("user", message)], Sampling(), lambda _: None, lambda _done, _total: None)
    )
    try:
        for _ in range(turns_of_the_loop):
            await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(generation.cancel)
        async with asyncio.timeout(10):
            assert (await running).finish_reason is FinishReason.CANCELLED
    finally:
        await worker.close()
