"""`net stats`: connections, bandwidth, latency and errors, live; through the gateway, as any administrator's program."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from appliance.client.address import gateway_url
from appliance.client.conversation import CONNECT_TIMEOUT_S, refusal
from appliance.client.network_statistics import (
    STATISTICS_PATH,
    read,
    show,
    statistics_line,
    statistics_parts,
)
from appliance.telemetry.network_statistics import NetworkStatistics
from console.context import Context
from console.errors import CommandFailed
from console.live import drawing

#: A line so often, where the cursor cannot be moved.
LINE_PERIOD_S = 5.0


async def run(context: Context) -> None:
    """Until Ctrl-C."""
    context.require_admin()
    async with asking(context) as fetch:
        if context.terminal.dumb:
            context.terminal.show(statistics_parts(await fetch()))
            context.say("A line every five seconds from now on; Ctrl-C ends.")
            while True:
                await asyncio.sleep(LINE_PERIOD_S)
                await context.terminal.line.room()
                context.say(statistics_line(await fetch()))
        async with drawing(context.terminal) as draw:
            await show(fetch, draw, asyncio.sleep)


@asynccontextmanager
async def asking(context: Context) -> AsyncIterator[Callable[[], Awaitable[NetworkStatistics]]]:
    """Gives what asks the gateway; CommandFailed when it does not answer."""
    import httpx  # a seventh of what the console takes to start

    url = gateway_url(context.paths)
    if url is None:
        raise CommandFailed("the gateway does not run; 'status' shows what does")
    async with httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {await context.token()}"},
        timeout=CONNECT_TIMEOUT_S,
        trust_env=False,
    ) as client:

        async def fetch() -> NetworkStatistics:
            try:
                response = await client.get(STATISTICS_PATH)
            except httpx.TransportError as error:
                raise CommandFailed(f"the gateway does not answer: {error}") from None
            if response.status_code != 200:
                raise CommandFailed(refusal(response.content, response.reason_phrase))
            return read(response.content)

        yield fetch
