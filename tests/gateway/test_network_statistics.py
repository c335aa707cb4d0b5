"""`GET /api/v1/system/network/stats` of a real gateway, whose supervisor is a scripted one."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import connect

from appliance.cli import net_stats
from appliance.cli.exit_status import Failed
from tests.waiting import ask_until

if TYPE_CHECKING:
    from tests.gateway.conftest import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = "/api/v1/system/network/stats"


async def stats(served: Served) -> dict[str, Any]:
    response = await served.client.get(PATH)
    assert response.status_code == 200
    found: dict[str, Any] = response.json()
    return found


async def test_requests_and_their_errors(served: Served) -> None:
    before = await stats(served)
    for _ in range(5):
        assert (await served.client.get("/api/v1/personas")).status_code == 200
    assert (await served.client.get("/api/v1/nothing")).status_code == 404
    assert (await served.client.get("/api/v1/personas", headers={"Authorization": "x"})).status_code == 401
    after = await stats(served)
    assert after["latency"]["api"]["count"] == before["latency"]["api"]["count"] + 8
    api = after["latency"]["api"]
    assert 0 < api["p50_ms"] <= api["p95_ms"] <= api["p99_ms"]
    assert after["errors"]["client"] == before["errors"]["client"] + 2
    assert after["errors"]["server"] == before["errors"]["server"]
    assert after["bandwidth"]["bytes_in"] > before["bandwidth"]["bytes_in"]
    assert after["bandwidth"]["bytes_out"] > before["bandwidth"]["bytes_out"] + 5 * 1000
    assert after["connections"]["total_today"] >= 1
    assert after["connections"]["p2p"] == 0
    assert after["latency"]["p2p"] == {"count": 0, "p50_ms": None, "p95_ms": None, "p99_ms": None}
    assert after["since"] <= after["at"]


async def test_what_the_interfaces_carry(served: Served) -> None:
    found = await stats(served)
    assert found["host"]["in_bytes_per_s"] == 100
    assert [each["name"] for each in found["interfaces"]] == ["eth0"]


async def test_connections_of_both_kinds(served: Served) -> None:
    before = await stats(served)
    headers = {"Authorization": f"Bearer {served.key}"}
    async with connect(f"{served.url.replace('http', 'ws')}/ws", additional_headers=headers) as socket:

        async def seen() -> bool:
            found = await stats(served)
            connections, pings = found["connections"], found["latency"]["websocket"]["count"]
            return (
                connections["websocket"] == 1
                and connections["http"] >= 1
                and bool(pings > before["latency"]["websocket"]["count"])
            )

        await ask_until("it is counted, and its first ping answered", seen)
        errors = (await stats(served))["errors"]["client"]
        await socket.send("nonsense")
        async with asyncio.timeout(10):
            assert '"error"' in str(await socket.recv())
        assert (await stats(served))["errors"]["client"] == errors + 1
    after = await stats(served)
    assert after["connections"]["total_today"] > before["connections"]["total_today"]

    async def gone() -> bool:
        return bool((await stats(served))["connections"]["websocket"] == 0)

    await ask_until("it is gone", gone)


async def test_rates_are_seen_while_there_is_traffic(served: Served) -> None:
    async def busy() -> bool:
        for _ in range(50):
            await served.client.get("/docs")
        found = (await stats(served))["bandwidth"]
        return bool(0 < found["out_bytes_per_s"] <= found["peak_out_bytes_per_s"])

    await ask_until("bytes a second", busy)


async def test_a_request_that_never_comes_is_a_timeout(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (await stats(served))["errors"]
    monkeypatch.setattr("appliance.gateway.protocols.HEAD_S", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rpartition(":")[2]))
    writer.write(b"GET / HTTP/1.1\r\n")
    async with asyncio.timeout(20):
        assert b" 408 " in await reader.readline()
    writer.close()
    after = (await stats(served))["errors"]
    assert (after["timeouts"], after["client"]) == (before["timeouts"] + 1, before["client"])


async def test_without_the_supervisor_there_is_what_we_count_ourselves(served: Served) -> None:
    await served.fake.stop_supervisor()
    try:

        async def alone() -> bool:
            found = await stats(served)
            return found["host"] is None and found["interfaces"] == []

        await ask_until("it is alone", alone)
    finally:
        await served.fake.start_supervisor()

    async def together() -> bool:
        return bool((await stats(served))["interfaces"])

    await ask_until("it is not alone any more", together)


async def test_not_for_everybody(served: Served) -> None:
    user = {"Authorization": f"Bearer {served.user_key}"}
    assert (await served.client.get(PATH, headers=user)).status_code == 403
    assert (await served.client.get(PATH, headers={"Authorization": ""})).status_code == 401


async def test_the_command(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    net_stats.add_arguments(parser)
    key = tmp_path / "key"
    key.write_text(served.key)
    asked = ["--url", served.url, "--key-file", str(key)]
    assert await asyncio.to_thread(net_stats.main, parser.parse_args([*asked, "--json"])) == 0
    assert json.loads(capsys.readouterr().out)["interfaces"][0]["name"] == "eth0"
    assert await asyncio.to_thread(net_stats.main, parser.parse_args(asked)) == 0
    text = capsys.readouterr().out
    assert "eth0" in text
    assert "p50 / p95 / p99" in text
    key.write_text(served.user_key)
    with pytest.raises(Failed, match="only an administrator's API key"):
        await asyncio.to_thread(net_stats.main, parser.parse_args(asked))
    nowhere = parser.parse_args(["--url", "http://127.0.0.1:1", "--key-file", str(key)])
    with pytest.raises(Failed, match=r"cannot reach http://127\.0\.0\.1:1"):
        await asyncio.to_thread(net_stats.main, nowhere)


async def test_the_doctor(served: Served) -> None:
    """Here the gateway looks itself; in the tower it asks (tests/system/test_systemd.py)."""
    path = "/api/v1/system/network/doctor"
    response = await served.client.post(path, json={"host": "127.0.0.1"}, timeout=120)
    assert response.status_code == 200
    found = {(each["check"], each["subject"]) for each in response.json()["findings"]}
    assert {("certificate", "api"), ("latency", "127.0.0.1")} <= found
    assert (await served.client.post(path, json={"host": ""})).status_code == 400
    user = {"Authorization": f"Bearer {served.user_key}"}
    assert (await served.client.post(path, json={}, headers=user)).status_code == 403
