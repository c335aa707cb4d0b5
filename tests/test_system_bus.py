"""Calls over D-Bus: a real daemon, and a small service of ours on it."""

from __future__ import annotations

import ast
import asyncio
import gc
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from dbus_next import BusType, Message, MessageType, Variant
from dbus_next.aio import MessageBus

import appliance
from appliance import system_bus
from appliance.supervisor import power
from appliance.supervisor.errors import Denied, PowerUnavailable
from appliance.system_bus import Bus, BusError, Match, Signal, Typed, call, plain
from appliance.wire.messages import PowerAction
from tests.waiting import look_until

CONFIGURATION = """
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={path}</listen>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""

LOGIN = "org.freedesktop.login1"


class Login:
    """systemd-logind, as far as we use it. `refusal` is the error that it answers with; `mute`, it does not."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[object]]] = []
        self.refusal = ""
        self.mute = False

    def take(self, message: Message) -> Message | bool | None:
        if message.message_type is not MessageType.METHOD_CALL or message.interface != f"{LOGIN}.Manager":
            return None
        if self.mute:
            return True
        if self.refusal:
            return Message.new_error(message, self.refusal, "said no")
        self.asked.append((message.member, message.body))
        return Message.new_method_return(message)


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    (folder / "bus.conf").write_text(CONFIGURATION.format(path=folder / "bus"))
    command = ["dbus-daemon", f"--config-file={folder / 'bus.conf'}", "--nofork", "--print-address"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", daemon.stdout.readline().strip())
        yield daemon
        daemon.terminate()
    shutil.rmtree(folder)


@pytest.fixture
def bus(daemon: subprocess.Popen[str]) -> None:
    """It is there."""


@pytest.fixture
async def login(bus: None) -> AsyncIterator[Login]:
    connection = await MessageBus(bus_type=BusType.SYSTEM).connect()
    service = Login()
    connection.add_message_handler(service.take)
    await connection.request_name(LOGIN)
    yield service
    system_bus._close(connection)


async def test_an_answer(bus: None) -> None:
    bus_itself = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
    assert await call(*bus_itself, "NameHasOwner", "s", ["org.freedesktop.DBus"]) == [True]
    (names,) = await call(*bus_itself, "ListNames")
    assert "org.freedesktop.DBus" in names
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(5):
        await call(*bus_itself, "GetId")
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


async def test_an_error_has_its_name(bus: None) -> None:
    with pytest.raises(BusError, match="was not provided by any") as caught:
        await call("org.example.Nobody", "/", "org.example", "Nothing")
    assert caught.value.name == "org.freedesktop.DBus.Error.ServiceUnknown"


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the library drops its socket open
@pytest.mark.parametrize("address", ["unix:path=/nonexistent/bus", "nonsense", ""])
async def test_no_bus(monkeypatch: pytest.MonkeyPatch, address: str, tmp_path: Path) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address or f"unix:path={tmp_path}")
    with pytest.raises(BusError, match="D-Bus cannot be reached"):
        await call("org.example", "/", "org.example", "Nothing")
    gc.collect()


async def test_no_answer(login: Login) -> None:
    login.mute = True
    with pytest.raises(BusError, match=r"org\.freedesktop\.login1 did not answer in"):
        await call(
            LOGIN, "/org/freedesktop/login1", f"{LOGIN}.Manager", "Reboot", "b", [False], timeout_s=0.2
        )


async def test_power(login: Login) -> None:
    assert await power.machine(PowerAction.REBOOT) == "restarting now"
    assert await power.machine(PowerAction.POWER_OFF) == "switching off now"
    assert login.asked == [("Reboot", [False]), ("PowerOff", [False])]


async def test_power_is_denied(login: Login) -> None:
    for name in ("AccessDenied", "InteractiveAuthorizationRequired"):
        login.refusal = f"org.freedesktop.DBus.Error.{name}"
        with pytest.raises(Denied, match=r"polkit does not let this service do it \(said no\)"):
            await power.machine(PowerAction.REBOOT)
    login.refusal = "org.freedesktop.login1.OperationInProgress"
    with pytest.raises(PowerUnavailable, match="systemd-logind did not do it: said no"):
        await power.machine(PowerAction.REBOOT)
    assert login.asked == []


async def test_power_without_a_login_manager(bus: None) -> None:
    with pytest.raises(PowerUnavailable, match="was not provided by any"):
        await power.machine(PowerAction.POWER_OFF)


# --- a connection that stays ------------------------------------------------------------------------------------------


class Things:
    """A service with an object: answers with what it was sent, knows two properties, tells of changes."""

    NAME = "org.example.Things"

    def __init__(self, connection: MessageBus) -> None:
        self._connection = connection
        self.mute = False

    def take(self, message: Message) -> Message | bool | None:
        if message.message_type is not MessageType.METHOD_CALL or message.path != "/thing":
            return None
        match message.member:
            case _ if self.mute:
                return True
            case "Echo":
                return Message.new_method_return(message, "v", message.body)
            case "Get":
                return Message.new_method_return(message, "v", [Variant("u", 7)])
            case "GetAll":
                values = {"Size": Variant("u", 7), "Names": Variant("as", ["a", "b"])}
                return Message.new_method_return(message, "a{sv}", [values])
        return None

    async def tell(self, path: str, member: str, first: str) -> None:
        await self._connection.send(
            Message.new_signal(path, self.NAME, member, "sv", [first, Variant("i", -1)])
        )

    async def drop_name(self) -> None:
        await self._connection.release_name(self.NAME)


@pytest.fixture
async def things(bus: None) -> AsyncIterator[Things]:
    connection = await MessageBus(bus_type=BusType.SYSTEM).connect()
    service = Things(connection)
    connection.add_message_handler(service.take)
    await connection.request_name(Things.NAME)
    yield service
    system_bus._close(connection)


async def test_values_keep_their_types(things: Things) -> None:
    value = Typed("a{sa{sv}}", {"ipv4": {"method": Typed("s", "auto"), "dns": Typed("aay", [b"\x01\x02"])}})
    async with Bus() as connection:
        assert await connection.call(Things.NAME, "/thing", Things.NAME, "Echo", "v", [value]) == [value]
        assert plain(value) == {"ipv4": {"method": "auto", "dns": [b"\x01\x02"]}}
        assert await connection.get(Things.NAME, "/thing", Things.NAME, "Size") == 7
        assert await connection.get_all(Things.NAME, "/thing", Things.NAME) == {
            "Size": 7,
            "Names": ["a", "b"],
        }


async def test_what_does_not_fit_is_refused_and_the_next_call_is_not(things: Things) -> None:
    async with Bus() as connection:
        for signature, value in (("u", -1), ("s", 5), ("a{sv}", [1])):
            with pytest.raises(BusError, match="cannot be sent"):
                await connection.call(Things.NAME, "/thing", Things.NAME, "Echo", signature, [value])
        assert await connection.get(Things.NAME, "/thing", Things.NAME, "Size") == 7


async def test_signals(things: Things) -> None:
    heard: list[Signal] = []
    async with Bus() as connection:
        match = Match(sender=Things.NAME, below="/a", member="Changed", first="x")
        async with connection.listening(match, heard.append):
            for path, member, first in (
                ("/a", "Changed", "x"), ("/a/b", "Changed", "x"), ("/ab", "Changed", "x"),
                ("/a", "Other", "x"), ("/a", "Changed", "y"),
            ):  # fmt: skip
                await things.tell(path, member, first)
            await look_until("both have come", lambda: len(heard) == 2)
        await things.tell("/a", "Changed", "x")
        assert await connection.owner(Things.NAME)  # by now it would have come
    assert [signal.path for signal in heard] == ["/a", "/a/b"]
    assert heard[0].body == ["x", -1]


async def test_who_comes_and_goes(things: Things) -> None:
    seen: list[bool] = []
    async with Bus() as connection, connection.watching_owner(Things.NAME, seen.append):
        assert (await connection.owner(Things.NAME)).startswith(":")
        await things.drop_name()
        await look_until("it is gone", lambda: seen == [False])
        assert await connection.owner(Things.NAME) == ""
        await things._connection.request_name(Things.NAME)
        await look_until("it is back", lambda: seen == [False, True])


async def test_nothing_is_left_of_calls_without_an_answer(things: Things) -> None:
    things.mute = True
    async with Bus(timeout_s=0.1) as connection:
        calls = (connection.get(Things.NAME, "/thing", Things.NAME, "Size") for _ in range(100))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(answer, BusError) for answer in answers)
        assert connection._bus._method_return_handlers == {}
        things.mute = False
        assert await connection.get(Things.NAME, "/thing", Things.NAME, "Size") == 7


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the library drops its socket open
async def test_the_bus_goes_away(daemon: subprocess.Popen[str]) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    async with Bus() as connection:
        daemon.kill()
        await asyncio.wait_for(connection.lost.wait(), 30)
        with pytest.raises(BusError, match="has gone away"):
            await connection.owner("org.example.Nobody")
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
    with pytest.raises(BusError, match="cannot be reached"):
        await Bus().__aenter__()
    gc.collect()


def test_one_module_knows_the_library() -> None:
    root = Path(appliance.__file__).parent
    knowing = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.partition(".")[0] == "dbus_next" for name in names):
                knowing.add(path)
    assert knowing == {Path(system_bus.__file__)}
