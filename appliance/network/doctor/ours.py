"""What the tower itself does for clients: where it listens, with which certificate, and who is there."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from appliance.config.network import Api
from appliance.telemetry.network_statistics import Errors
from appliance.wire.messages import Check, Finding

from . import certificate as certificates
from .certificate import Expired, Forbidden, NotYetValid, Unusable
from .facts import Sockets, listens
from .findings import failed, ok, skipped, warning

_CONNECT_S = 3.0
_EXPIRES_SOON_S = 30 * 24 * 3600

#: Clients that are named.
_NAMED = 20


@dataclass(frozen=True)
class Listener:
    """Something that should be there: what for, and where it is reached. `host` is an address, or 0.0.0.0 or :: for all."""

    what: str
    host: str
    port: int


async def port(listener: Listener, sockets: Sockets) -> Finding:
    """Whether it listens, where it should, and takes a connection."""
    where = (
        f"[{listener.host}]:{listener.port}" if ":" in listener.host else f"{listener.host}:{listener.port}"
    )
    others = sorted(host for host, port in sockets.listening if port == listener.port)
    if not listens(sockets.listening, listener.host, listener.port):
        if not others:
            return failed(
                Check.PORTS,
                where,
                f"nothing listens for {listener.what}",
                "the service does not run, or another port is set for it",
                "'coral-reef status'; 'systemctl status coral-reef-gateway.socket'",
            )
        return failed(
            Check.PORTS,
            where,
            f"{listener.what} is there, but only on {', '.join(others)}",
            "'api.bind' in network.yaml and what listens differ",
            "'coral-reef net apply'; or 'systemctl edit coral-reef-gateway.socket'",
        )
    host = listener.host
    if ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    try:
        async with asyncio.timeout(_CONNECT_S):
            _, writer = await asyncio.open_connection(host, listener.port)
        writer.close()
    except (TimeoutError, OSError):
        return failed(
            Check.PORTS,
            where,
            f"{listener.what} listens, and takes no connection",
            "it hangs, or has more connections than it can take",
            "'coral-reef status'; 'coral-reef logs'",
        )
    return ok(Check.PORTS, where, f"{listener.what} listens, and takes connections")


def certificate(api: Api, now: float) -> Finding:
    """The certificate of the API. `now` in seconds since 1970."""
    if not api.tls:
        return skipped(Check.CERTIFICATE, "api", "api.tls is off: there is none")
    if api.cert is None:
        return failed(
            Check.CERTIFICATE,
            "api",
            "api.tls is on, and api.cert is missing",
            "network.yaml",
            "set 'api.cert'",
        )
    path = Path(api.cert)
    key = Path(api.key) if api.key is not None else path.with_suffix(".key")
    try:
        validity = certificates.examine(path, key)
    except Forbidden as error:
        return skipped(Check.CERTIFICATE, "api", str(error))
    except Expired as error:
        return failed(
            Check.CERTIFICATE, "api", str(error), "it was not renewed, or the clock is wrong", "renew it"
        )
    except NotYetValid as error:
        return failed(
            Check.CERTIFICATE, "api", str(error), "the clock is behind", "see 'time' above; then look again"
        )
    except Unusable as error:
        return failed(
            Check.CERTIFICATE,
            "api",
            str(error),
            "the wrong file, or one that was damaged or not meant for this user",
            "correct 'api.cert' and 'api.key' in network.yaml, or the files and who may read them",
        )
    days = (validity.until - now) / 86_400
    if validity.until - now < _EXPIRES_SOON_S:
        return warning(
            Check.CERTIFICATE,
            "api",
            f"{path} expires in {days:.0f} days",
            "it was not renewed yet",
            "renew it",
        )
    names = f" for {', '.join(validity.names[:8])}" if validity.names else ""
    return ok(Check.CERTIFICATE, "api", f"valid for {days:.0f} more days{names}")


def errors(counted: Errors) -> list[Finding]:
    """What the gateway has counted in the last hour, and what clients saw of it."""
    found: list[Finding] = []
    if counted.rate_limited:
        found.append(
            warning(
                Check.ERRORS,
                "",
                f"{counted.rate_limited} requests of the last hour were refused: too many",
                "a client asks more often than its tier allows",
                "give it a higher tier, or let it wait as long as Retry-After says",
            )
        )
    if counted.timeouts:
        found.append(
            warning(
                Check.ERRORS,
                "",
                f"{counted.timeouts} connections of the last hour were given up in the middle",
                "a firewall or router forgets connections that are idle, or a client vanishes without a word",
                "raise its idle timeout; let clients keep connections alive",
            )
        )
    if counted.server:
        found.append(
            warning(
                Check.ERRORS,
                "",
                f"{counted.server} requests of the last hour failed on our side",
                "no place was free in time, a worker died, or there is a bug",
                "'coral-reef repair list'; 'coral-reef logs'",
            )
        )
    return found or [ok(Check.ERRORS, "", "none in the last hour but what clients got wrong themselves")]


def clients(sockets: Sockets, ports: Collection[int]) -> Finding:
    """Who is connected to these ports of ours now; `ss -tn state established '( sport = :8080 )'`."""
    counts = Counter(peer for port, peer in sockets.connected if port in ports)
    if not counts:
        return ok(Check.CLIENTS, "", "nobody is connected")
    named = ", ".join(
        f"{peer} ({count})" if count > 1 else peer for peer, count in counts.most_common(_NAMED)
    )
    more = f" and {len(counts) - _NAMED} more" if len(counts) > _NAMED else ""
    return ok(Check.CLIENTS, "", f"{counts.total()} connections: {named}{more}")
