"""A supervisor's control socket with real users, and the visits that a console makes on a line before it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from appliance.identity.roles import Role
from appliance.identity.users import UserFile
from appliance.network.history import History
from appliance.paths import Paths
from appliance.scheduling.invoke_leases import InvokeLeases
from appliance.scheduling.leases import LeaseTable
from appliance.supervisor.control import ControlSocket
from appliance.telemetry.interfaces import Interfaces
from console.line import open_serial
from console.session import Visit, visits
from tests.supervisor.some_logins import some_logins
from tests.supervisor.some_network import SomeNetwork, some_desk
from tests.supervisor.test_control import STATUS, SomeOrders

from .person import Person

NAME, PASSWORD = "anna", "a coral reef at night"


class Cable:
    """In or out, as the test says."""

    def __init__(self) -> None:
        self.plugged = True

    def attached(self) -> bool:
        return self.plugged


class Place:
    """The folders and the control socket of an appliance that has nothing else."""

    def __init__(self, paths: Paths) -> None:
        self.paths, self.cable = paths, Cable()
        self.control: ControlSocket | None = None
        self.guest = False
        self.network = SomeNetwork(History(paths.state / "history"))

    async def start(self) -> None:
        """The supervisor begins to listen."""
        self.control = ControlSocket(
            self.paths.control_socket,
            LeaseTable(queue_limit=1),
            InvokeLeases(limit=1),
            status=lambda: STATUS,
            traffic=Interfaces().traffic,
            socket_of=lambda worker: ("", ""),
            orders=SomeOrders(),
            logins=some_logins(self.paths.supervisor),
            network=some_desk(None if self.guest else self.network),
            why_none_is_ready=lambda: "",
            queue_timeout_s=1.0,
        )
        await self.control.start()

    async def stop(self) -> None:
        if self.control is not None:
            await self.control.close()
            self.control = None

    def add_user(self, name: str = NAME, password: str = PASSWORD, role: Role = Role.ADMIN) -> None:
        UserFile(self.paths.supervisor / "users.json").add(name, password, role)

    @asynccontextmanager
    async def serving(
        self, person: Person, line: str = "ttyGS0", *, login: bool = True, idle_logout_s: float = 0.0
    ) -> AsyncIterator[None]:
        """A console on the person's line, until the context ends."""

        def opener(received: Callable[[bytes], None], lost: Callable[[str], None]) -> object:
            return open_serial(person.device, received=received, lost=lost)

        def visit() -> Visit:
            return Visit(
                self.paths,
                line,
                self.cable,
                opener,  # type: ignore[arg-type]
                login=login,
                idle_logout_s=idle_logout_s,
            )

        task = asyncio.create_task(visits(visit, self.cable, line))
        try:
            yield
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def place(*, listening: bool = True) -> AsyncIterator[Place]:
    """One that lasts as long as the context."""
    folder = Path(tempfile.mkdtemp(prefix="reef.", dir="/tmp"))
    paths = Paths.under(folder)
    paths.supervisor.mkdir(parents=True)
    found = Place(paths)
    if listening:
        await found.start()
    try:
        yield found
    finally:
        await found.stop()
        shutil.rmtree(folder)


async def log_in(person: Person, name: str = NAME, password: str = PASSWORD) -> None:
    await person.sees("login: ")
    person.type(f"{name}\r")
    await person.sees("Password: ")
    person.type(f"{password}\r")
    await person.sees(f"Welcome, {name}")
    await person.sees("coral-reef>")
