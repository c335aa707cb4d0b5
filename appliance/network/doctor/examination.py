"""All checks of a machine, at the same time as far as one does not need another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from appliance.config.network import Mode, Network, Port, Role
from appliance.wire.messages import Check, Finding, Outcome

from . import beyond, dns, facts, on_the_link, ours
from .facts import Interface, NoProgram, Router
from .findings import failed, skipped
from .ours import Listener

#: Interfaces that are looked at.
INTERFACES_LIMIT = 64
RESOLVE_S = 3.0

_ORDER = {check: position for position, check in enumerate(Check)}


@dataclass(frozen=True)
class Machine:
    """Where this machine says what. The tests have their own."""

    interfaces: Path = Path("/sys/class/net")
    resolv_conf: Path = Path("/etc/resolv.conf")
    tcp: tuple[Path, ...] = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
    dns_port: int = 53
    ntp_port: int = 123
    #: Asked instead of those that systemd-timesyncd names.
    ntp_servers: tuple[str, ...] = field(default=())


async def run(
    network: Network,
    *,
    roles: Mapping[str, Role] | None = None,
    listeners: Sequence[Listener] = (),
    host: str | None = None,
    tell: Callable[[Finding], None] = lambda _: None,
    machine: Machine | None = None,
) -> list[Finding]:
    """Every finding, in the order of the checks; `tell` hears each as it is found.

    `network` is what the owner wants, `roles` which interface is which port of it, `listeners` what should take connections;
    `host` is one more machine that shall be reached, by name or address.
    """
    named = {
        port.match.interface: role for role, port in network.interfaces.items() if port.match is not None
    }
    known = roles or {name: role for name, role in named.items() if name is not None}
    examination = _Examination(network, known, listeners, host, tell, machine or Machine())
    await examination.run()
    return in_order(examination.found)


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """From the cable up."""
    return sorted(findings, key=lambda each: _ORDER[each.check])


def exit_status(findings: Sequence[Finding]) -> int:
    """1 when something failed, else 0."""
    return int(any(each.outcome is Outcome.FAILED for each in findings))


class _Examination:
    def __init__(
        self,
        network: Network,
        roles: Mapping[str, Role],
        listeners: Sequence[Listener],
        host: str | None,
        tell: Callable[[Finding], None],
        machine: Machine,
    ) -> None:
        self._network, self._roles, self._listeners, self._host = network, roles, listeners, host
        self._tell, self._machine = tell, machine
        self.found: list[Finding] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for each in (self._interfaces(), self._names(), self._time(), self._own()):
                group.create_task(each)

    def _say(self, *findings: Finding) -> None:
        for each in findings:
            self.found.append(each)
            self._tell(each)

    async def _all(self, *checks: Awaitable[Finding]) -> None:
        for each in asyncio.as_completed(checks):
            self._say(await each)

    async def _interfaces(self) -> None:
        """Link and addresses of each, then routers, then what lies behind them."""
        try:
            interfaces = await facts.interfaces(self._machine.interfaces)
        except NoProgram as error:
            self._say(skipped(Check.LINK, "", str(error)))
            interfaces = []
        # Of what stands on others, like VLANs, only what network.yaml names or somebody has given an address.
        looked_at = [each for each in interfaces if self._matters(each)][:INTERFACES_LIMIT]
        for each in looked_at:
            self._say(on_the_link.link(each, self._port(each)))
        with_link = [each for each in looked_at if each.carrier]
        for findings in await asyncio.gather(
            *(on_the_link.address(each, self._port(each)) for each in with_link)
        ):
            self._say(*findings)
        await self._paths({each.name: each for each in interfaces})

    def _port(self, interface: Interface) -> Port | None:
        role = self._roles.get(interface.name)
        return None if role is None else self._network.interfaces.get(role)

    def _matters(self, interface: Interface) -> bool:
        return (
            interface.name in self._roles
            or interface.hardware
            or any(not each.ip.is_link_local for each in interface.addresses)
        )

    async def _paths(self, interfaces: Mapping[str, Interface]) -> None:
        routers = await facts.routers()
        reached = await self._routers(routers)
        # One way in is enough to measure: a router of both versions of IP has one path.
        measured = {router.address: interfaces.get(router.interface) for router in reached}
        if self._host is not None:
            address = await self._resolve(self._host)
            if address is not None:
                measured.setdefault(address, self._towards(address, routers, interfaces))
        checks: list[Awaitable[Finding]] = []
        for address, interface in measured.items():
            checks.append(beyond.latency(address))
            if interface is not None:
                checks.append(beyond.path_mtu(address, interface.mtu))
        await self._all(*checks)

    async def _routers(self, routers: Sequence[Router]) -> list[Router]:
        if not routers:
            if self._network.mode is Mode.LOCAL:
                self._say(skipped(Check.GATEWAY, "", "there is no router, and mode local needs none"))
            else:
                self._say(
                    failed(
                        Check.GATEWAY,
                        "",
                        "there is no default route",
                        "DHCP brought none, and network.yaml sets no 'gateway'",
                        "set 'gateway' of the port that leads to your router",
                    )
                )
            return []
        findings = await asyncio.gather(*map(on_the_link.gateway, routers))
        self._say(*findings)
        return [
            each for each, found in zip(routers, findings, strict=True) if found.outcome is not Outcome.FAILED
        ]

    async def _resolve(self, host: str) -> str | None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(RESOLVE_S):
                found = await loop.getaddrinfo(host, None)
        except (OSError, TimeoutError, UnicodeError):
            self._say(
                failed(
                    Check.LATENCY,
                    host,
                    "no address is known of that name",
                    "it is misspelt, or no name server knows it",
                    "try its address; see 'dns' above",
                )
            )
            return None
        return str(found[0][4][0])

    @staticmethod
    def _towards(
        address: str, routers: Sequence[Router], interfaces: Mapping[str, Interface]
    ) -> Interface | None:
        """The interface that it is reached through: the one that has its network, else the first router's."""
        wanted = ip_address(address.partition("%")[0])
        for interface in interfaces.values():
            if any(wanted in each.network for each in interface.addresses):
                return interface
        for router in routers:
            if ip_address(router.address.partition("%")[0]).version == wanted.version:
                return interfaces.get(router.interface)
        return None

    async def _names(self) -> None:
        servers = facts.name_servers(self._machine.resolv_conf)
        if not servers:
            self._say(beyond.no_name_server(self._network.mode))
            return
        name = self._host or ""
        if name and not _is_a_name(name):
            name = ""
        await self._all(*(beyond.name_server(each, name, port=self._machine.dns_port) for each in servers))

    async def _time(self) -> None:
        state = await facts.clock()
        self._say(beyond.clock(state))
        servers = self._machine.ntp_servers or state.servers
        if not servers:
            self._say(skipped(Check.TIME, "", "no time server is known"))
            return
        await self._all(*(beyond.time_server(each, port=self._machine.ntp_port) for each in servers))

    async def _own(self) -> None:
        sockets = facts.sockets(*self._machine.tcp)
        await self._all(*(ours.port(each, sockets) for each in self._listeners))
        self._say(ours.certificate(self._network.api, time.time()))
        self._say(ours.clients(sockets, {each.port for each in self._listeners}))


def _is_a_name(host: str) -> bool:
    """Something that a name server can be asked for: no address."""
    try:
        dns.question(0, host, dns.A)
    except ValueError:
        return False
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return True
    return False
