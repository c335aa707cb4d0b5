"""The firewall as data: from the settings and the zones to every rule, in order. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from appliance.config.network import Direction, Network, Rule, RuleAction

from . import inbound, nft, outbound
from .entry import Entry, Verdict
from .zones import Zone, interfaces


@dataclass(frozen=True)
class Firewall:
    """The rules of each direction; the first that fits a packet decides. All empty: there is to be no firewall."""

    inbound: tuple[Entry, ...] = ()
    outbound: tuple[Entry, ...] = ()
    forward: tuple[Entry, ...] = ()
    zones: tuple[Zone, ...] = ()

    def text(self) -> str:
        """For `table.Table.load`, or `nft -f -`: replaces our table in one transaction. Empty when there is to be none."""
        if not self.inbound:
            return ""
        return nft.text(self.inbound, self.outbound, self.forward, self.zones)


def firewall_of(network: Network, zones: Sequence[Zone]) -> Firewall:
    """What network.yaml means for these zones. Several of one interface add up; one that is in no zone offers nothing.
    Rules, the owner's too, decide about new connections: what was let through goes on until it ends.

    ValueError for a value that still holds an unset `${NAME}`.
    """
    settings = network.firewall
    if not settings.enabled:
        return Firewall()
    own = [_own(number, rule, zones) for number, rule in enumerate(settings.rules, 1)]
    directions = [rule.direction for rule in settings.rules]
    return Firewall(
        inbound=(
            *inbound.foundations(),
            *inbound.access_point(network, zones),
            *_of(Direction.IN, own, directions),
            *inbound.spoofed(),
            *([inbound.local_only()] if settings.allow_local_only else []),
            *inbound.services(network, zones),
            *inbound.rest(),
        ),
        outbound=(
            *outbound.foundations(),
            *_of(Direction.OUT, own, directions),
            *outbound.destinations(network, zones),
            *outbound.rest(),
        ),
        forward=(Entry("forward.rest", "the tower is no router", Verdict.DROP),),
        zones=tuple(zones),
    )


def _of(wanted: Direction, own: Sequence[Entry], directions: Sequence[Direction]) -> Iterator[Entry]:
    return (entry for entry, direction in zip(own, directions, strict=True) if direction is wanted)


def _own(number: int, rule: Rule, zones: Sequence[Zone]) -> Entry:
    """A rule of the owner's. `number` counts those of network.yaml from 1."""
    ports = interfaces(zones, *map(str, rule.roles))
    idle = f"no port is {' or '.join(map(str, rule.roles))} now" if rule.roles and not ports else ""
    return Entry(
        key=f"owner.{number}",
        words=rule.name,
        verdict=Verdict.ACCEPT if rule.action is RuleAction.ACCEPT else Verdict.DROP,
        interfaces=ports,
        protocol=rule.protocol or "",
        ports=rule.ports,
        networks=tuple(map(ip_network, rule.networks)),
        label=rule.name,
        idle=idle,
    )
