"""D-Bus, the system's: how we ask systemd and others for something. The only module that knows which library speaks it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

#: Who does not answer within this is stuck; an authorization by polkit takes some 10 ms.
ANSWER_TIMEOUT_S = 10.0


class BusError(Exception):
    """A call that failed. `name` is the D-Bus error's; empty when nobody could be asked."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


async def call(
    destination: str,
    path: str,
    interface: str,
    member: str,
    signature: str = "",
    arguments: Sequence[Any] = (),
    *,
    timeout_s: float = ANSWER_TIMEOUT_S,
) -> list[Any]:
    """Calls one method over a connection of its own and returns what it answers. BusError."""
    from dbus_next import BusType, Message, MessageType
    from dbus_next.aio import MessageBus
    from dbus_next.errors import DBusError

    try:
        async with asyncio.timeout(timeout_s):
            bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
            try:
                reply = await bus.call(
                    Message(
                        destination=destination,
                        path=path,
                        interface=interface,
                        member=member,
                        signature=signature,
                        body=list(arguments),
                    )
                )
            finally:
                bus.disconnect()
    except TimeoutError:
        raise BusError(f"{destination} did not answer in {timeout_s:.0f} s") from None
    except (OSError, EOFError, DBusError) as error:
        raise BusError(f"the system's D-Bus cannot be reached: {error}") from error
    assert reply is not None
    if reply.message_type is MessageType.ERROR:
        raise BusError(str(reply.body[0]) if reply.body else reply.error_name, reply.error_name)
    return list(reply.body)
