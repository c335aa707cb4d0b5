"""What no single value of a file shows: whether its values agree with one another.

Works on plain values from which everything wrong has been left out, so that one bad value hides no other
problem.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from appliance.config.appliance import Devices, LayoutName
from appliance.config.document import UNKNOWN, Document, KeyPath
from appliance.config.errors import Problem, Severity
from appliance.config.forms import interface_address, same_port


def network_consistency(document: Document, data: dict[str, Any]) -> list[Problem]:
    """Problems between the values of `data`, which is what `validate` left of `document`."""
    checks = _Checks(document, data, [])
    for check in (_ports, _desktop, _subnets, _shared_addresses, _cluster, _storage, _tls):
        check(checks)
    return checks.problems


def appliance_consistency(document: Document, data: dict[str, Any]) -> list[Problem]:
    """The same for `appliance.toml`."""
    checks = _Checks(document, data, [])
    for check in (_temperatures, _trays):
        check(checks)
    return checks.problems


@dataclass
class _Checks:
    document: Document
    data: dict[str, Any]
    problems: list[Problem]

    def error(self, path: KeyPath, message: str) -> None:
        self.problems.append(self.document.problem(path, message))

    def warning(self, path: KeyPath, message: str) -> None:
        self.problems.append(self.document.problem(path, message, Severity.WARNING))

    def ports(self) -> list[tuple[str, dict[str, Any]]]:
        return [(role, port) for role, port in (self.data.get("interfaces") or {}).items()]

    def nodes(self) -> list[tuple[int, dict[str, Any]]]:
        """Members of the cluster that could be read, with their numbers in the list."""
        items = (self.data.get("cluster") or {}).get("nodes", [])
        return [(number, item) for number, item in enumerate(items) if item is not UNKNOWN]


def _ports(checks: _Checks) -> None:
    for role, port in checks.ports():
        path: KeyPath = ("interfaces", role)
        ip, gateway = port.get("ip"), port.get("gateway")
        if ip is not None and port.get("dhcp"):
            checks.error((*path, "dhcp"), "is true although ip is set, expected one of the two")
        if ip is None or gateway is None:
            continue
        own, router = interface_address(ip), ipaddress.ip_address(gateway)
        if router == own.ip:
            checks.error((*path, "gateway"), "is the port's own address, expected that of the router")
        # A router may announce itself on an IPv6 link by its link-local address.
        elif router not in own.network and not (own.version == 6 and router.is_link_local):
            checks.error(
                (*path, "gateway"), f"is outside the port's subnet, expected an address in {own.network}"
            )


def _desktop(checks: _Checks) -> None:
    """Over USB the desktop gets its address from the tower, by DHCP: there must be one left for it."""
    for role, port in checks.ports():
        ip = port.get("ip")
        if port.get("type") != "usb" or ip is None:
            continue
        own = interface_address(ip)
        if own.version != 4 or own.network.num_addresses < 4:
            checks.error(
                ("interfaces", role, "ip"),
                f"leaves no address for the desktop, expected an IPv4 address of a network up to /30, not {own}",
            )


def _subnets(checks: _Checks) -> None:
    """Two ports in one subnet work, each answering with its own address, but seldom is it what was meant."""
    seen: list[tuple[str, Any]] = []
    for role, port in checks.ports():
        if (ip := port.get("ip")) is None:
            continue
        own = interface_address(ip)
        for other, interface in seen:
            if (
                own.ip != interface.ip
                and own.version == interface.version
                and own.network.overlaps(interface.network)
            ):
                checks.warning(
                    ("interfaces", role, "ip"),
                    f"shares the subnet {interface.network} with interfaces.{other}, "
                    "expected a subnet of its own",
                )
                break
        seen.append((role, own))


def _shared_addresses(checks: _Checks) -> None:
    ports = [(("interfaces", role, "ip"), port.get("ip")) for role, port in checks.ports()]
    nodes = [(("cluster", "nodes", number, "ip"), node.get("ip")) for number, node in checks.nodes()]
    # A node's address is also that of the port it is reached by, so the two lists may meet.
    _once(checks, ports, lambda ip: str(interface_address(ip).ip))
    _once(checks, nodes, lambda ip: str(interface_address(ip).ip))


def _once(
    checks: _Checks, values: list[tuple[Any, str | None]], same: Callable[[str], str] = lambda text: text
) -> None:
    first: dict[str, KeyPath] = {}
    for path, text in values:
        if text is None:
            continue
        if (other := first.setdefault(same(text), path)) != path:
            where = checks.document.problem(other, "")
            checks.error(
                path, f"is the same as {where.key} on line {where.line}, expected another {path[-1]}"
            )


def _cluster(checks: _Checks) -> None:
    if checks.data.get("mode") == "cluster" and checks.document.data.get("cluster") is None:
        checks.error(("cluster",), "missing although mode is cluster, expected name, node_id and nodes")
    nodes = checks.nodes()
    _once(checks, [(("cluster", "nodes", number, "id"), node.get("id")) for number, node in nodes])
    cluster = checks.data.get("cluster") or {}
    node_id = cluster.get("node_id")
    complete = len(nodes) == len(cluster.get("nodes", [])) and all("id" in node for _, node in nodes)
    if node_id is None or not nodes or not complete:
        return
    names = dict.fromkeys(node["id"] for _, node in nodes)
    if node_id not in names:
        checks.error(("cluster", "node_id"), f"is none of the nodes, expected one of {', '.join(names)}")


def _storage(checks: _Checks) -> None:
    storage = checks.data.get("shared_storage") or {}
    if storage.get("type") == "nfs" and not storage.get("path", "/").startswith("/"):
        checks.error(("shared_storage", "path"), "does not begin with /, expected an exported folder")


def _tls(checks: _Checks) -> None:
    api = checks.data.get("api") or {}
    if api.get("tls") and "cert" not in (checks.document.data.get("api") or {}):
        checks.warning(("api", "cert"), "missing although tls is true, expected the path of a certificate")


def _temperatures(checks: _Checks) -> None:
    devices = {**msgspec.to_builtins(Devices()), **(checks.data.get("devices") or {})}
    throttle, shutdown, hysteresis = (devices[f"{name}_c"] for name in ("throttle", "shutdown", "hysteresis"))
    if shutdown - hysteresis < throttle:
        checks.error(
            ("devices", "shutdown_c"),
            f"is {shutdown:g}, expected at least throttle_c + hysteresis_c = {throttle + hysteresis:g}",
        )


def _trays(checks: _Checks) -> None:
    """A port that stands twice is a slip that leaves the rest usable: the first one counts."""
    devices = checks.data.get("devices") or {}
    trays = [(number, tray) for number, tray in enumerate(devices.get("trays") or []) if tray is not UNKNOWN]
    _once(checks, [(("devices", "trays", number, "name"), tray.get("name")) for number, tray in trays])
    if trays and devices.get("layout", LayoutName.ONE_TRAY) != LayoutName.ONE_TRAY:
        checks.warning(("devices", "layout"), "does not count beside devices.trays, expected one of the two")
    seen: dict[str, KeyPath] = {}
    for number, tray in trays:
        for position, port in enumerate(tray.get("slots", [])):
            path: KeyPath = ("devices", "trays", number, "slots", position)
            if port is UNKNOWN:
                continue
            for other, first in seen.items():
                if same_port(port, other):
                    where = checks.document.problem(first, "")
                    checks.warning(
                        path,
                        f"is the same port as {where.key} on line {where.line}, which counts; expected each port once",
                    )
                    break
            else:
                seen[port] = path
