"""Whatever a client sends over HTTP, the gateway never breaks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from .conftest import health_that_is

if TYPE_CHECKING:
    from tests.gateway.conftest import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/api/v1/chat"
JSON = {"Content-Type": "application/json"}
FIELDS = [
    "persona_id",
    "message",
    "session_id",
    "max_tokens",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "stream",
]
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
NEARLY = st.fixed_dictionaries(
    {"persona_id": st.sampled_from(["coral", "ray"]) | VALUES, "message": TEXT | VALUES},
    optional={name: VALUES | st.integers(0, 2) | st.floats(0, 1) for name in FIELDS[2:]},
)
THOROUGH = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@THOROUGH
@given(body=NEARLY | VALUES | st.dictionaries(st.sampled_from(FIELDS) | TEXT, VALUES, max_size=5))
@example(body={"persona_id": "coral", "message": "ok"})
@example(body={"persona_id": "coral", "message": "x" * 500, "stop": ["a"] * 8, "seed": 2**32 - 2})
async def test_arbitrary_json(served: Served, body: Any) -> None:
    response = await served.client.post(CHAT, content=msgspec.json.encode(body), headers=JSON)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == response.status_code


@THOROUGH
@given(
    body=st.text(st.characters(codec="ascii"), max_size=80).map(str.encode),
    kind=st.sampled_from(
        [
            "application/json",
            "text/plain",
            "",
            "multipart/form-data",
            "application/octet-stream",
            "/;=",
            "a/b; charset=x",
        ]
    ),
)
async def test_arbitrary_bodies_and_content_types(served: Served, body: bytes, kind: str) -> None:
    response = await served.client.post(CHAT, content=body, headers={"Content-Type": kind})
    assert 400 <= response.status_code < 500, response.text
    assert response.headers["content-type"] == "application/problem+json"


@THOROUGH
@given(
    method=st.sampled_from(["GET", "DELETE"]),
    session_id=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=70),
)
async def test_arbitrary_session_ids(served: Served, method: str, session_id: str) -> None:
    path = "".join(f"%{byte:02X}" for byte in session_id.encode())
    response = await served.client.request(method, f"{CHAT}/history/{path}")
    assert response.status_code in (400, 404, 405), response.text
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/v1/chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n" * 2000,
        b"GET /" + b"%" * 3000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%ED%A0%80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
    ids=["length", "chunk", "tls", "version", "newlines", "percent", "surrogate"],
)
async def test_what_is_no_http(served: Served, request_head: bytes) -> None:
    host, _, port = served.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request_head)
    writer.write_eof()
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert not answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 5"))
    assert (await served.client.get("/health")).status_code == 200


async def test_health_when_the_supervisor_hangs(served: Served) -> None:
    served.fake.mute = True
    try:
        down = await health_that_is(served.client, 503)
    finally:
        served.fake.mute = False
        await served.fake.stop_supervisor()
        await served.fake.start_supervisor()
        await served.connected()
    assert (down.json()["status"], down.json()["detail"]) == ("down", "the supervisor does not answer")
