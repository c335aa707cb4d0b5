"""What is reached through the network: name servers, time, the path's MTU, latency and loss."""

from __future__ import annotations

import asyncio
import statistics

from appliance.config.network import Mode
from appliance.wire.messages import Check, Finding

from . import dns, ntp
from .dns import ResponseCode
from .facts import Clock
from .findings import failed, ok, skipped, warning
from .icmp import NoPing, Silence, ping

#: Clocks differ by less without anybody noticing; by more than that, certificates and tokens are refused.
_OFFSET_S = 1.0
_OFFSET_LIMIT_S = 60.0

_PINGS = 20
_PINGS_PERIOD_S = 0.1
_LOSS_SHARE = 0.05
_LOSS_LIMIT_SHARE = 0.5

#: The highest latency in the specification's dashboard, of the relay, is 150 ms.
_LATENCY_S = 0.15

#: What every path takes: RFC 791 and RFC 8200.
_LEAST_MTU = {4: 576, 6: 1280}


async def name_server(server: str, name: str, *, port: int = 53) -> Finding:
    """Whether it answers a question; about the root of all names where there is no better one."""
    try:
        code = await dns.ask(server, name, dns.A if name else dns.NS, port=port)
    except (TimeoutError, OSError):
        return failed(
            Check.DNS,
            server,
            "the name server does not answer",
            "it is off or cannot be reached, a firewall drops UDP port 53, or its address is wrong",
            "try another one in 'dns' of network.yaml, like the router's address",
        )
    if code in (ResponseCode.REFUSED, ResponseCode.SERVER_FAILURE, ResponseCode.OTHER):
        said = "refuses to answer" if code is ResponseCode.REFUSED else "cannot find out"
        return warning(
            Check.DNS,
            server,
            f"the name server is there, but {said}",
            "it does not serve this network, or does not reach the internet itself",
            "see whether the router is online; or name another one in 'dns' of network.yaml",
        )
    return ok(Check.DNS, server, "it answers")


def no_name_server(mode: Mode) -> Finding:
    """What it means that there is none."""
    if mode is Mode.LOCAL:
        return skipped(Check.DNS, "", "there is no name server, and mode local needs none")
    return failed(
        Check.DNS,
        "",
        "there is no name server",
        "DHCP brought none, and network.yaml names none",
        "set 'dns' of a port in network.yaml",
    )


async def time_server(server: str, *, port: int = ntp.PORT) -> Finding:
    """Whether it answers, and how far our clock is off."""
    try:
        told = await ntp.ask(server, port=port)
    except (TimeoutError, OSError):
        return warning(
            Check.TIME,
            server,
            "the time server does not answer",
            "it cannot be reached or found, or a firewall drops UDP port 123",
            "name one that is reached, like the router, in 'NTP=' of /etc/systemd/timesyncd.conf",
        )
    if not told.knows:
        return warning(
            Check.TIME,
            server,
            "the time server does not know the time itself",
            "it has no server of its own",
            "name another one in 'NTP=' of /etc/systemd/timesyncd.conf",
        )
    off = f"the clock is {abs(told.offset_s):.3g} s {'behind' if told.offset_s > 0 else 'ahead'}"
    if abs(told.offset_s) <= _OFFSET_S:
        return ok(Check.TIME, server, off)
    judge = failed if abs(told.offset_s) > _OFFSET_LIMIT_S else warning
    return judge(
        Check.TIME,
        server,
        off,
        "nothing keeps it: certificates and tokens may count as expired, or as not yet valid",
        "'timedatectl set-ntp true', then look again in a minute",
    )


def clock(state: Clock) -> Finding:
    """What systemd says about what keeps the clock."""
    if state.service is None:
        return skipped(Check.TIME, "systemd", "systemd does not say whether anything keeps the clock")
    if not state.service and not state.synchronised:
        return warning(
            Check.TIME,
            "systemd",
            "nothing keeps the clock",
            "systemd-timesyncd is off or not installed",
            "'timedatectl set-ntp true'",
        )
    if not state.synchronised:
        return warning(
            Check.TIME,
            "systemd",
            "the clock is not synchronised (yet)",
            "no time server has answered since the start",
            "see that a time server is reached; 'timedatectl timesync-status' tells which is asked",
        )
    return ok(Check.TIME, "systemd", "the clock is kept")


async def path_mtu(host: str, mtu: int) -> Finding:
    """Whether packets of the interface's MTU get through whole; if not, which do. `host` is an address."""
    version = 6 if ":" in host else 4
    try:
        whole = await _gets_through(host, mtu)
        if whole is True:
            return ok(Check.MTU, host, f"packets of {mtu} bytes get through whole")
        least = _LEAST_MTU[version]
        if mtu <= least or await _gets_through(host, least) is not True:
            return skipped(Check.MTU, host, "it does not answer pings, so the path cannot be measured")
        low, high = least, mtu
        while high - low > 1:
            middle = (low + high) // 2
            if await _gets_through(host, middle) is True:
                low = middle
            else:
                high = middle
    except NoPing as error:
        return skipped(Check.MTU, host, str(error))
    if whole is Silence.TOO_BIG:
        return warning(
            Check.MTU,
            host,
            f"packets of {mtu} bytes are too large for the path, {low} get through",
            "something between here and there has a smaller MTU, and says so",
            f"'mtu: {low}' in network.yaml spares every connection the detour; or enlarge what is smaller",
        )
    return failed(
        Check.MTU,
        host,
        f"packets of more than {low} bytes vanish (of {mtu} that the interface sends)",
        "a switch or router on the way takes less, or a firewall drops the ICMP that says so: connections hang",
        f"set 'mtu: {low}' in network.yaml, or give every switch on the way an MTU of {mtu}",
    )


async def _gets_through(host: str, size: int) -> bool | Silence:
    """Tries more than once: the first may only find out what the path takes, and any may be lost."""
    said: bool | Silence = Silence.TIMEOUT
    for _ in range(3):
        found = await ping(host, packet_bytes=size, timeout_s=0.5)
        if isinstance(found, float):
            return True
        said = found if found is Silence.TOO_BIG else said
    return said


async def latency(host: str) -> Finding:
    """How long pings take, and how many are lost. `host` is an address."""

    async def one(number: int) -> float | Silence:
        await asyncio.sleep(number * _PINGS_PERIOD_S)
        return await ping(host, timeout_s=2.0)

    try:
        answers = await asyncio.gather(*map(one, range(_PINGS)))
    except NoPing as error:
        return skipped(Check.LATENCY, host, str(error))
    taken = [each for each in answers if isinstance(each, float)]
    lost = 1 - len(taken) / len(answers)
    if not taken:
        return skipped(
            Check.LATENCY, host, "it answers no ping: it is off, not reached, or does not like pings"
        )
    middle, longest = statistics.median(taken), max(taken)
    figures = f"{middle * 1000:.3g} ms, at most {longest * 1000:.3g} ms, {lost:.0%} lost"
    if lost > _LOSS_SHARE:
        judge = failed if lost >= _LOSS_LIMIT_SHARE else warning
        return judge(
            Check.LATENCY,
            host,
            figures,
            "a bad cable or radio link, or a network that is full",
            "see 'link' above; use a cable instead of Wi-Fi; look at the bandwidth: 'coral-reef net stats'",
        )
    if middle > _LATENCY_S:
        return warning(
            Check.LATENCY,
            host,
            figures,
            "the network is congested, or far",
            "look at the bandwidth ('coral-reef net stats'); enable quality of service on the router",
        )
    return ok(Check.LATENCY, host, figures)
