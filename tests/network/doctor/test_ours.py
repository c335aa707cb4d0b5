"""What the gateway counted, in words; the rest of `ours` is tested where there is a network (tests/system)."""

from __future__ import annotations

from appliance.network.doctor import ours
from appliance.network.doctor.facts import Sockets
from appliance.telemetry.network_statistics import Errors
from appliance.wire.messages import Outcome


def test_errors_of_the_last_hour() -> None:
    fine = ours.errors(Errors(client=7, rate_limited=0, server=0, timeouts=0))
    assert [each.outcome for each in fine] == [Outcome.OK]
    found = ours.errors(Errors(client=0, rate_limited=23, server=2, timeouts=1))
    assert [each.outcome for each in found] == [Outcome.WARNING] * 3
    assert "23 requests" in found[0].symptom
    assert "tier" in found[0].remedy
    assert "idle" in found[1].cause


def test_clients_are_named_and_far_too_many_are_not() -> None:
    some = Sockets(connected=((8080, "10.0.0.1"), (8080, "10.0.0.1"), (22, "10.0.0.9")))
    assert ours.clients(some, {8080}).symptom == "2 connections: 10.0.0.1 (2)"
    crowd = Sockets(connected=tuple((8080, f"10.0.0.{number}") for number in range(100)))
    assert ours.clients(crowd, {8080}).symptom.endswith(" and 80 more")
    assert ours.clients(Sockets(), {8080}).symptom == "nobody is connected"
