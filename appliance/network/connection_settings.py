"""A profile's settings: from `profiles.py`'s plain values to what goes over D-Bus (nm-settings-dbus(5)), and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from appliance.system_bus import Typed, plain

from .errors import BadSettings
from .profiles import OWNED, Settings, Value, owned

Encoded = dict[str, dict[str, Typed]]

#: Far beyond what anybody configures; more is an error, not a profile.
SECTIONS_LIMIT = 64
KEYS_LIMIT = 256
ITEMS_LIMIT = 1024
TEXT_LIMIT = 16_384

SSID_LIMIT_BYTES = 32

#: D-Bus types of the integers.
_INTEGERS = {
    "autoconnect-priority": "i",
    "autoconnect-retries": "i",
    "mdns": "i",
    "mtu": "u",
    "id": "u",
    "channel": "u",
    "powersave": "u",
    "pmf": "i",
    "route-table": "u",
    "route-metric": "x",
}
_RANGES = {"i": (-(2**31), 2**31 - 1), "u": (0, 2**32 - 1), "x": (-(2**63), 2**63 - 1), "y": (0, 255)}

_FAMILIES = {"ipv4": 4, "ipv6": 6}
_AF = {4: 2, 6: 10}

_BOND_OPTIONS = ("bond", "options")

#: How NetworkManager names a file in a key that could hold a certificate itself.
_FILE_SCHEME = b"file://"
_CERTIFICATES = ("ca-cert", "client-cert", "private-key")

#: Older names of the same; with both, NetworkManager would have to choose.
LEGACY = frozenset({"addresses", "routes", "dns"})


def encode(settings: Mapping[str, Mapping[str, Value]]) -> Encoded:
    """For AddConnection2. Keys that are not ours are refused: BadSettings, as for a value that is none."""
    encoded: Encoded = {}
    for section, values in settings.items():
        entries = encoded.setdefault(section, {})
        for key, value in values.items():
            if key not in OWNED.get(section, {}):
                raise BadSettings(f"{section}.{key}: not a key of ours")
            try:
                entries[_name(section, key)] = _encoder(section, key)(value)
            except (ValueError, TypeError) as error:
                raise BadSettings(f"{section}.{key}: {error}") from None
    return encoded


def decode(raw: Mapping[str, Mapping[str, Any]]) -> Settings:
    """What `owned` leaves of what GetSettings says. BadSettings when it is not what it should be, or too much."""
    settings: dict[str, dict[str, Value]] = {}
    for section, keys in OWNED.items():
        if (there := section_of(raw, section)) is None:
            continue
        settings[section] = {}
        for key in keys:
            name = _name(section, key)
            if name not in there:
                continue
            try:
                settings[section][key] = _decoder(section, key)(plain(there[name]))
            except (ValueError, TypeError, KeyError, UnicodeError) as error:
                raise BadSettings(f"{section}.{key}: {error}") from None
    return owned(settings)


def section_of(raw: Any, name: str) -> Mapping[str, Any] | None:
    """One section; None without. BadSettings when it is none, or has too many keys."""
    if not isinstance(raw, Mapping) or len(raw) > SECTIONS_LIMIT:
        raise BadSettings(f"expected at most {SECTIONS_LIMIT} sections")
    section = raw.get(name)
    if section is None:
        return None
    if not isinstance(section, Mapping) or len(section) > KEYS_LIMIT:
        raise BadSettings(f"{name}: expected at most {KEYS_LIMIT} keys")
    return section


def text_of(value: Any) -> str:
    """ValueError when it is no text, or a long one."""
    if not isinstance(value, str):
        raise ValueError(f"expected a text, found {type(value).__name__}")
    if len(value) > TEXT_LIMIT:
        raise ValueError(f"expected at most {TEXT_LIMIT} characters")
    return value


# --- key by key ---------------------------------------------------------------------------------------------------


def _name(section: str, key: str) -> str:
    """What NetworkManager calls it, where that is not what we do."""
    return "dns-data" if section in _FAMILIES and key == "dns" else key


def _encoder(section: str, key: str) -> Callable[[Any], Typed]:
    family = _FAMILIES.get(section, 0)
    special: dict[str, Callable[[Any], Typed]] = {}
    if family:
        special = {
            "address-data": lambda value: _list_of_dicts(value, lambda each: _address(each, family)),
            "gateway": lambda value: Typed("s", _host(value, family) if value else ""),
            "dns": lambda value: Typed("as", [_host(each, family) for each in _texts(value)]),
            "route-data": lambda value: _list_of_dicts(value, lambda each: _route(each, family)),
            "routing-rules": lambda value: _list_of_dicts(value, lambda each: _rule(each, family)),
        }
    elif (section, key) == _BOND_OPTIONS:
        special = {"options": _options}
    elif key == "ssid":
        special = {"ssid": _ssid}
    elif section == "802-1x" and key in _CERTIFICATES:
        special = {key: _certificate}
    return special.get(key) or (lambda value: _scalar(section, key, value))


def _decoder(section: str, key: str) -> Callable[[Any], Value]:
    family = _FAMILIES.get(section, 0)
    special: dict[str, Callable[[Any], Value]] = {}
    if family:
        special = {
            "address-data": lambda value: [_address_text(each) for each in _items(value)],
            "route-data": lambda value: [_route_text(each) for each in _items(value)],
            "routing-rules": lambda value: [_rule_text(each, family) for each in _items(value)],
        }
    elif (section, key) == _BOND_OPTIONS:
        special = {"options": _options_text}
    elif key == "ssid":
        special = {"ssid": _ssid_text}
    elif section == "802-1x" and key in _CERTIFICATES:
        special = {key: _certificate_text}
    return special.get(key) or (lambda value: _scalar_value(section, key, value))


def _scalar(section: str, key: str, value: Any) -> Typed:
    checked = _scalar_value(section, key, value)
    match OWNED[section][key]:
        case bool():
            return Typed("b", checked)
        case int():
            return Typed(_INTEGERS[key], checked)
        case str():
            return Typed("s", _sendable(str(checked)))
        case _:
            return Typed("as", _texts(checked))


def _scalar_value(section: str, key: str, value: Any) -> Value:
    """`value`, of the type that the key has."""
    match OWNED[section][key]:
        case bool():
            if not isinstance(value, bool):
                raise ValueError(f"expected true or false, found {type(value).__name__}")
            return value
        case int():
            return _integer(value, _INTEGERS[key])
        case str():
            return text_of(value)
        case _:
            return [text_of(each) for each in _items(value)]


def _integer(value: Any, kind: str) -> int:
    low, high = _RANGES[kind]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected a number, found {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"expected {low} to {high}, found {value}")
    return value


def _items(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list, found {type(value).__name__}")
    if len(value) > ITEMS_LIMIT:
        raise ValueError(f"expected at most {ITEMS_LIMIT} entries")
    return value


def _texts(value: Any) -> list[str]:
    return [_sendable(text_of(each)) for each in _items(value)]


def _sendable(text: str) -> str:
    """D-Bus carries neither NUL nor what is no Unicode."""
    if "\0" in text:
        raise ValueError("a NUL character")
    text.encode("utf-8")
    return text


def _entries(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or len(value) > KEYS_LIMIT:
        raise ValueError("expected a small dictionary")
    for key in value:
        text_of(key)
    return value


def _list_of_dicts(value: Any, each_of: Callable[[str], dict[str, Typed]]) -> Typed:
    return Typed("aa{sv}", [each_of(text) for text in _texts(value)])


def _host(text: str, family: int) -> str:
    address = ip_address(text_of(text))
    if address.version != family or getattr(address, "scope_id", None):
        raise ValueError(f"expected an IPv{family} address, found {text!r}")
    return str(address)


def _address(text: str, family: int) -> dict[str, Typed]:
    found = ip_interface(text)
    return {
        "address": Typed("s", _host(str(found.ip), family)),
        "prefix": Typed("u", found.network.prefixlen),
    }


def _address_text(value: Any) -> str:
    entries = _entries(value)
    shown = f"{text_of(entries['address'])}/{_integer(entries['prefix'], 'u')}"
    return shown + _others(entries, "address", "prefix")


def _route(text: str, family: int) -> dict[str, Typed]:
    words = text.split()
    network = ip_network(words[0] if words else "")
    route = {
        "dest": Typed("s", _host(str(network.network_address), family)),
        "prefix": Typed("u", network.prefixlen),
    }
    rest = words[1:]
    if rest[:1] == ["via"] and len(rest) >= 2:
        route["next-hop"] = Typed("s", _host(rest[1], family))
        rest = rest[2:]
    if rest[:1] == ["metric"] and len(rest) >= 2:
        route["metric"] = Typed("u", _integer(int(rest[1]), "u"))
        rest = rest[2:]
    if rest:
        raise ValueError(f"expected NETWORK [via ROUTER] [metric N], found {text!r}")
    return route


def _route_text(value: Any) -> str:
    entries = _entries(value)
    shown = f"{text_of(entries['dest'])}/{_integer(entries['prefix'], 'u')}"
    if "next-hop" in entries:
        shown += f" via {text_of(entries['next-hop'])}"
    if "metric" in entries:
        shown += f" metric {_integer(entries['metric'], 'u')}"
    return shown + _others(entries, "dest", "prefix", "next-hop", "metric")


def _rule(text: str, family: int) -> dict[str, Typed]:
    match text.split():
        case [priority, "from", source, "table", table]:
            network = ip_network(source)
        case _:
            raise ValueError(f"expected PRIORITY from ADDRESS/PREFIX table N, found {text!r}")
    return {
        "family": Typed("i", _AF[family]),
        "priority": Typed("u", _integer(int(priority), "u")),
        "from": Typed("s", _host(str(network.network_address), family)),
        "from-len": Typed("y", network.prefixlen),
        "table": Typed("u", _integer(int(table), "u")),
    }


def _rule_text(value: Any, family: int) -> str:
    entries = _entries(value)
    ours = ("family", "priority", "from", "from-len", "table")
    if entries.get("family") != _AF[family] or any(key not in entries for key in ours):
        return "rule" + _others(entries)
    source = f"{text_of(entries['from'])}/{_integer(entries['from-len'], 'y')}"
    shown = f"{_integer(entries['priority'], 'u')} from {source} table {_integer(entries['table'], 'u')}"
    return shown + _others(entries, *ours)


def _others(entries: Mapping[str, Any], *known: str) -> str:
    """What else is said there: it makes the text another one than any of ours, as it should be."""
    others = sorted(set(entries).difference(known))
    return "".join(f" {key}={text_of(str(entries[key]))}" for key in others)


def _options(value: Any) -> Typed:
    options = {}
    for each in _texts(value):
        name, equals, setting = each.partition("=")
        if not (name and equals) or name in options:
            raise ValueError(f"expected NAME=VALUE, each name once, found {each!r}")
        options[name] = setting
    return Typed("a{ss}", options)


def _options_text(value: Any) -> list[str]:
    options = sorted(_entries(value).items(), key=lambda each: (each[0] != "mode", each[0]))
    return [f"{key}={text_of(each)}" for key, each in options]


def _ssid(value: Any) -> Typed:
    """What is no Unicode in a network's name travels as `surrogateescape` has it."""
    name = text_of(value).encode("utf-8", "surrogateescape")
    if not 1 <= len(name) <= SSID_LIMIT_BYTES:
        raise ValueError(f"expected 1 to {SSID_LIMIT_BYTES} bytes, found {len(name)}")
    return Typed("ay", name)


def _ssid_text(value: Any) -> str:
    if not isinstance(value, bytes) or len(value) > SSID_LIMIT_BYTES:
        raise ValueError(f"expected at most {SSID_LIMIT_BYTES} bytes")
    return value.decode("utf-8", "surrogateescape")


def _certificate(value: Any) -> Typed:
    path = _sendable(text_of(value))
    if not path.startswith("/"):
        raise ValueError(f"expected an absolute path, found {path!r}")
    return Typed("ay", _FILE_SCHEME + path.encode("utf-8") + b"\0")


def _certificate_text(value: Any) -> str:
    """The path; of a certificate that stands there itself, only that it does."""
    if not isinstance(value, bytes) or len(value) > TEXT_LIMIT:
        raise ValueError(f"expected at most {TEXT_LIMIT} bytes")
    if not value.startswith(_FILE_SCHEME):
        return f"({len(value)} bytes)"
    return value.removeprefix(_FILE_SCHEME).removesuffix(b"\0").decode("utf-8")
