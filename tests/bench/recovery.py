"""From a kill -9 of each kind of process to the next reply."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time

from tests.waiting import ask_until, wait_for, wait_until_gone

from .appliance_run import RunningAppliance, chat_body
from .report import ms, row

#: Each kind by the beginning of its title. The supervisor and the gateways' parent take their children with them.
KINDS = {
    "worker": "coral-reef: worker text-",
    "forkserver": "coral-reef: forkserver",
    "supervisor": "coral-reef: supervisor",
    "gateway": "coral-reef: gateway",
    "parent of gateways": "coral-reef: parent of gateways",
}
LIMIT_S = 10.0


def measure(rounds: int) -> None:
    """Kills each kind in turn, again and again, in one appliance."""
    taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with RunningAppliance("[gateway]\nprocesses = 1\n") as appliance:
        asyncio.run(_reply(appliance))
        for _ in range(rounds):
            for kind, title in KINDS.items():
                (pid,) = (pid for pid, found in appliance.processes().items() if found.startswith(title))
                began = time.perf_counter()
                os.kill(pid, signal.SIGKILL)
                wait_until_gone(pid)
                asyncio.run(_reply(appliance))
                taken[kind].append(time.perf_counter() - began)
                wait_for("one of each kind", lambda: _complete(appliance), within_s=60)
    for kind, seconds in taken.items():
        median = statistics.median(seconds)
        row(f"kill -9 of the {kind} to the next reply", ms(median), ms(LIMIT_S), median / LIMIT_S)


async def _reply(appliance: RunningAppliance) -> None:
    """Asks until there is an answer."""
    request = appliance.request("/api/v1/chat", chat_body("Hello!", max_tokens=1, seed=1))

    async def answered() -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", appliance.port)
            writer.write(request)
            said = await reader.read(-1)
            writer.close()
        except OSError:
            return False
        return said.startswith(b"HTTP/1.1 200")

    await ask_until("a reply", answered, within_s=60)


def _complete(appliance: RunningAppliance) -> bool:
    """Whether there is one process of each kind: the next round begins where this one began."""
    titles = list(appliance.processes().values())
    return all(sum(found.startswith(title) for found in titles) == 1 for title in KINDS.values())
