"""`coral-reef net stats`: connections, bandwidth, latency and errors; live on a terminal, once for a pipe."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from appliance.client.conversation import CONNECT_TIMEOUT_S, refusal
from appliance.client.network_statistics import (
    PERIOD_S,
    STATISTICS_PATH,
    read,
    show,
    statistics_line,
    statistics_parts,
)
from appliance.client.screen import Part, renderable
from appliance.telemetry.network_statistics import NetworkStatistics

from . import tables
from .exit_status import ExitStatus, Failed
from .place import add_place_options, key_of, paths_of, url_of

DESCRIPTION = "Shows connections, bandwidth, latency and errors: live on a terminal until Ctrl-C, else once."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For the subcommand's parser, made with `description=DESCRIPTION`."""
    parser.add_argument("--once", action="store_true", help="show it once, also on a terminal")
    parser.add_argument("--json", action="store_true", help="print JSON for programs, once")
    parser.add_argument(
        "--url", help="address of the appliance (default: the one that runs here, or $CORAL_REEF_URL)"
    )
    parser.add_argument(
        "--key-file", type=Path, metavar="FILE", help="API key (default: $CORAL_REEF_KEY or admin.key)"
    )
    add_place_options(parser)


def main(arguments: argparse.Namespace) -> int:
    """Runs it."""
    asyncio.run(_run(arguments))
    return ExitStatus.OK


async def _run(arguments: argparse.Namespace) -> None:
    paths = paths_of(arguments)
    async with asking(url_of(arguments, paths), key_of(arguments, paths)) as fetch:
        if arguments.json:
            tables.print_json(await fetch())
        elif arguments.once or not sys.stdout.isatty():
            tables.show(statistics_parts(await fetch()))
        elif os.environ.get("TERM", "dumb") == "dumb":
            await _lines(fetch)
        else:
            await _live(fetch)


@asynccontextmanager
async def asking(url: str, key: str) -> AsyncIterator[Callable[[], Awaitable[NetworkStatistics]]]:
    """Gives what asks the gateway there; Failed when it does not answer, or refuses the key."""
    import httpx

    try:
        # An API key in a header only: a proxy variable of the shell must not see it either, hence trust_env.
        client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=CONNECT_TIMEOUT_S,
            trust_env=False,
        )
    except httpx.InvalidURL as error:
        raise Failed(
            f"{url!r} is no address: {error}; expected one like http://127.0.0.1:8080", ExitStatus.USAGE
        ) from None

    async def fetch() -> NetworkStatistics:
        try:
            response = await client.get(STATISTICS_PATH)
        except httpx.TransportError as error:
            raise Failed(f"cannot reach {url}: {error}", ExitStatus.UNAVAILABLE) from None
        if response.status_code != 200:
            status = ExitStatus.REFUSED if response.status_code in (401, 403) else ExitStatus.FAILED
            raise Failed(refusal(response.content, response.reason_phrase), status)
        return read(response.content)

    async with client:
        yield fetch


async def _lines(fetch: Callable[[], Awaitable[NetworkStatistics]]) -> None:
    while True:
        print(statistics_line(await fetch()), flush=True)
        await asyncio.sleep(PERIOD_S)


async def _live(fetch: Callable[[], Awaitable[NetworkStatistics]]) -> None:
    from rich.console import Console, Group
    from rich.live import Live

    with Live(console=Console(highlight=False), auto_refresh=False, vertical_overflow="crop") as live:

        async def draw(parts: list[Part]) -> None:
            live.update(Group(*map(renderable, parts)), refresh=True)

        await show(fetch, draw, asyncio.sleep)
