"""Connection profiles in NetworkManager's words (nm-settings-dbus(5)), with plain values: what is wanted, and what is there.

`{"ipv4": {"method": "manual", "address-data": ["10.0.10.10/24"], ...}, ...}`: sections and keys are NetworkManager's; a value is
a bool, an int, a text or a list of texts, as OWNED says. How it looks on D-Bus is `networkmanager.py`'s affair.

Only the keys of OWNED are ours. In profiles that we made, whatever else stands there is kept as it is; profiles that we did not
make are never touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Value = bool | int | str | list[str]
Settings = dict[str, dict[str, Value]]

#: Of IPv4 and of IPv6.
_ADDRESSES: dict[str, Value] = {
    "method": "",
    "address-data": [],
    "gateway": "",
    "dns": [],
    "dns-search": [],
    "route-data": [],
    "routing-rules": [],
    "route-table": 0,
    "route-metric": -1,
    "may-fail": True,
}

#: Ours, with the value that NetworkManager takes when there is none. Addresses are `ADDRESS/PREFIX`; routes are
#: `NETWORK [via ROUTER] [metric N]`; routing rules are `PRIORITY from ADDRESS/PREFIX table N`; bond options are `NAME=VALUE`, the
#: mode first, the others by name.
OWNED: dict[str, dict[str, Value]] = {
    "connection": {
        "id": "",
        "type": "",
        "interface-name": "",
        "master": "",
        "slave-type": "",
        "autoconnect": True,
        "autoconnect-priority": 0,
        "autoconnect-retries": -1,
        "mdns": -1,
    },
    "802-3-ethernet": {"mtu": 0},
    "vlan": {"id": 0, "parent": ""},
    "bond": {"options": []},
    "802-11-wireless": {
        "ssid": "",
        "mode": "infrastructure",
        "hidden": False,
        "band": "",
        "channel": 0,
        "powersave": 0,
        "mtu": 0,
    },
    "802-11-wireless-security": {"key-mgmt": "", "proto": [], "pairwise": [], "group": [], "pmf": 0},
    "802-1x": {
        "eap": [],
        "identity": "",
        "ca-cert": "",
        "client-cert": "",
        "private-key": "",
        "phase2-auth": "",
    },
    "ipv4": _ADDRESSES,
    "ipv6": _ADDRESSES,
}

#: Secrets, which NetworkManager tells only who asks for them in particular.
SECRETS: dict[str, tuple[str, ...]] = {
    "802-11-wireless-security": ("psk",),
    "802-1x": ("password", "private-key-password"),
}


def owned(settings: Mapping[str, Mapping[str, Any]]) -> Settings:
    """What of `settings` is ours, without what is as it would be anyway. Of a section that means something by being there, an
    empty one stays."""
    found: Settings = {}
    for section, keys in OWNED.items():
        if (there := settings.get(section)) is None:
            continue
        kept = {key: there[key] for key, default in keys.items() if key in there and there[key] != default}
        if kept or section in MEANINGFUL:
            found[section] = kept
    return found


#: Sections that mean something without any key.
MEANINGFUL = frozenset({"802-11-wireless-security", "802-1x"})


@dataclass(frozen=True)
class Profile:
    """What we want one interface to have. `role` names it in everything that people read: `primary`, `primary.vlan20`;
    `interface` is the kernel's name of the device that it is for; `needs` are the roles of profiles that must be active first."""

    role: str
    interface: str
    settings: Settings
    needs: tuple[str, ...] = ()
    #: By section and key, as in SECRETS. Without the one that it needs, the profile that it replaces gives its own.
    secrets: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)

    def brings_other_secrets_than(self, found: Found) -> bool:
        """Whether one that it brings is not the one that is there."""
        return any(
            found.secrets.get(section, {}).get(key) != value
            for section, values in self.secrets.items()
            for key, value in values.items()
        )

    @property
    def kind(self) -> str:
        """NetworkManager's `connection.type`."""
        return str(self.settings["connection"]["type"])


@dataclass(frozen=True)
class Found:
    """A profile that NetworkManager has. `role` is empty when it is not ours; `settings` are what `owned` leaves of it.

    `saved`: on the disk as it is, not in memory alone. `device`: where it is active or being activated; `activated`: completely.
    """

    uuid: str
    role: str
    name: str
    settings: Settings
    saved: bool = True
    device: str = ""
    activated: bool = False
    #: Of ours: as in SECRETS.
    secrets: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Device:
    """A network device of the kernel's, as NetworkManager sees it. `managed` is whether NetworkManager may use it at all."""

    name: str
    kind: str
    mac: str = ""
    driver: str = ""
    path: str = ""
    speed_mbps: int = 0
    carrier: bool = False
    managed: bool = True
    mtu: int = 0
    mtu_limit: int = 0
    state: int = 0
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    name_servers: tuple[str, ...] = ()
    profile: str = ""


@dataclass(frozen=True)
class Current:
    """All that a plan begins with. `firewall` is the text of the rules that we loaded last, if they still stand; empty: none."""

    profiles: tuple[Found, ...] = ()
    devices: tuple[Device, ...] = ()
    firewall: str = ""

    def device(self, name: str) -> Device | None:
        return next((each for each in self.devices if each.name == name), None)


@dataclass(frozen=True)
class Desired:
    """What network.yaml means on this machine. `firewall` is for `nft -f -`; empty: no firewall."""

    profiles: tuple[Profile, ...] = ()
    firewall: str = ""
