"""What this machine says of its network: `ip -json`, /sys/class/net, /proc/net/tcp, resolv.conf, timedatectl. Readers are bounded
and take what they do not understand for absent: the doctor is called when something is odd."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from pathlib import Path
from typing import Any

PROGRAM_TIMEOUT_S = 5.0
OUTPUT_LIMIT_BYTES = 1024 * 1024
TCP_LIMIT_BYTES = 4 * 1024 * 1024
RESOLV_CONF_LIMIT_BYTES = 64 * 1024
SERVERS_LIMIT = 16

#: Names of systemd-resolved's stub, and where the servers behind it stand.
STUBS = frozenset({"127.0.0.53", "127.0.0.54"})
BEHIND_THE_STUB = Path("/run/systemd/resolve/resolv.conf")

_ESTABLISHED, _LISTEN = 1, 10


class NoProgram(Exception):
    """A program is not there, fails, or takes too long; says which."""


@dataclass(frozen=True)
class Interface:
    """`up`: somebody has switched it on; `carrier`: there is something at the other end (None: it is off). `duplicates` are those
    of its IPv6 addresses that somebody else has."""

    name: str
    up: bool
    carrier: bool | None
    mtu: int
    ethernet: bool
    hardware: bool = False
    speed_mbps: int | None = None
    errors: int = 0
    packets: int = 0
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    duplicates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Router:
    """A default route."""

    address: str
    interface: str


@dataclass(frozen=True)
class Sockets:
    """TCP sockets: where is listened, and who (remote address) is connected to which of our ports."""

    listening: frozenset[tuple[str, int]] = frozenset()
    connected: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Clock:
    """What systemd says. `service`: whether something keeps the clock; `synchronised`: whether it has; None: nobody knows."""

    service: bool | None = None
    synchronised: bool | None = None
    servers: tuple[str, ...] = field(default=())


async def run(*words: str) -> str:
    """What a program prints. Raises NoProgram."""
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise NoProgram(f"{words[0]} cannot be started: {error.strerror}") from None
    try:
        async with asyncio.timeout(PROGRAM_TIMEOUT_S):
            said, complained = await process.communicate()
    except TimeoutError:
        raise NoProgram(f"{words[0]} takes longer than {PROGRAM_TIMEOUT_S:.0f} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        why = (
            complained[:300].decode("utf-8", "replace").strip()
            or f"nothing, and ends with {process.returncode}"
        )
        raise NoProgram(f"{words[0]} says: {why}")
    return said[:OUTPUT_LIMIT_BYTES].decode("utf-8", "replace")


async def interfaces(folder: Path) -> list[Interface]:
    """All but the loopback, by name. Raises NoProgram without `ip`."""
    return [
        with_facts_of(each, folder) for each in parse_addresses(await run("ip", "-json", "address", "show"))
    ]


async def routers() -> list[Router]:
    """The default routes of both versions of IP, the preferred one first."""
    found: list[Router] = []
    for version in ("-4", "-6"):
        with suppress(NoProgram):  # a kernel without IPv6
            found += parse_routers(await run("ip", "-json", version, "route", "show", "default"))
    return found


async def neighbour(address: str, interface: str) -> str:
    """What the kernel knows of a machine on the link: REACHABLE, STALE, FAILED..., empty when nothing."""
    try:
        said = await run("ip", "-json", "neighbour", "show", "to", address, "dev", interface)
    except NoProgram:
        return ""
    return parse_neighbour(said)


def objects(text: str) -> list[dict[str, Any]]:
    """The objects of what `ip -json` prints."""
    try:
        found = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return []
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def parse_addresses(text: str) -> list[Interface]:
    """Of `ip -json address show`."""
    found = []
    for each in objects(text):
        name, flags, mtu = each.get("ifname"), each.get("flags"), each.get("mtu")
        if not (isinstance(name, str) and 0 < len(name) < 16 and isinstance(mtu, int)) or "/" in name:
            continue
        flags = flags if isinstance(flags, list) else []
        if name in (".", "..") or "LOOPBACK" in flags:
            continue
        infos = each.get("addr_info")
        addresses, duplicates = [], []
        for info in infos if isinstance(infos, list) else []:
            with suppress(ValueError, KeyError, TypeError):
                address = ip_interface(f"{info['local']}/{int(info['prefixlen'])}")
                if info.get("dadfailed"):
                    duplicates.append(str(address.ip))
                else:
                    addresses.append(address)
        found.append(
            Interface(
                name=name,
                up="UP" in flags,
                carrier="LOWER_UP" in flags if "UP" in flags else None,
                mtu=mtu,
                ethernet=each.get("link_type") == "ether",
                addresses=tuple(addresses),
                duplicates=tuple(duplicates),
            )
        )
    return sorted(found, key=lambda each: each.name)


def with_facts_of(interface: Interface, folder: Path) -> Interface:
    """With what stands below /sys/class/net."""
    here = folder / interface.name
    speed = _number(here / "speed")
    statistics = here / "statistics"
    return Interface(
        **{
            **interface.__dict__,
            "hardware": (here / "device").exists(),
            "speed_mbps": speed if speed and 0 < speed < 2**31 - 1 else None,
            "errors": (_number(statistics / "rx_errors") or 0) + (_number(statistics / "tx_errors") or 0),
            "packets": (_number(statistics / "rx_packets") or 0) + (_number(statistics / "tx_packets") or 0),
        }
    )


def _number(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            return int(file.read(32))
    except (OSError, ValueError):
        return None


def parse_routers(text: str) -> list[Router]:
    """Of `ip -json route show default`."""
    found = []
    for each in sorted(objects(text), key=_metric):
        address, interface = each.get("gateway"), each.get("dev")
        if isinstance(address, str) and isinstance(interface, str):
            with suppress(ValueError):
                scope = f"%{interface}" if ip_address(address).is_link_local else ""
                found.append(Router(address + scope, interface))
    return found


def _metric(route: dict[str, Any]) -> int:
    metric = route.get("metric")
    return metric if isinstance(metric, int) else 0


def parse_neighbour(text: str) -> str:
    """Of `ip -json neighbour show`: the state of the one that it shows."""
    for each in objects(text):
        states = each.get("state")
        if isinstance(states, list) and states and isinstance(states[0], str):
            return states[0]
    return ""


def sockets(*tables: Path) -> Sockets:
    """From /proc/net/tcp and /proc/net/tcp6; a file that is missing is empty."""
    lines: list[str] = []
    for table in tables:
        with suppress(OSError), table.open("rb") as file:
            lines += file.read(TCP_LIMIT_BYTES).decode("ascii", "replace").splitlines()[1:]
    return parse_sockets(lines)


def parse_sockets(lines: Iterable[str]) -> Sockets:
    """Of lines as proc(5) describes them for /proc/net/tcp."""
    listening: set[tuple[str, int]] = set()
    connected: list[tuple[int, str]] = []
    for line in lines:
        words = line.split()
        with suppress(ValueError, IndexError):
            here, port = _endpoint(words[1])
            state = int(words[3], 16)
            if state == _LISTEN:
                listening.add((here, port))
            elif state == _ESTABLISHED:
                connected.append((port, _endpoint(words[2])[0]))
    return Sockets(frozenset(listening), tuple(connected))


def _endpoint(text: str) -> tuple[str, int]:
    """`0100007F:1F90` is 127.0.0.1, 8080: words of four bytes in the machine's own order, little endian on all of ours."""
    host, colon, port = text.partition(":")
    packed = bytes.fromhex(host)
    if not colon or len(packed) not in (4, 16):
        raise ValueError(text)
    address = ip_address(b"".join(packed[at : at + 4][::-1] for at in range(0, len(packed), 4)))
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address), int(port, 16)


def name_servers(resolv_conf: Path, behind: Path = BEHIND_THE_STUB) -> list[str]:
    """Those that are asked in the end: systemd-resolved's, where it is asked first."""
    found = parse_resolv_conf(_text(resolv_conf))
    if found and STUBS.issuperset(found):
        return parse_resolv_conf(_text(behind)) or found
    return found


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(RESOLV_CONF_LIMIT_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def parse_resolv_conf(text: str) -> list[str]:
    """The name servers of resolv.conf(5)."""
    found: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and len(found) < SERVERS_LIMIT:
            with suppress(ValueError):
                ip_address(words[1].partition("%")[0])
                found.append(words[1])
    return list(dict.fromkeys(found))


async def clock() -> Clock:
    """What systemd-timedated and systemd-timesyncd say; nothing where they are not."""
    try:
        state = parse_properties(await run("timedatectl", "show"))
    except NoProgram:
        return Clock()
    try:
        sync = parse_properties(await run("timedatectl", "show-timesync"))
    except NoProgram:
        sync = {}
    return clock_of(state, sync)


def parse_properties(text: str) -> dict[str, str]:
    """Lines of NAME=VALUE."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name: value for name, equals, value in pairs if equals}


def clock_of(state: dict[str, str], sync: dict[str, str]) -> Clock:
    """From `timedatectl show` and `timedatectl show-timesync`."""
    words = {"yes": True, "no": False}
    servers: list[str] = []
    for name in ("ServerName", "LinkNTPServers", "SystemNTPServers", "FallbackNTPServers"):
        servers += sync.get(name, "").split()
        if servers:
            break
    return Clock(
        service=words.get(state.get("NTP", "")),
        synchronised=words.get(state.get("NTPSynchronized", "")),
        servers=tuple(servers[:SERVERS_LIMIT]),
    )


def listens(listening: Iterable[tuple[str, int]], host: str, port: int) -> bool:
    """Whether a connection to this address and port would be taken; a socket on :: takes those to IPv4 addresses, too."""
    wanted = ip_address(host)
    for each, its_port in listening:
        found = ip_address(each)
        everywhere = found.is_unspecified and (found.version == 6 or wanted.version == 4)
        if its_port == port and (found == wanted or everywhere):
            return True
    return False
