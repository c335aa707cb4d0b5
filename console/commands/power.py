"""`reboot` and `shutdown`: the machine, not only the appliance."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.wire.messages import Power, PowerAction
from console.context import Context

from .command import Command, only

#: systemd takes the order at once; a bus that is busy may not.
ORDER_TIMEOUT_S = 30.0


async def reboot(context: Context, words: Sequence[str]) -> None:
    only(REBOOT, words, "")
    await _ask(context, PowerAction.REBOOT, "Restart the machine? Replies under way end.")


async def shutdown(context: Context, words: Sequence[str]) -> None:
    only(SHUTDOWN, words, "")
    await _ask(
        context, PowerAction.POWER_OFF, "Switch the machine off? Only its power button starts it again."
    )


async def _ask(context: Context, action: PowerAction, question: str) -> None:
    context.require_admin()
    if await context.confirm(question):
        await context.order(Power(request_id="-", action=action), timeout_s=ORDER_TIMEOUT_S)


REBOOT = Command(
    "reboot", "restart the machine", (("reboot", "restarts the machine, after a question"),), reboot
)
SHUTDOWN = Command(
    "shutdown",
    "switch the machine off",
    (("shutdown", "switches the machine off, after a question"),),
    shutdown,
    aliases=("poweroff",),
)
