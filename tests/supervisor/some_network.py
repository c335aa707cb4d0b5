"""A network that takes every text and has no hardware, for tests of what people see and type."""

from __future__ import annotations

from typing import cast

from appliance.config.load import interpret_network
from appliance.network.errors import NothingToConfirm
from appliance.network.firewall.rules import Firewall
from appliance.network.hardware import bind
from appliance.network.history import History, Revision
from appliance.network.keeper import Keeper, Troubles, View
from appliance.network.profiles import Current, Device
from appliance.supervisor.network import NetworkDesk

TEXT = "# mine\nmode: local\ninterfaces:\n  primary: {type: ethernet, ip: 10.0.0.2}   # the SFP+ port\n"

DEVICE = Device(
    "eth0",
    "ethernet",
    "52:54:00:00:00:01",
    speed_mbps=10_000,
    carrier=True,
    mtu=1500,
    state=100,
    addresses=("10.0.0.2/24",),
)


class SomeNetwork:
    """In place of a keeper."""

    def __init__(self, history: History) -> None:
        self._history = history
        self.file, self.waits = TEXT, ""
        self._history.add(TEXT, at=1.0, by="root", why="at the start")

    async def look(self) -> View:
        network = interpret_network(self.file).settings
        return View(
            current=Current((), (DEVICE,)),
            binding=bind(network.interfaces, (DEVICE,)),
            roles={"eth0": "primary"},
            troubles=Troubles(),
            revision=self._history.newest(),
            differs=False,
            confirm_within_s=60.0 if self.waits else 0.0,
            firewall=True,
        )

    async def difference(self, text: str | None) -> tuple[list[str], list[str]]:
        network = interpret_network(self.file if text is None else text).settings
        return [f"change {role} to {port.ip}" for role, port in network.interfaces.items()], []

    async def apply(self, text: str | None, *, confirm_s: float, by: str, why: str) -> str:
        interpret_network(self.file if text is None else text)
        if confirm_s:
            self.waits = text or self.file
            return f"done; it goes back in {confirm_s:.0f} s unless 'net confirm' follows"
        self.file = text or self.file
        self._history.add(self.file, at=2.0, by=by, why=why)
        return "done"

    async def back(self, steps: int, *, confirm_s: float, by: str) -> str:
        return await self.apply(self._history.back(steps).text, confirm_s=confirm_s, by=by, why="back")

    async def confirm(self) -> str:
        if not self.waits:
            raise NothingToConfirm("nothing waits for a confirmation (any more)")
        self.file, self.waits = self.waits, ""
        return "done"

    async def cancel(self) -> str:
        self.waits = ""
        return "everything is as it was before"

    def past(self) -> list[Revision]:
        return self._history.all()

    def text(self, steps: int | None) -> str:
        return self.file if steps is None else self._history.back(steps).text

    async def counters(self) -> tuple[Firewall, dict[str, object]]:
        return Firewall(), {}


def some_desk(network: SomeNetwork | None = None) -> NetworkDesk:
    """Without one, the desk of an appliance that is a guest on somebody's machine."""
    return NetworkDesk(cast("Keeper | None", network), mode=lambda: "local", usb=lambda: None)
