"""D-Bus, the system's: how we ask systemd, NetworkManager and others for something. The only module that knows which library
speaks it."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

#: Who does not answer within this is stuck; an authorization by polkit takes some 10 ms.
ANSWER_TIMEOUT_S = 10.0

#: Questions of one connection that are under way at once; more wait for their turn.
CALLS_AT_ONCE = 32

DBUS = "org.freedesktop.DBus"
PROPERTIES = "org.freedesktop.DBus.Properties"


class BusError(Exception):
    """A call that failed. `name` is the D-Bus error's; empty when nobody could be asked, or nobody answered in time."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Typed:
    """A value that says of what type it is: a variant. `signature` is one complete type."""

    signature: str
    value: Any


def plain(value: Any) -> Any:
    """The same without any `Typed`, at whatever depth."""
    match value:
        case Typed(_, inner):
            return plain(inner)
        case list():
            return [plain(each) for each in value]
        case dict():
            return {key: plain(each) for key, each in value.items()}
        case _:
            return value


@dataclass(frozen=True)
class Signal:
    """What somebody told everybody. Whoever acts on it asks for the truth first: anybody on the bus can send one."""

    path: str
    interface: str
    member: str
    body: list[Any]


@dataclass(frozen=True)
class Match:
    """Which signals one wants to hear; what is empty is any. `below`: of this object and all below it."""

    sender: str = ""
    path: str = ""
    below: str = ""
    interface: str = ""
    member: str = ""
    first: str = ""

    @property
    def rule(self) -> str:
        """For the bus: D-Bus specification, "Match Rules"."""
        words = {
            "type": "signal",
            "sender": self.sender,
            "path": self.path,
            "path_namespace": self.below,
            "interface": self.interface,
            "member": self.member,
            "arg0": self.first,
        }
        return ",".join(f"{key}='{value}'" for key, value in words.items() if value)

    def takes(self, signal: Signal) -> bool:
        """Whether it is one; the sender, who has another name in it, is the bus's affair."""
        return (
            self.path in ("", signal.path)
            and (not self.below or f"{signal.path}/".startswith(f"{self.below}/"))
            and self.interface in ("", signal.interface)
            and self.member in ("", signal.member)
            and (not self.first or signal.body[:1] == [self.first])
        )


class Bus:
    """One connection, as long as the context lasts. Of one event loop.

    `lost` is set when the bus has gone away; every call fails from then on, and whoever wants to go on makes another one.
    """

    def __init__(self, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._listeners: list[tuple[Match, Callable[[Signal], None]]] = []
        self._turn = asyncio.Semaphore(CALLS_AT_ONCE)
        self._bus: Any = None
        self.lost = asyncio.Event()

    async def __aenter__(self) -> Bus:
        """BusError when there is no bus."""
        from dbus_next.aio.message_bus import MessageBus
        from dbus_next.constants import BusType
        from dbus_next.errors import AuthError, DBusError, InvalidAddressError

        bus = None
        try:
            async with asyncio.timeout(self._timeout_s):
                bus = MessageBus(bus_type=BusType.SYSTEM)
                await bus.connect()
        except BaseException as error:
            if bus is not None:
                _close(bus)
            if isinstance(error, TimeoutError):
                raise BusError(f"the system's D-Bus did not answer in {self._timeout_s:g} s") from None
            if isinstance(error, (OSError, EOFError, AuthError, DBusError, InvalidAddressError)):
                raise BusError(f"the system's D-Bus cannot be reached: {error}") from error
            raise
        bus.add_message_handler(self._take)
        bus._disconnect_future.add_done_callback(self._gone)  # noqa: SLF001
        self._bus = bus
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        bus, self._bus = self._bus, None
        self.lost.set()
        # Whoever still waits is told; then nothing of the library is left behind.
        bus._finalize()  # noqa: SLF001
        _close(bus)

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        arguments: Sequence[Any] = (),
        *,
        timeout_s: float | None = None,
    ) -> list[Any]:
        """What one method answers, variants in it as `Typed`; those in `arguments` are `Typed`, too. BusError."""
        from dbus_next.constants import MessageType
        from dbus_next.message import Message

        bus, within_s = self._bus, timeout_s or self._timeout_s
        if bus is None or self.lost.is_set():
            raise BusError("the system's D-Bus has gone away")
        serial = bus.next_serial()
        try:
            message = Message(
                destination=destination,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=[_to_library(each) for each in arguments],
                serial=serial,
            )
            async with asyncio.timeout(within_s), self._turn:
                reply = await bus.call(message)
        except TimeoutError:
            raise BusError(f"{destination} did not answer in {within_s:g} s") from None
        except (OSError, EOFError) as error:
            raise BusError(f"the system's D-Bus has gone away: {error}") from error
        except (ValueError, TypeError, struct.error) as error:
            raise BusError(f"{member} cannot be sent: {error}") from error
        finally:
            # An answer that comes too late finds nobody waiting.
            bus._method_return_handlers.pop(serial, None)  # noqa: SLF001
        if reply is None:
            raise BusError("the system's D-Bus has gone away")
        if reply.message_type is MessageType.ERROR:
            text = reply.body[0] if reply.body and isinstance(reply.body[0], str) else ""
            raise BusError(text or reply.error_name, reply.error_name)
        return [_from_library(each) for each in reply.body]

    async def get(self, destination: str, path: str, interface: str, name: str) -> Any:
        """One property, plain. BusError."""
        (value,) = await self.call(destination, path, PROPERTIES, "Get", "ss", [interface, name])
        return plain(value)

    async def get_all(self, destination: str, path: str, interface: str) -> dict[str, Any]:
        """All of an interface's properties, plain. BusError."""
        (values,) = await self.call(destination, path, PROPERTIES, "GetAll", "s", [interface])
        return dict(plain(values))

    async def owner(self, name: str) -> str:
        """Which connection has this name; empty: none, so that nobody answers to it. BusError."""
        try:
            (found,) = await self.call(DBUS, "/org/freedesktop/DBus", DBUS, "GetNameOwner", "s", [name])
        except BusError as error:
            if error.name == "org.freedesktop.DBus.Error.NameHasNoOwner":
                return ""
            raise
        return str(found)

    @contextlib.asynccontextmanager
    async def listening(self, match: Match, heard: Callable[[Signal], None]) -> AsyncIterator[None]:
        """As long as the context lasts, `heard` is called with each such signal; it must return soon, and not raise. BusError."""
        listener = (match, heard)
        self._listeners.append(listener)
        try:
            await self._ask_bus("AddMatch", match.rule)
            yield
        finally:
            self._listeners.remove(listener)
            if not self.lost.is_set():
                with contextlib.suppress(BusError):
                    await self._ask_bus("RemoveMatch", match.rule)

    @contextlib.asynccontextmanager
    async def watching_owner(self, name: str, changed: Callable[[bool], None]) -> AsyncIterator[None]:
        """As long as the context lasts, `changed` hears when `name` appears (True) and goes (False)."""

        def heard(signal: Signal) -> None:
            _, old, new = signal.body
            if old:
                changed(False)
            if new:
                changed(True)

        match = Match(sender=DBUS, interface=DBUS, member="NameOwnerChanged", first=name)
        async with self.listening(match, heard):
            yield

    async def _ask_bus(self, member: str, rule: str) -> None:
        await self.call(DBUS, "/org/freedesktop/DBus", DBUS, member, "s", [rule])

    def _take(self, message: Any) -> None:
        from dbus_next.constants import MessageType

        if message.message_type is not MessageType.SIGNAL:
            return
        body = [plain(_from_library(each)) for each in message.body]
        signal = Signal(message.path, message.interface, message.member, body)
        for match, heard in list(self._listeners):
            if match.takes(signal):
                heard(signal)

    def _gone(self, future: asyncio.Future[None]) -> None:
        if not future.cancelled():
            future.exception()  # asked for, so that nobody misses it
        self.lost.set()


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
    async with Bus(timeout_s=timeout_s) as bus:
        return await bus.call(destination, path, interface, member, signature, arguments)


def _to_library(value: Any) -> Any:
    from dbus_next.signature import Variant

    match value:
        case Typed(signature, inner):
            return Variant(signature, _to_library(inner))
        case list() | tuple():
            return [_to_library(each) for each in value]
        case dict():
            return {key: _to_library(each) for key, each in value.items()}
        case _:
            return value


def _from_library(value: Any) -> Any:
    from dbus_next.signature import Variant

    match value:
        case Variant():
            return Typed(value.signature or value.type.signature, _from_library(value.value))
        case list():
            return [_from_library(each) for each in value]
        case dict():
            return {key: _from_library(each) for key, each in value.items()}
        case _:
            return value


def _close(bus: Any) -> None:
    """The library would only shut its socket down, and leave it and the loop's reader to the garbage collector."""
    loop = asyncio.get_running_loop()
    loop.remove_reader(bus._sock)  # noqa: SLF001
    loop.remove_writer(bus._sock)  # noqa: SLF001
    with contextlib.suppress(OSError):  # what was not sent any more
        bus._stream.close()  # noqa: SLF001
    bus._sock.close()  # noqa: SLF001
