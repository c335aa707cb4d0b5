"""`POST /api/v1/system/network/doctor`: what is wrong with the network. In the tower a process of its own looks, for this one has
no network; under `coral-reef run` it is this one."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from litestar import Request, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import JSONBody

from appliance.chat.errors import Unavailable
from appliance.network.doctor import examination, ours
from appliance.network.doctor.visit import HostName, NoDoctor, visit, wanted
from appliance.paths import Paths
from appliance.telemetry.network_counters import NetworkCounters, add_up, today
from appliance.telemetry.network_statistics import errors_of
from appliance.wire.messages import Finding

from .auth import Caller
from .rest import only_admins


class DoctorRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether another machine should be reached, too."""

    host: HostName | None = None


class FindingList(msgspec.Struct, frozen=True):
    """From the cable up."""

    findings: list[Finding]


@post(
    "/api/v1/system/network/doctor",
    status_code=200,
    summary="Find out what is wrong with the network",
    tags=["system"],
)
async def network_doctor(
    request: Request[Caller, None, Any],
    data: JSONBody[DoctorRequest],
    state: State,
    counters: NamedDependency[NetworkCounters],
) -> FindingList:
    """Link, addresses, router, name servers, time, the path's MTU, ports, certificate, clients, latency and loss: how each is,
    and when it is not well, why probably and what to do. Takes some seconds, up to a minute when much is wrong. For
    administrators."""
    only_admins(request)
    paths: Paths = state.paths
    if paths == Paths.system():
        try:
            found = await visit(paths.doctor_socket, host=data.host)
        except NoDoctor as error:
            raise Unavailable(str(error)) from None
    else:
        found = await examination.run(wanted(paths), host=data.host)
    totals = add_up(counters.board, time.monotonic(), today())
    return FindingList([*found, *ours.errors(errors_of(totals))])
