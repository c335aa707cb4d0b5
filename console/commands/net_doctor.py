"""`net doctor [HOST]`: what is wrong with the network, as it is found. In the tower a process of its own looks: this one may not
reach the network."""

from __future__ import annotations

from contextlib import suppress

from appliance.client.findings import finding_lines, summary_line
from appliance.config.network import Role
from appliance.network.doctor import examination, ours
from appliance.network.doctor.visit import NoDoctor, roles_of, visit, wanted
from appliance.wire.messages import Finding, NetworkLook, NetworkState
from console.context import Context
from console.errors import CommandFailed

from .net_stats import asking


async def run(context: Context, host: str | None) -> None:
    """Says each finding, then how many of each there are."""

    def tell(finding: Finding) -> None:
        context.terminal.show(finding_lines(finding))

    context.say("This takes some seconds, up to a minute when much is wrong; Ctrl-C ends it.")
    if context.system:
        try:
            found = await visit(
                context.paths.doctor_socket, host=host, roles=await _roles(context), tell=tell
            )
        except NoDoctor as error:
            raise CommandFailed(str(error)) from None
    else:
        network = wanted(context.paths)
        found = await examination.run(network, roles=await _roles(context), host=host, tell=tell)
    with suppress(CommandFailed):  # that the gateway is away was found already
        async with asking(context) as fetch:
            counted = ours.errors((await fetch()).errors)
            for each in counted:
                tell(each)
            found += counted
    context.say(f"\n{summary_line(found)}")


async def _roles(context: Context) -> dict[str, Role]:
    """Which interface is which port, as far as the supervisor knows."""
    try:
        state = await context.control.ask(NetworkLook(request_id="-"), NetworkState)
    except CommandFailed:  # the doctor is called when something does not work
        return {}
    return roles_of(state)
