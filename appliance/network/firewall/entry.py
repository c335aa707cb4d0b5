"""One rule of the firewall: what it matches, what becomes of that, and why, in words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .zones import AnyNetwork


class Verdict(StrEnum):
    """What becomes of a packet. `reject` tells the program that sent it, so that it need not wait for nothing."""

    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"
    LOG = "log"


@dataclass(frozen=True)
class Entry:
    """A packet that fits everything that is given. The first that fits decides; `log` goes on to the next.

    `key` finds its counters again and is unique. `interfaces`: where it comes in, or goes out. `networks`: where it comes
    from, or goes to. `ports` (`N` or `N-M`): to which. `match`: further conditions in nft's words, one of which must hold;
    never anything from outside. `label` is the owner's own text. `idle`: why it cannot match anything now; nft does not hear
    of it then.
    """

    key: str
    words: str
    verdict: Verdict = Verdict.ACCEPT
    interfaces: tuple[str, ...] = ()
    protocol: str = ""
    ports: tuple[str, ...] = ()
    networks: tuple[AnyNetwork, ...] = ()
    match: tuple[str, ...] = ()
    label: str = ""
    idle: str = ""


def on_ports(
    key: str,
    words: str,
    interfaces: tuple[str, ...],
    protocol: str,
    *ports: str,
    match: tuple[str, ...] = (),
) -> Entry:
    """A service on some interfaces; it is idle while there are none."""
    idle = "" if interfaces else "no port has this role"
    return Entry(key, words, interfaces=interfaces, protocol=protocol, ports=ports, match=match, idle=idle)
