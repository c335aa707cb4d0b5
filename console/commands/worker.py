"""`worker`: the processes that run the models."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.client.workers import workers_table
from appliance.wire.messages import Status, WorkerRestart
from console.context import Context

from .command import Command, only, wrong_usage

#: Draining, then loading: a large model on a slow disk takes its minutes.
RESTART_TIMEOUT_S = 600.0


async def run(context: Context, words: Sequence[str]) -> None:
    action, names = only(COMMAND, words, "list", "restart", names=1)
    if action == "list" and not names:
        context.terminal.show(
            [workers_table((await context.status()).workers, columns=context.terminal.size().columns)]
        )
    elif action == "restart" and names:
        context.require_admin()
        context.say(f"waiting until the replies of {names[0]} have ended")
        await context.order(WorkerRestart(request_id="-", name=names[0][:64]), timeout_s=RESTART_TIMEOUT_S)
    else:
        raise wrong_usage(COMMAND)


def complete(words: Sequence[str], known: Status | None) -> Sequence[str]:
    if not words:
        return "list", "restart"
    return [worker.name for worker in known.workers] if known and list(words) == ["restart"] else ()


COMMAND = Command(
    "worker",
    "the processes that run the models",
    (
        ("worker", "lists them"),
        ("worker restart WORKER", "restarts one, its replies end first"),
    ),
    run,
    complete,
)
