"""`coral-reef net doctor [HOST]`: looks at the network from the cable up; exit status 1 when something failed."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import urlsplit

from appliance.client.address import gateway_url
from appliance.client.findings import finding_lines, summary_line
from appliance.config.errors import ConfigError
from appliance.config.load import load_network
from appliance.config.network import Network, Role
from appliance.network.doctor.examination import exit_status, run
from appliance.network.doctor.ours import Listener, errors
from appliance.paths import Paths
from appliance.wire.messages import Finding

from .exit_status import ExitStatus, Failed
from .net_stats import asking
from .place import add_place_options, key_of, paths_of
from .tables import print_json, show

DESCRIPTION = (
    "Looks at link, addresses, router, name servers, time, the path's MTU, listening ports, certificate, clients, latency and "
    "loss, and says of each how it is; when it is not well, the likely cause and what to do. Needs no root; what only root may "
    "see is said to be skipped."
)

#: The specification's diagnostic commands, and what is the same here. `ss` filters our own port, which is the source port.
COMMANDS = """\
the specification's commands, and what is the same here:
  ip addr show                              coral-reef net show
  ping -c 4 CLIENT                          coral-reef net doctor CLIENT
  ss -tlnp | grep coral                     coral-reef net doctor: ports
  iftop -i eth0                             coral-reef net stats
  ss -tn state established '( sport = :8080 )'    coral-reef net doctor: clients
  curl .../api/v1/system/network/stats      coral-reef net stats --json
  turnutils_uclient                         comes with the hub's TURN server
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For the subcommand's parser, made with `description=DESCRIPTION`, `epilog=COMMANDS` and a raw formatter."""
    parser.add_argument(
        "host", nargs="?", metavar="HOST", help="a machine that should be reached, by name or address"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON for programs")
    add_place_options(parser)
    parser.set_defaults(key_file=None)


def main(arguments: argparse.Namespace, roles: Mapping[str, Role] | None = None) -> int:
    """Runs it. `roles`: which interface is which port of network.yaml, as far as that is known."""
    paths = paths_of(arguments)
    network = _network(paths)

    def tell(finding: Finding) -> None:
        if not arguments.json:
            show(finding_lines(finding))

    async def examine() -> list[Finding]:
        found = await run(
            network, roles=roles, listeners=listeners(paths, network), host=arguments.host, tell=tell
        )
        with suppress(Failed):  # no appliance runs, which was found already, or its key is not for this user
            async with asking(gateway_url(paths) or "", key_of(arguments, paths)) as fetch:
                counted = errors((await fetch()).errors)
                for each in counted:
                    tell(each)
                found += counted
        return found

    findings = asyncio.run(examine())
    if arguments.json:
        print_json(findings)
    else:
        show(["", summary_line(findings)])
    return ExitStatus.FAILED if exit_status(findings) else ExitStatus.OK


def _network(paths: Paths) -> Network:
    """What the owner wants; where the file has errors, what nobody has set."""
    try:
        return load_network(paths.network_yaml).settings
    except ConfigError as error:
        for problem in error.problems:
            print(f"coral-reef: {problem}", file=sys.stderr)
        print("coral-reef: network.yaml has errors: looking at the network without it", file=sys.stderr)
        return Network()


def listeners(paths: Paths, network: Network) -> list[Listener]:
    """What should take connections: where `coral-reef run` said that it listens, else what network.yaml says."""
    try:
        url = urlsplit((paths.run / "url").read_text("utf-8").strip())
        if url.hostname and url.port and ip_address(url.hostname):
            return [Listener("the API", url.hostname, url.port)]
    except (OSError, ValueError):
        pass  # no appliance of `coral-reef run` is there
    return [Listener("the API", network.api.bind, network.api.port)]
