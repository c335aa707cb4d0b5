"""One question to the supervisor's control socket."""

from __future__ import annotations

import asyncio

from appliance.paths import Paths
from appliance.wire.errors import Disconnected, WireError
from appliance.wire.frames import connect
from appliance.wire.messages import FromSupervisor, Status, StatusRequest

from .exit_status import ExitStatus, Failed

#: The supervisor answers in a millisecond; one that does not within this is stuck.
ANSWER_TIMEOUT_S = 5.0


def ask_status(paths: Paths) -> Status:
    """The status of the running appliance; Failed when there is none."""
    try:
        return asyncio.run(_status(paths))
    except Disconnected:
        raise Failed(
            f"no appliance is running with {paths.state}: start one with 'make run'", ExitStatus.UNAVAILABLE
        ) from None
    except TimeoutError:
        raise Failed(
            f"the supervisor did not answer in {ANSWER_TIMEOUT_S:.0f} s", ExitStatus.UNAVAILABLE
        ) from None
    except WireError as error:
        raise Failed(str(error)) from None


async def _status(paths: Paths) -> Status:
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        connection = await connect(str(paths.control_socket), FromSupervisor, name="coral-reef status")
        try:
            await connection.send(StatusRequest())
            answer = await connection.receive()
        finally:
            await connection.close()
    assert isinstance(answer, Status)
    return answer
