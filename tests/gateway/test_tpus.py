"""The TPUs over HTTP: for administrators."""

from __future__ import annotations

import pytest

from .conftest import Served

MODULE = pytest.mark.asyncio(loop_scope="module")


@MODULE
async def test_all_of_them(served: Served) -> None:
    response = await served.client.get("/api/v1/system/tpus")
    assert response.status_code == 200
    found = response.json()
    assert found["hotplug"] == "udev"
    assert found["trays"] == [
        {"name": "tray-1", "slots": 16, "identity": "", "persona": "marina", "problem": ""}
    ]
    (tpu,) = found["tpus"]
    assert (tpu["id"], tpu["state"], tpu["role"], tpu["slot"]) == ("usb-1-1.2", "ready", "perception", 2)
    assert tpu["temperature_c"] is None


@MODULE
async def test_one(served: Served) -> None:
    response = await served.client.get("/api/v1/system/tpus/usb-1-1.2")
    assert response.status_code == 200
    assert response.json()["node"] == "/dev/bus/usb/001/007"
    missing = await served.client.get("/api/v1/system/tpus/usb-9-9")
    assert missing.status_code == 404
    assert missing.json()["detail"] == "no TPU 'usb-9-9'"
    assert (await served.client.get(f"/api/v1/system/tpus/{'x' * 65}")).status_code == 400


@MODULE
@pytest.mark.parametrize("path", ["/api/v1/system/tpus", "/api/v1/system/tpus/usb-1-1.2"])
async def test_not_for_everybody(path: str, served: Served) -> None:
    user = {"Authorization": f"Bearer {served.user_key}"}
    response = await served.client.get(path, headers=user)
    assert response.status_code == 403
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["code"], problem["detail"]) == (
        "forbidden",
        "only an administrator's API key may see this",
    )
    nobody = await served.client.get(path, headers={"Authorization": ""})
    assert nobody.status_code == 401
