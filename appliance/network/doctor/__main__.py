"""`python -m appliance.network.doctor`: one examination for who is at standard input and output, a line of JSON each way.

This is what systemd starts for each connection to coral-reef-doctor.socket: console and gateway may not reach the network.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from appliance.paths import Paths
from appliance.wire.messages import Finding

from .examination import run
from .ours import Listener
from .visit import QUESTION_LIMIT_BYTES, Question, wanted


def main() -> int:
    """Exit status 0, whatever was found; 64 when the question could not be read."""
    try:
        asked = msgspec.json.decode(sys.stdin.buffer.readline(QUESTION_LIMIT_BYTES), type=Question)
    except msgspec.DecodeError as error:
        print(f"not a question: {error}", file=sys.stderr)
        return 64
    network = wanted(Paths.from_environment())

    def tell(finding: Finding) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(finding) + b"\n")
        sys.stdout.buffer.flush()

    listeners = [Listener("the API", network.api.bind, network.api.port)]
    asyncio.run(run(network, roles=asked.roles, listeners=listeners, host=asked.host, tell=tell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
