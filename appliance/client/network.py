"""The network in words and drawings, for the command line and the console."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator

from rich.text import Text

from appliance.wire.messages import FirewallState, NetworkPort, NetworkRevisions, NetworkState, PortState

from .amounts import size
from .screen import Part, table

#: The rear panel from left to right, as it is labelled.
_PANEL = (
    ("primary", "10GbE", "SFP+", "data"),
    ("secondary", "1GbE", "RJ-45", "data"),
    ("management", "1GbE", "RJ-45", "mgmt"),
    ("usb", "USB", "3.0", "serial"),
    ("wifi", "Wi-Fi", "6E", "radio"),
    ("cluster", "10GbE", "SFP+", "cluster"),
)

#: In every tower; the others are drawn when there is something to say.
_ALWAYS = ("primary", "secondary", "management", "usb")

_LOOKS: dict[PortState, tuple[str, str]] = {
    PortState.UP: ("●", "green"),
    PortState.CONNECTING: ("◐", "yellow"),
    PortState.NO_LINK: ("○", "dim"),
    PortState.DOWN: ("✗", "red"),
    PortState.MISSING: ("·", "dim"),
    PortState.FOREIGN: ("□", "dim"),
}

_INNER = 11

#: A whole row with an IPv6 address needs so many columns.
_WIDE = 100


def network_parts(state: NetworkState, *, columns: int = 0) -> Iterator[Part]:
    """The rear panel, then a row an interface, then what should be known. On a screen of few columns (0: as many as one likes),
    an address is worth more than figures."""
    yield from panel(state.ports)
    titles = ("port", "interface", "state", "address", ">speed", ">MTU", ">in", ">out")
    shown = len(titles) if not columns or columns >= _WIDE else titles.index("address") + 1
    yield table(titles[:shown], [row[:shown] for port in state.ports for row in _rows(port)])
    for port in state.ports:
        if port.detail:
            yield f"{port.role or port.interface}: {port.detail}"
    yield from notes(state)


def panel(ports: Iterable[NetworkPort]) -> Iterator[Text]:
    """What one sees from behind, with the state of each port."""
    known = {port.role: port for port in ports}
    shown = [each for each in _PANEL if each[0] in _ALWAYS or each[0] in known]
    edge = "  ".join("╭" + "─" * _INNER + "╮" for _ in shown)
    yield Text(edge, "dim")
    for line in (1, 2):
        yield _line(*((each[line], "bold" if line == 1 else "dim") for each in shown))
    yield _line(*((each[0], "") for each in shown))
    states = []
    for role, *_ in shown:
        found = known.get(role)
        look = _LOOKS[found.state if found else PortState.MISSING]
        states.append((f"{look[0]} {found.state if found else 'not set'}", look[1]))
    yield _line(*states)
    speeds = [_speed(known[role].speed_mbps) if role in known else "" for role, *_ in shown]
    yield _line(*((speed, "cyan") for speed in speeds))
    yield Text("  ".join("╰" + "─" * _INNER + "╯" for _ in shown), "dim")


def _line(*cells: tuple[str, str]) -> Text:
    line = Text()
    for number, (text, style) in enumerate(cells):
        line.append(("  " if number else "") + "│", "dim")
        line.append(text[:_INNER].center(_INNER), style)
        line.append("│", "dim")
    return line


def _rows(port: NetworkPort) -> Iterator[tuple[str, ...]]:
    """A row an address; a port without any has one, too."""
    sign, _ = _LOOKS[port.state]
    first = (port.role or "-", port.interface or "-", f"{sign} {port.state}")
    traffic = (size(port.received_bytes), size(port.sent_bytes)) if port.interface else ("", "")
    figures = (_speed(port.speed_mbps), str(port.mtu or ""), *traffic)
    for number, address in enumerate(port.addresses or [""]):
        yield (*first, address, *figures) if number == 0 else ("", "", "", address, "", "", "", "")


def notes(state: NetworkState) -> Iterator[str]:
    """What waits, what differs, what drifted."""
    if not state.managed:
        yield f"The network is not managed here: {state.why}"
        return
    if state.confirm_within_s:
        yield (
            f"What was applied goes back in {state.confirm_within_s:.0f} s. To keep it: 'coral-reef net confirm'."
        )
    if state.differs:
        yield "network.yaml says something else than what is in effect: 'coral-reef net diff' shows what."
    for line in state.drift:
        yield f"Changed behind our back: {line}"
    if not state.firewall:
        yield "There is no firewall (firewall.enabled in network.yaml)."


def firewall_lines(state: FirewallState) -> list[str]:
    """Each rule, or why there is none."""
    if state.enabled:
        return state.lines
    return ["There is no firewall: nothing was applied yet, or network.yaml says 'firewall.enabled: false'."]


def revisions_part(found: NetworkRevisions) -> Part:
    """The history: what `net rollback` takes, when, who, why."""
    return table(
        (">back", ">revision", "when", "by", "why"),
        [
            (str(steps), str(each.number), _when(each.at), each.by, each.why)
            for steps, each in enumerate(found.revisions)
        ],
    )


def _when(at: float) -> str:
    return datetime.datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _speed(mbps: int) -> str:
    if not mbps:
        return ""
    return f"{mbps / 1000:g} Gbit/s" if mbps >= 1000 else f"{mbps} Mbit/s"
