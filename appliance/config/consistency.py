"""What no single value of a file shows: whether its values agree with one another.

Works on plain values from which everything wrong has been left out, so that one bad value hides no other
problem.
"""

from __future__ import annotations

import ipaddress
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from appliance.config.appliance import Devices, LayoutName
from appliance.config.document import UNKNOWN, Document, KeyPath
from appliance.config.errors import Problem, Severity
from appliance.config.forms import Interface, interface_address, same_port

#: An Ethernet's, where nobody says otherwise.
DEFAULT_MTU = 1500

#: What a port that belongs to a bond has not: the bond has it.
_ADDRESSING = ("ip", "addresses", "dhcp", "gateway", "dns", "routes", "vlan", "bond")


def network_consistency(document: Document, data: dict[str, Any]) -> list[Problem]:
    """Problems between the values of `data`, which is what `validate` left of `document`."""
    checks = _Checks(document, data, [])
    for check in (
        _addressing,
        _desktop,
        _hardware,
        _vlans,
        _bonds,
        _wifi,
        _subnets,
        _shared_addresses,
        _rules,
        _cluster,
        _storage,
        _tls,
    ):
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

    def vlans(self) -> list[tuple[int, dict[str, Any]]]:
        """Those that could be read, with their numbers in the list."""
        return _readable(self.data.get("vlans"))

    def addressed(self) -> list[tuple[KeyPath, dict[str, Any]]]:
        """All that can have addresses: ports, then VLANs."""
        ports: list[tuple[KeyPath, dict[str, Any]]] = [
            (("interfaces", role), port) for role, port in self.ports()
        ]
        return ports + [(("vlans", number), vlan) for number, vlan in self.vlans()]

    def nodes(self) -> list[tuple[int, dict[str, Any]]]:
        """Members of the cluster that could be read, with their numbers in the list."""
        return _readable((self.data.get("cluster") or {}).get("nodes"))


def _readable(items: list[Any] | None) -> list[tuple[int, Any]]:
    """Items of a list without those that are wrong, with their numbers."""
    return [(number, item) for number, item in enumerate(items or []) if item is not UNKNOWN]


def _addresses(path: KeyPath, data: dict[str, Any]) -> list[tuple[KeyPath, str]]:
    """All static addresses of a port or a VLAN, and where each stands."""
    further = [((*path, "addresses", number), text) for number, text in _readable(data.get("addresses"))]
    return ([((*path, "ip"), data["ip"])] if data.get("ip") is not None else []) + further


def _addressing(checks: _Checks) -> None:
    for path, data in checks.addressed():
        static = [(where, interface_address(text)) for where, text in _addresses(path, data)]
        fixed = [(where, own) for where, own in static if own.version == 4]
        if fixed and data.get("dhcp"):
            key = fixed[0][0][len(path)]
            checks.error((*path, "dhcp"), f"is true although {key} is set, expected one of the two")
        _gateway(checks, path, data, [own for _, own in static])
        for number, route in _readable(data.get("routes")):
            _route(checks, (*path, "routes", number), route, [own for _, own in static])
        _ipv6(checks, path, data, [where for where, own in static if own.version == 6])


def _gateway(checks: _Checks, path: KeyPath, data: dict[str, Any], static: list[Interface]) -> None:
    if (gateway := data.get("gateway")) is None:
        return
    router = ipaddress.ip_address(gateway)
    same = [own for own in static if own.version == router.version]
    if any(own.ip == router for own in same):
        checks.error((*path, "gateway"), "is the port's own address, expected that of the router")
    elif not same and not static:
        checks.error((*path, "gateway"), "is set without ip, expected ip too, or the router that DHCP names")
    # A router may announce itself on an IPv6 link by its link-local address.
    elif not any(router in own.network for own in same) and not (
        router.version == 6 and router.is_link_local
    ):
        subnets = " or ".join(str(own.network) for own in same or static)
        checks.error((*path, "gateway"), f"is outside the port's subnet, expected an address in {subnets}")


def _route(checks: _Checks, path: KeyPath, route: dict[str, Any], static: list[Interface]) -> None:
    """With DHCP nobody knows the subnet before."""
    if "to" not in route or "via" not in route:
        return
    router, network = ipaddress.ip_address(route["via"]), ipaddress.ip_network(route["to"])
    same = [own for own in static if own.version == router.version]
    if router.version != network.version:
        checks.error((*path, "via"), f"is IPv{router.version}, expected a router of IPv{network.version}")
    elif same and not router.is_link_local and not any(router in own.network for own in same):
        expected = " or ".join(str(own.network) for own in same)
        checks.error((*path, "via"), f"is outside the port's subnet, expected an address in {expected}")


def _ipv6(checks: _Checks, path: KeyPath, data: dict[str, Any], static: list[KeyPath]) -> None:
    how = data.get("ipv6")
    if how in {"off", "link-local"} and static:
        where = checks.document.problem(static[0], "")
        checks.error(
            (*path, "ipv6"), f"is {how} although {where.key} is an IPv6 address, expected static or auto"
        )
    elif how == "static" and not static:
        checks.error((*path, "ipv6"), "is static without an IPv6 address, expected one in addresses, or auto")


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


def _hardware(checks: _Checks) -> None:
    """One piece of hardware has one role."""
    for key, same in (("mac", str.lower), ("interface", str), ("path", str)):
        values = [
            (("interfaces", role, "match", key), (port.get("match") or {}).get(key))
            for role, port in checks.ports()
        ]
        _once(checks, [(path, text) for path, text in values if text and "*" not in text], same)


def _vlans(checks: _Checks) -> None:
    ports = dict(checks.ports())
    seen: dict[tuple[str, int], KeyPath] = {
        (role, port["vlan"]): ("interfaces", role, "vlan")
        for role, port in ports.items()
        if port.get("vlan") is not None
    }
    for number, vlan in checks.vlans():
        path: KeyPath = ("vlans", number)
        if (parent := vlan.get("parent")) is None:
            continue
        if parent not in ports:
            known = ", ".join(role for role, port in ports.items() if port.get("type") != "usb")
            checks.error(
                (*path, "parent"),
                f"{parent} is none of the interfaces, expected one of {known}"
                if known
                else f"{parent} is none of the interfaces: there are none",
            )
            continue
        if ports[parent].get("type") == "usb":
            checks.error((*path, "parent"), f"{parent} is the USB port, expected an Ethernet port")
        _vlan_mtu(checks, path, vlan, parent, ports[parent])
        if "id" not in vlan:
            continue
        if (other := seen.setdefault((parent, vlan["id"]), (*path, "id"))) != (*path, "id"):
            where = checks.document.problem(other, "")
            checks.error(
                (*path, "id"), f"is the same as {where.key} on line {where.line}, expected another id"
            )


def _vlan_mtu(
    checks: _Checks, path: KeyPath, vlan: dict[str, Any], role: str, parent: dict[str, Any]
) -> None:
    limit = parent.get("mtu") or DEFAULT_MTU
    if (mtu := vlan.get("mtu")) is not None and mtu > limit:
        checks.error(
            (*path, "mtu"),
            f"is {mtu}, more than its parent's, expected at most {limit} or a larger interfaces.{role}.mtu",
        )


def _bonds(checks: _Checks) -> None:
    ports = dict(checks.ports())
    taken: dict[str, KeyPath] = {}
    for role, port in ports.items():
        if port.get("bond") is not None and port.get("type") != "ethernet":
            checks.error(("interfaces", role, "bond"), "is set although type is not ethernet, expected none")
        for number, other in _readable((port.get("bond") or {}).get("ports")):
            path: KeyPath = ("interfaces", role, "bond", "ports", number)
            if other == role:
                checks.error(path, "is the role of the bond itself, expected the other ports")
            elif other not in ports or ports[other].get("type") != "ethernet":
                checks.error(path, f"{other} is no Ethernet port of interfaces, expected one that is")
            elif (first := taken.setdefault(other, path)) != path:
                where = checks.document.problem(first, "")
                checks.error(path, f"is in {where.key} on line {where.line}, too, expected it once")
            elif extra := [key for key in _ADDRESSING if ports[other].get(key)]:
                checks.error(
                    ("interfaces", other, extra[0]),
                    f"is set although the port belongs to the bond of interfaces.{role}, expected it there",
                )


def _wifi(checks: _Checks) -> None:
    for role, port in checks.ports():
        path: KeyPath = ("interfaces", role, "wifi")
        if (wifi := port.get("wifi")) is None:
            continue
        if port.get("type") != "wifi":
            checks.error(path, "is set although type is not wifi, expected type: wifi")
        if port.get("vlan") is not None:
            checks.error(
                ("interfaces", role, "vlan"), "is set on a Wi-Fi port, which carries no VLANs, expected none"
            )
        security, password = wifi.get("security", "auto"), wifi.get("password")
        if security == "open" and password is not None:
            checks.error((*path, "password"), "is set although security is open, expected none")
        if security in {"auto", "wpa2"} and password is not None and not _is_passphrase(password):
            checks.error(
                (*path, "password"),
                "has a wrong length, expected 8 to 63 characters, or 64 hexadecimal digits",
            )
        needed = {
            "enterprise-peap": ("identity",),
            "enterprise-tls": ("identity", "client_cert", "private_key"),
        }
        for key in needed.get(security, ()):
            if key not in wifi and not _written(checks, (*path, key)):
                checks.error((*path, key), f"missing although security is {security}, expected it")
        if (
            wifi.get("mode") == "access-point"
            and security != "open"
            and not _written(checks, (*path, "password"))
        ):
            checks.error(
                (*path, "password"),
                f"missing although security is {security}, expected one, or security: open",
            )
        if wifi.get("mode") == "access-point" and security not in {"auto", "open", "wpa2"}:
            checks.error(
                (*path, "security"),
                f"is {security}, which an access point cannot be here, expected auto, wpa2 or open",
            )
        if wifi.get("channel") is not None and "band" not in wifi:
            checks.error((*path, "channel"), "is set without band, expected band, too")


def _written(checks: _Checks, path: KeyPath) -> bool:
    """Whether the file has the key at all, be its value good or not."""
    data: Any = checks.document.data
    for key in path:
        if not isinstance(data, dict) or key not in data:
            return False
        data = data[key]
    return True


def _is_passphrase(password: str) -> bool:
    """IEEE 802.11, annex J.4: a passphrase of printable ASCII, or the key itself."""
    if len(password) == 64:
        return all(character in string.hexdigits for character in password)
    return 8 <= len(password) <= 63 and password.isascii() and password.isprintable()


def _rules(checks: _Checks) -> None:
    for number, rule in _readable((checks.data.get("firewall") or {}).get("rules")):
        if rule.get("ports") and rule.get("protocol") not in {"tcp", "udp"}:
            checks.error(
                ("firewall", "rules", number, "ports"),
                "is set without a protocol that has ports, expected protocol: tcp or udp",
            )


def _subnets(checks: _Checks) -> None:
    """Two ports in one subnet work, each answering with its own address, but seldom is it what was meant."""
    seen: list[tuple[str, Any]] = []
    for path, data in checks.addressed():
        name, own_ones = _name(checks, path), []
        for where, text in _addresses(path, data):
            own = interface_address(text)
            for other, interface in seen:
                if (
                    own.ip != interface.ip
                    and own.version == interface.version
                    and own.network.overlaps(interface.network)
                ):
                    checks.warning(
                        where,
                        f"shares the subnet {interface.network} with {other}, expected a subnet of its own",
                    )
                    break
            own_ones.append((name, own))
        seen += own_ones


def _name(checks: _Checks, path: KeyPath) -> str:
    return str(checks.document.problem(path, "").key)


def _shared_addresses(checks: _Checks) -> None:
    ports = [each for path, data in checks.addressed() for each in _addresses(path, data)]
    nodes = [(("cluster", "nodes", number, "ip"), node.get("ip")) for number, node in checks.nodes()]
    # A node's address is also that of the port it is reached by, so the two lists may meet.
    _once(checks, ports, lambda ip: str(interface_address(ip).ip))
    _once(checks, nodes, lambda ip: str(interface_address(ip).ip))


def _once(
    checks: _Checks,
    values: Sequence[tuple[Any, str | None]],
    same: Callable[[str], str] = lambda text: text,
) -> None:
    first: dict[str, KeyPath] = {}
    for path, text in values:
        if text is None:
            continue
        if (other := first.setdefault(same(text), path)) != path:
            where = checks.document.problem(other, "")
            what = path[-1] if isinstance(path[-1], str) else "address"
            checks.error(path, f"is the same as {where.key} on line {where.line}, expected another {what}")


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
