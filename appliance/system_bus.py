"""D-Bus, the system's: how we ask systemd and others for something. The only module that knows which library speaks it."""

from __future__ import annotations

import asyncio
import contextlib
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
    from dbus_next.aio.message_bus import MessageBus
    from dbus_next.constants import BusType, MessageType
    from dbus_next.errors import AuthError, DBusError, InvalidAddressError
    from dbus_next.message import Message

    message = Message(
        destination=destination,
        path=path,
        interface=interface,
        member=member,
        signature=signature,
        body=list(arguments),
    )
    try:
        async with asyncio.timeout(timeout_s):
            bus = MessageBus(bus_type=BusType.SYSTEM)
            try:
                await bus.connect()
                reply = await bus.call(message)
            finally:
                _close(bus)
    except TimeoutError:
        raise BusError(f"{destination} did not answer in {timeout_s:g} s") from None
    except (OSError, EOFError, AuthError, DBusError, InvalidAddressError) as error:
        raise BusError(f"the system's D-Bus cannot be reached: {error}") from error
    if reply.message_type is MessageType.ERROR:
        raise BusError(str(reply.body[0]) if reply.body else reply.error_name, reply.error_name)
    return list(reply.body)


def _close(bus: Any) -> None:
    """The library only shuts its socket down, and leaves it and the loop's reader to the garbage collector."""
    bus.disconnect()
    loop = asyncio.get_running_loop()
    loop.remove_reader(bus._sock)  # noqa: SLF001
    loop.remove_writer(bus._sock)  # noqa: SLF001
    with contextlib.suppress(OSError):  # what was not sent any more
        bus._stream.close()  # noqa: SLF001
    bus._sock.close()  # noqa: SLF001
