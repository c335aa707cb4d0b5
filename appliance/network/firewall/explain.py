"""The firewall in words, with what each rule has matched: `coral-reef net firewall`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .entry import Entry
from .rules import Firewall
from .table import Counter


@dataclass(frozen=True)
class Explained:
    """A rule for people. `which`: protocol, ports, networks, interfaces. `idle`: why it cannot match anything now."""

    direction: str
    verdict: str
    which: str
    words: str
    idle: str
    counter: Counter


def explained(firewall: Firewall, counters: Mapping[str, Counter]) -> Iterator[Explained]:
    """Every rule, in the order in which they are asked."""
    for direction, entries in (
        ("in", firewall.inbound),
        ("out", firewall.outbound),
        ("through", firewall.forward),
    ):
        for entry in entries:
            yield Explained(
                direction,
                entry.verdict,
                _which(entry, direction),
                entry.words,
                entry.idle,
                counters.get(entry.key, Counter()),
            )


def _which(entry: Entry, direction: str) -> str:
    from_or_to = "to" if direction == "out" else "from"
    parts = [
        " ".join((entry.protocol or ("tcp and udp" if entry.ports else ""), ", ".join(entry.ports))).strip(),
        f"{from_or_to} {_some(list(map(str, entry.networks)))}" if entry.networks else "",
        f"on {', '.join(entry.interfaces)}" if entry.interfaces else "",
    ]
    return " ".join(filter(None, parts))


#: Of a long list of networks.
_SHOWN = 4


def _some(items: list[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
