"""`model`: the models that the appliance has."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

from appliance.client.amounts import size
from appliance.client.models import models_table
from appliance.wire.messages import ModelLoad, ModelLoaded, ModelLoading, Status
from console.context import Context

from .command import Command, only, wrong_usage

#: The supervisor says first that it has begun, then gives up by itself: this is for one that does neither.
LOAD_TIMEOUT_S = 1800.0


async def run(context: Context, words: Sequence[str]) -> None:
    action, names = only(COMMAND, words, "list", "load", names=1)
    if action == "list" and not names:
        context.terminal.show([models_table((await context.status()).models)])
    elif action == "load" and names:
        context.require_admin()
        await _load(context, names[0][:128])
    else:
        raise wrong_usage(COMMAND)


async def _load(context: Context, name: str) -> None:
    asked = context.control.answers(ModelLoad(request_id="-", model=name), timeout_s=LOAD_TIMEOUT_S)
    async with aclosing(asked) as answers:
        async for answer in answers:
            match answer:
                case ModelLoading(worker=worker, size_bytes=size_bytes):
                    context.say(f"loading {name} ({size(size_bytes)}) on {worker}")
                case ModelLoaded(worker=worker, draining=draining):
                    context.say(f"{name} writes the replies now, on {worker}")
                    if draining:
                        context.say(f"{draining} under way go on with the model before until they end")
                    return


def complete(words: Sequence[str], known: Status | None) -> Sequence[str]:
    if not words:
        return "list", "load"
    if known is None or list(words) != ["load"]:
        return ()
    return [model.name for model in known.models if model.kind == "text"]


COMMAND = Command(
    "model",
    "the models, and which of them writes the replies",
    (
        ("model", "lists them"),
        ("model load MODEL", "lets one write the replies; those under way end as they began"),
    ),
    run,
    complete,
)
