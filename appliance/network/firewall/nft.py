"""The firewall in nft's language (nft(8)).

Whatever comes from outside is a number, an address, a checked name, or a comment without any character that could end it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from itertools import product

from .entry import Entry, Verdict
from .zones import AnyNetwork, Zone

TABLE = "coral_reef"

#: What nft takes as a comment, in bytes (libnftnl: NFTNL_UDATA_COMMENT_MAXLEN, less the closing zero).
COMMENT_BYTES = 127

#: Up to here, a rule for each pair of network and port; more become sets. 1,000 rules with two unnamed sets each took nft 1.2 s
#: to load, with named ones 0.34 s, and the 4,000 rules that say the same without any 0.16 s; but 32,000 took 9 s.
_FEW = 4

_LOG_LIMIT = "10/minute burst 20 packets"

_LINK_LOCAL = IPv6Network("fe80::/10")

_VERDICTS = {
    Verdict.ACCEPT: "counter accept",
    Verdict.DROP: "counter drop",
    Verdict.REJECT: "counter reject with icmpx admin-prohibited",
}


def removal() -> str:
    """For `nft -f -`: takes our table away, whether it is there or not."""
    return f"table inet {TABLE}\ndelete table inet {TABLE}\n"


def text(
    inbound: Sequence[Entry], outbound: Sequence[Entry], forward: Sequence[Entry], zones: Sequence[Zone]
) -> str:
    """For `nft -f -`: our table, replaced in one transaction; nobody else's is touched."""
    sets = _Sets()
    _attached(sets, zones)
    chains = [
        *_chain("input", inbound, "iifname", "saddr", sets),
        *_chain("output", outbound, "oifname", "daddr", sets),
        *_chain("forward", forward, "iifname", "saddr", sets),
    ]
    return "\n".join([f"{removal()}table inet {TABLE} {{", *sets.lines, *chains, "}", ""])


def differ_in_networks_alone(one: str, other: str) -> bool:
    """Whether two texts of ours differ, and in nothing but the directly attached networks: a lease, a router's advertisement, a
    tunnel that comes or goes."""
    return one != other and _without_attached(one) == _without_attached(other)


def _without_attached(rules: str) -> list[str]:
    return [line for line in rules.splitlines() if not line.startswith("    set attached")]


@dataclass
class _Sets:
    """Sets that several rules may share: one for each content."""

    lines: list[str] = field(default_factory=list)
    names: dict[tuple[str, tuple[str, ...]], str] = field(default_factory=dict)

    def add(self, name: str, kind: str, elements: Sequence[str]) -> None:
        """A set that has a name of its own."""
        content = f"elements = {{ {', '.join(elements)} }}; " if elements else ""
        self.lines.append(f"    set {name} {{ type {kind}; flags interval; {content}}}")

    def of(self, kind: str, elements: Sequence[str]) -> str:
        """One element as it is; several as a set."""
        if len(elements) == 1:
            return elements[0]
        key = kind, tuple(elements)
        if key not in self.names:
            self.names[key] = f"set{len(self.names) + 1}"
            self.add(self.names[key], kind, elements)
        return f"@{self.names[key]}"

    def some(self, kind: str, elements: list[str], few: bool) -> list[str]:
        """What a rule for each, or else a single one, has to name."""
        return elements if few else [self.of(kind, elements)]


def _attached(sets: _Sets, zones: Sequence[Zone]) -> None:
    """`attached4`: the directly attached networks; `attached_to4`: each with its interface. Link-local ones are everywhere."""
    for version in (4, 6):
        by_interface: dict[str, list[AnyNetwork]] = {}
        for zone in zones:
            by_interface.setdefault(zone.interface, []).extend(
                each
                for each in zone.networks
                if each.version == version and each.prefixlen and not _is_link_local(each)
            )
        every = [each for networks in by_interface.values() for each in networks]
        kind = f"ipv{version}_addr"
        sets.add(f"attached{version}", kind, _collapsed(every))
        to = [f'"{name}" . {each}' for name, found in by_interface.items() for each in _collapsed(found)]
        sets.add(f"attached_to{version}", f"ifname . {kind}", to)


def _chain(hook: str, entries: Sequence[Entry], interface: str, address: str, sets: _Sets) -> Iterator[str]:
    yield f"    chain {hook} {{"
    yield f"        type filter hook {hook} priority filter; policy drop;"
    for entry in entries:
        if entry.idle:
            continue
        comment = comment_of(entry)
        for match in _matches(entry, interface, address, sets):
            yield f"        {match}{_action(entry, hook)} comment {comment}"
    yield "    }"


def _matches(entry: Entry, interface: str, address: str, sets: _Sets) -> Iterator[str]:
    """Each of them is a rule of nft's; a space follows each condition."""
    where = [""]
    if entry.interfaces:
        names = [f'"{each}"' for each in entry.interfaces]
        where = [f"{interface} {sets.of('ifname', names)} "]
    networks = [
        _collapsed([each for each in entry.networks if each.version == version]) for version in (4, 6)
    ]
    ports = _merged(entry.ports)
    few = max(1, sum(map(len, networks))) * max(1, len(ports)) <= _FEW
    addresses = list(_addresses(networks, address, sets, few)) or [""]
    protocols = list(_protocols(entry.protocol, ports, sets, few)) or [""]
    for each, network, protocol, match in product(where, addresses, protocols, entry.match or [""]):
        if not _contradict(network, protocol):
            yield f"{each}{network}{protocol}{match}{' ' if match else ''}"


def _addresses(networks: Sequence[list[str]], address: str, sets: _Sets, few: bool) -> Iterator[str]:
    for version, word, found in ((4, "ip", networks[0]), (6, "ip6", networks[1])):
        if found and found[0].endswith("/0"):
            yield f"meta nfproto ipv{version} "
        elif found:
            kind = f"ipv{version}_addr"
            yield from (f"{word} {address} {each} " for each in sets.some(kind, found, few))


_ICMP = ("ip protocol icmp ", "meta nfproto ipv6 meta l4proto ipv6-icmp ")


def _protocols(protocol: str, ports: list[str], sets: _Sets, few: bool) -> Iterator[str]:
    if protocol == "icmp":
        yield from _ICMP
        return
    for each in (protocol,) if protocol else ("tcp", "udp") if ports else ():
        if not ports:
            yield f"meta l4proto {each} "
        else:
            yield from (f"{each} dport {some} " for some in sets.some("inet_service", ports, few))


def _contradict(network: str, protocol: str) -> bool:
    """IPv4's ICMP from an IPv6 network, or the other way round."""
    if protocol not in _ICMP or not network:
        return False
    is_ipv4 = network.startswith(("ip ", "meta nfproto ipv4"))
    return is_ipv4 != (protocol == _ICMP[0])


def _action(entry: Entry, hook: str) -> str:
    if entry.verdict is Verdict.LOG:
        return f'limit rate {_LOG_LIMIT} counter log prefix "coral-reef {hook} dropped: "'
    return _VERDICTS[entry.verdict]


def comment_of(entry: Entry) -> str:
    """Its key, by which its counters are found again, and the owner's label, for who looks with nft; between quotes."""
    label = "".join(each if each.isprintable() and each not in '"\\' else " " for each in entry.label)
    whole = f"{entry.key}: {label}" if label else entry.key
    return f'"{whole.encode()[:COMMENT_BYTES].decode(errors="ignore")}"'


def key_of(comment: str) -> str:
    """The key of the entry that a rule with this comment came from."""
    return comment.partition(": ")[0]


def _is_link_local(network: AnyNetwork) -> bool:
    return isinstance(network, IPv6Network) and network.subnet_of(_LINK_LOCAL)


def _collapsed(networks: Sequence[AnyNetwork]) -> list[str]:
    """Of one version; without overlaps, which a set of intervals refuses."""
    if len(networks) <= 1:
        return [str(each) for each in networks]
    four = [each for each in networks if isinstance(each, IPv4Network)]
    six = [each for each in networks if isinstance(each, IPv6Network)]
    return [str(each) for each in (*collapse_addresses(four), *collapse_addresses(six))]


def _merged(ports: Sequence[str]) -> list[str]:
    """The same ports without overlaps."""
    ranges = sorted(
        (int(first), int(last or first)) for first, _, last in (each.partition("-") for each in ports)
    )
    merged: list[tuple[int, int]] = []
    for first, last in ranges:
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return [str(first) if first == last else f"{first}-{last}" for first, last in merged]
