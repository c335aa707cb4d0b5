"""What network.yaml means on this machine: a profile for each port, bond and VLAN, and the zones of the firewall. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Interface, IPv4Network, IPv6Network, ip_address, ip_network

from appliance.config.forms import Interface
from appliance.config.network import (
    Addressing,
    Band,
    Ipv6,
    Network,
    Port,
    Role,
    Security,
    Vlan,
    Wifi,
    WifiMode,
)

from .direct_mode import INTERFACE
from .firewall.zones import Zone
from .hardware import Binding
from .profiles import Profile, Settings, Value, owned

#: Interfaces' names have no more characters: IFNAMSIZ.
_NAME_LIMIT = 15

#: The lower, the sooner it is the way to everywhere.
_METRICS = {Role.PRIMARY: 100, Role.SECONDARY: 200, Role.WIFI: 600, Role.MANAGEMENT: 700, Role.CLUSTER: 800}
_VLAN_METRIC = 400

#: Ours win over a profile that NetworkManager or somebody else has made for the same device.
_PRIORITY = 100

#: A second port in one subnet answers from a table of its own: the first of these numbers.
_FIRST_TABLE = 6700

#: NetworkManager's numbers: try for ever; speak mDNS; the radio does not sleep.
_FOR_EVER = 0
_MDNS = 2
_NO_POWER_SAVING = 2

#: An access point's own address where none is given.
ACCESS_POINT_ADDRESS = IPv4Interface("10.67.83.1/24")


class Wanted:
    """Collects the profiles and zones of one configuration."""

    def __init__(self, network: Network, binding: Binding) -> None:
        self._network, self._binding = network, binding
        self.profiles: list[Profile] = []
        self.zones: list[Zone] = []
        self._tables = _tables(network)
        self._base: dict[Role, str] = {}
        bonds = {role: port for role, port in network.interfaces.items() if port.bond is not None}
        self._bonded = {
            each: role for role, port in bonds.items() if port.bond is not None for each in port.bond.ports
        }
        if network.usb_port().enabled:
            self.zones.append(Zone(INTERFACE, "usb", ()))
        for role, port in network.interfaces.items():
            if port.type != "usb" and port.enabled:
                self._port(role, port)
        for vlan in network.vlans:
            self._tagged(vlan)

    def _port(self, role: Role, port: Port) -> None:
        device = self._binding.devices.get(role)
        if port.bond is not None:
            base = self._bond(role, port)
        elif device is None:
            return
        else:
            base = device.name
        self._base[role] = base
        if role in self._bonded:
            return
        if port.type == "wifi" and port.wifi is None:
            return  # a radio that nobody has given a network
        if port.vlan is not None:
            if port.bond is None:
                self._add(str(role), base, _plain(port), _bare(port), role, secrets=_secrets(port.wifi))
            self._stacked(f"{role}.vlan{port.vlan}", base, port.vlan, port, str(role), role)
            return
        if port.bond is None:
            self._add(str(role), base, _plain(port), port, role, secrets=_secrets(port.wifi))
        self._zone(base, str(role), port)

    def _bond(self, role: Role, port: Port) -> str:
        """The bond itself, and its ports; returns its interface."""
        assert port.bond is not None
        base = f"bond-{role}"
        options = [f"mode={port.bond.mode}", "miimon=100"]
        addressing = port if port.vlan is None else _bare(port)
        self._add(
            str(role), base, {"connection": {"type": "bond"}, "bond": {"options": options}}, addressing, role
        )
        for each in (role, *port.bond.ports):
            if (device := self._binding.devices.get(each)) is None:
                continue
            settings: Settings = {
                "connection": {"type": "802-3-ethernet", "master": base, "slave-type": "bond"},
                "802-3-ethernet": {"mtu": port.mtu or 0},
            }
            self._append(f"{role}.port.{each}", device.name, settings, needs=(str(role),))
        return base

    def _tagged(self, vlan: Vlan) -> None:
        parent = vlan.parent
        # A port of a bond has its VLANs on the bond.
        holder = self._bonded.get(parent, parent)
        if (base := self._base.get(holder)) is None:
            return
        self._stacked(f"{parent}.vlan{vlan.id}", base, vlan.id, vlan, str(vlan.use), holder)

    def _stacked(
        self, role: str, base: str, number: int, addressing: Addressing, zone: str, parent: Role
    ) -> None:
        name = vlan_interface(base, number)
        settings: Settings = {"connection": {"type": "vlan"}, "vlan": {"id": number, "parent": base}}
        self._add(
            role, name, settings, addressing, parent, needs=(str(parent),), metric=_VLAN_METRIC + number
        )
        self._zone(name, zone, addressing)

    def _zone(self, interface: str, role: str, addressing: Addressing) -> None:
        networks: list[IPv4Network | IPv6Network] = [each.network for each in addressing.static]
        self.zones.append(Zone(interface, role, tuple(networks)))

    def _add(
        self,
        role: str,
        interface: str,
        settings: Settings,
        addressing: Addressing,
        port: Role,
        *,
        needs: tuple[str, ...] = (),
        metric: int = 0,
        secrets: dict[str, dict[str, str]] | None = None,
    ) -> None:
        """One with addresses."""
        if addressing.mtu is not None:
            section = "802-11-wireless" if "802-11-wireless" in settings else "802-3-ethernet"
            settings.setdefault(section, {})["mtu"] = addressing.mtu
        shares = isinstance(addressing, Port) and _is_access_point(addressing)
        metric = metric or _METRICS.get(port, 500)
        settings["ipv4"] = _ipv4(addressing, self._tables.get(role, 0), metric, shares=shares)
        settings["ipv6"] = _ipv6(addressing, self._tables.get(role, 0), metric)
        self._append(role, interface, settings, needs=needs, secrets=secrets)

    def _append(
        self,
        role: str,
        interface: str,
        settings: Settings,
        *,
        needs: tuple[str, ...] = (),
        secrets: dict[str, dict[str, str]] | None = None,
    ) -> None:
        settings["connection"] = {
            **settings["connection"],
            "id": f"Coral-Reef {role}",
            "interface-name": interface,
            "autoconnect-priority": _PRIORITY,
            "autoconnect-retries": _FOR_EVER,
            "mdns": _MDNS,
        }
        self.profiles.append(Profile(role, interface, owned(settings), needs, secrets or {}))


def wanted(network: Network, binding: Binding) -> tuple[tuple[Profile, ...], tuple[Zone, ...]]:
    """The profiles in the order of the file, VLANs last, and the firewall's zones. A port whose device is not there has none."""
    found = Wanted(network, binding)
    return tuple(found.profiles), tuple(found.zones)


def vlan_interface(base: str, number: int) -> str:
    """`eth0.10`; of a long name, its beginning."""
    end = f".{number}"
    return base[: _NAME_LIMIT - len(end)] + end


def _bare(port: Port) -> Addressing:
    """A port that only carries its VLAN."""
    return Addressing(dhcp=False, ipv6=Ipv6.OFF, mtu=port.mtu)


def _plain(port: Port) -> Settings:
    """What makes an Ethernet or a Wi-Fi profile of it."""
    if port.wifi is not None:
        return _wireless(port.wifi)
    return {"connection": {"type": "802-3-ethernet"}}


def _wireless(wifi: Wifi) -> Settings:
    point = wifi.mode is WifiMode.ACCESS_POINT
    radio: dict[str, Value] = {
        "ssid": wifi.ssid,
        "mode": "ap" if point else "infrastructure",
        "hidden": wifi.hidden,
        "powersave": _NO_POWER_SAVING,
    }
    if wifi.band is not None:
        radio["band"] = {Band.TWO: "bg", Band.FIVE: "a"}[wifi.band]
    if wifi.channel is not None:
        radio["channel"] = wifi.channel
    settings: Settings = {"connection": {"type": "802-11-wireless"}, "802-11-wireless": radio}
    match wifi.security:
        case Security.OPEN:
            pass
        case Security.PEAP | Security.TLS:
            settings["802-11-wireless-security"] = {"key-mgmt": "wpa-eap"}
            settings["802-1x"] = _enterprise(wifi)
        case Security.WPA3:
            settings["802-11-wireless-security"] = {"key-mgmt": "sae"}
        case _:
            # To NetworkManager, this is WPA3 too, where the network has it.
            security: dict[str, Value] = {"key-mgmt": "wpa-psk"}
            if point:
                security |= {"proto": ["rsn"], "pairwise": ["ccmp"], "group": ["ccmp"]}
            settings["802-11-wireless-security"] = security
    return settings


def _enterprise(wifi: Wifi) -> dict[str, Value]:
    found: dict[str, Value] = {"identity": wifi.identity or ""}
    if wifi.ca_cert is not None:
        found["ca-cert"] = wifi.ca_cert
    if wifi.security is Security.PEAP:
        return found | {"eap": ["peap"], "phase2-auth": "mschapv2"}
    return found | {
        "eap": ["tls"],
        "client-cert": wifi.client_cert or "",
        "private-key": wifi.private_key or "",
    }


def _secrets(wifi: Wifi | None) -> dict[str, dict[str, str]]:
    if wifi is None or wifi.password is None:
        return {}
    password = wifi.password.reveal()
    match wifi.security:
        case Security.PEAP:
            return {"802-1x": {"password": password}}
        case Security.TLS:
            return {"802-1x": {"private-key-password": password}}
        case _:
            return {"802-11-wireless-security": {"psk": password}}


def _is_access_point(port: Port) -> bool:
    return port.wifi is not None and port.wifi.mode is WifiMode.ACCESS_POINT


def _ipv4(addressing: Addressing | Port | Vlan, table: int, metric: int, *, shares: bool) -> dict[str, Value]:
    fixed = [each for each in addressing.static if each.version == 4]
    asks = addressing.uses_dhcp if isinstance(addressing, Port | Vlan) else bool(addressing.dhcp)
    if shares:
        own = fixed or [ACCESS_POINT_ADDRESS]
        return {"method": "shared", "address-data": [str(each) for each in own]}
    if not fixed and not asks:
        return {"method": "disabled"}
    return {
        "method": "manual" if fixed else "auto",
        **_common(addressing, fixed, 4, table, metric),
    }


def _ipv6(addressing: Addressing, table: int, metric: int) -> dict[str, Value]:
    fixed = [each for each in addressing.static if each.version == 6]
    match addressing.ipv6:
        case Ipv6.OFF:
            return {"method": "disabled"}
        case Ipv6.LINK_LOCAL:
            return {"method": "link-local"}
    return {
        "method": "manual" if addressing.ipv6 is Ipv6.STATIC else "auto",
        **_common(addressing, fixed, 6, table, metric),
    }


def _common(
    addressing: Addressing, fixed: Sequence[Interface], version: int, table: int, metric: int
) -> dict[str, Value]:
    found: dict[str, Value] = {
        "address-data": [str(each) for each in fixed],
        # As NetworkManager writes them, so that they are the same when they are read back.
        "gateway": str(ip_address(addressing.gateway))
        if addressing.gateway is not None and _version(addressing.gateway) == version
        else "",
        "dns": [str(ip_address(each)) for each in addressing.dns if _version(each) == version],
        "dns-search": list(addressing.search),
        "route-data": [
            f"{ip_network(each.to)} via {ip_address(each.via)}"
            + (f" metric {each.metric}" if each.metric is not None else "")
            for each in addressing.routes
            if _version(each.via) == version
        ],
        "route-metric": metric,
    }
    if table and fixed:
        length = 32 if version == 4 else 128
        found["route-table"] = table
        found["routing-rules"] = [f"{table} from {each.ip}/{length} table {table}" for each in fixed]
    return found


def _version(address: str) -> int:
    return 6 if ":" in address else 4


def _tables(network: Network) -> dict[str, int]:
    """By the profile's role: who stands in a subnet that another has already answers from its own addresses by its own port."""
    seen: list[Interface] = []
    tables: dict[str, int] = {}
    for role, addressing in _addressed(network):
        static = addressing.static
        if any(
            own.version == other.version and own.network.overlaps(other.network)
            for own in static
            for other in seen
        ):
            tables[role] = _FIRST_TABLE + len(tables)
        seen += static
    return tables


def _addressed(network: Network) -> Iterator[tuple[str, Addressing]]:
    ports: Mapping[Role, Port] = network.interfaces
    for role, port in ports.items():
        if port.type != "usb" and port.enabled:
            yield (f"{role}.vlan{port.vlan}" if port.vlan is not None else str(role)), port
    for vlan in network.vlans:
        yield f"{vlan.parent}.vlan{vlan.id}", vlan
