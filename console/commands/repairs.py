"""`repairs`: what is wrong, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.client.repairs import repair_lines
from appliance.wire.messages import RepairFix, Status
from console.context import Context

from .command import Command, only, wrong_usage

#: The longest fix restarts a worker.
FIX_TIMEOUT_S = 600.0


async def run(context: Context, words: Sequence[str]) -> None:
    action, names = only(COMMAND, words, "list", "fix", names=1)
    if action == "list" and not names:
        found = (await context.status()).repairs
        context.terminal.show(repair_lines(found, command=""))
        if not found:
            context.say("Nothing needs a repair.")
    elif action == "fix" and names:
        context.require_admin()
        await context.order(RepairFix(request_id="-", id=names[0][:256]), timeout_s=FIX_TIMEOUT_S)
    else:
        raise wrong_usage(COMMAND)


def complete(words: Sequence[str], known: Status | None) -> Sequence[str]:
    if not words:
        return "list", "fix"
    if known is None or list(words) != ["fix"]:
        return ()
    return [repair.id for repair in known.repairs if repair.fix]


COMMAND = Command(
    "repairs",
    "what is wrong, and what to do",
    (
        ("repairs", "lists what is wrong, worst first"),
        ("repairs fix ID", "lets the appliance repair one"),
    ),
    run,
    complete,
    aliases=("repair",),
)
