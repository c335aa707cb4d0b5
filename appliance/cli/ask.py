"""Questions and orders to the supervisor's control socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from appliance.paths import Paths
from appliance.wire.errors import Disconnected, PeerRefused, WireError
from appliance.wire.frames import GROUP, Connection, connect
from appliance.wire.messages import (
    Done,
    Failure,
    FromSupervisor,
    LocalUser,
    Message,
    Status,
    StatusRequest,
    UserList,
    Users,
)

from .exit_status import ExitStatus, Failed

T = TypeVar("T", bound=Message)

#: The supervisor answers in a millisecond; one that does not within this is stuck.
ANSWER_TIMEOUT_S = 5.0

#: The id of the one order that a command gives.
REQUEST_ID = "cli"

#: What a supervisor's refusal is for a script; anything else is FAILED.
_STATUSES = {"bad_configuration": ExitStatus.BAD_CONFIGURATION, "denied": ExitStatus.REFUSED}


def ask_status(paths: Paths, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Status:
    """The status of the running appliance; Failed when there is none."""
    return ask(paths, StatusRequest(), Status, timeout_s=timeout_s)


def order(paths: Paths, message: Message, *, timeout_s: float) -> str:
    """Has the supervisor carry something out; returns its sentence. Failed with its reason when it does not."""
    return ask(paths, message, Done, timeout_s=timeout_s).detail


def ask(paths: Paths, message: Message, answer: type[T], *, timeout_s: float = ANSWER_TIMEOUT_S) -> T:
    """What the supervisor answers. Failed with its reason when it does not tell."""
    found = _ask(paths, message, timeout_s)
    if isinstance(found, Failure):
        raise _refused(found)
    assert isinstance(found, answer)
    return found


def ask_users(paths: Paths, *, timeout_s: float = ANSWER_TIMEOUT_S) -> list[LocalUser]:
    """Who may log in on a serial line, by name. Failed when the supervisor does not tell."""
    return ask(paths, UserList(request_id=REQUEST_ID), Users, timeout_s=timeout_s).users


@asynccontextmanager
async def connected(paths: Paths) -> AsyncIterator[Connection[Message]]:
    """A connection to the control socket. Failed when there is none, or none for this user; else WireError."""
    try:
        connection = await connect(str(paths.control_socket), FromSupervisor, name="coral-reef")
    except Disconnected:
        raise Failed(
            f"no appliance is running with {paths.state}: start one with {_starter(paths)}",
            ExitStatus.UNAVAILABLE,
        ) from None
    except PeerRefused:
        raise Failed(
            f"this user may not use the appliance in {paths.state}: {_remedy(paths)}", ExitStatus.REFUSED
        ) from None
    try:
        yield connection
    finally:
        await connection.close()


def _ask(paths: Paths, message: Message, timeout_s: float) -> Message:
    async def ask() -> Message:
        async with asyncio.timeout(timeout_s), connected(paths) as connection:
            await connection.send(message)
            return await connection.receive()

    try:
        return asyncio.run(ask())
    except Disconnected:
        raise Failed("the supervisor ended before it answered", ExitStatus.UNAVAILABLE) from None
    except TimeoutError:
        raise Failed(f"the supervisor did not answer in {timeout_s:.0f} s", ExitStatus.UNAVAILABLE) from None
    except WireError as error:
        raise Failed(str(error)) from None


def _refused(answer: Failure) -> Failed:
    return Failed(answer.message, _STATUSES.get(answer.code, ExitStatus.FAILED))


def _starter(paths: Paths) -> str:
    return "'systemctl start coral-reef.target'" if paths == Paths.system() else "'make run'"


def _remedy(paths: Paths) -> str:
    if paths == Paths.system():
        return f"try with sudo, or join the group ('sudo usermod --append --groups {GROUP} $USER', then log in again)"
    return "try as the user who started it, or with sudo"
