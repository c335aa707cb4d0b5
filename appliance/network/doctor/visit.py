"""Asking for an examination from a process that may not reach the network itself: over the doctor's own socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from appliance.config.errors import ConfigError
from appliance.config.load import load_network
from appliance.config.network import Network, Role
from appliance.paths import Paths
from appliance.wire.messages import Finding, NetworkState

from .examination import in_order

QUESTION_LIMIT_BYTES = 16 * 1024

#: Of one finding, and of how many.
_LINE_LIMIT_BYTES = 64 * 1024
_FINDINGS_LIMIT = 1000

#: As long as systemd lets it run.
_TIMEOUT_S = 180.0

HostName = Annotated[str, Meta(min_length=1, max_length=253, description="a machine that should be reached")]


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """Who else should be reached, and which interface is which port."""

    host: HostName | None = None
    roles: dict[str, Role] = {}


class NoDoctor(Exception):
    """Nobody is there to ask, or the answer is cut off; says why."""


def wanted(paths: Paths) -> Network:
    """What the owner wants of the network; where the file has errors, what nobody has set: there is the more to look at."""
    try:
        return load_network(paths.network_yaml).settings
    except ConfigError:
        return Network()


def roles_of(state: NetworkState) -> dict[str, Role]:
    """Which interface is which port, as the supervisor knows."""
    known = set(Role)
    return {port.interface: Role(port.role) for port in state.ports if port.role in known and port.interface}


async def visit(
    socket: Path,
    *,
    host: str | None = None,
    roles: Mapping[str, Role] | None = None,
    tell: Callable[[Finding], None] = lambda _: None,
) -> list[Finding]:
    """As `examination.run`, in the process that listens there. Raises NoDoctor."""
    question = msgspec.json.encode(Question(host=host, roles=dict(roles or {})))
    found: list[Finding] = []
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(socket), limit=_LINE_LIMIT_BYTES)
            try:
                writer.write(question + b"\n")
                while (line := await reader.readline()) and len(found) < _FINDINGS_LIMIT:
                    finding = msgspec.json.decode(line, type=Finding)
                    found.append(finding)
                    tell(finding)
            finally:
                writer.close()
    except TimeoutError:
        raise NoDoctor(f"the doctor does not come to an end within {_TIMEOUT_S:.0f} s") from None
    except OSError as error:
        raise NoDoctor(f"no doctor is at {socket}: {error.strerror}") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise NoDoctor(f"the doctor says what nobody understands: {error}") from None
    if not found:
        raise NoDoctor("the doctor says nothing; 'coral-reef logs' may say why")
    return in_order(found)
