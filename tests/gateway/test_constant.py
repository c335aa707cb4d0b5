"""Answers that are made once: nobody can tell them from those that the framework makes each time."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from appliance.gateway.constant import Constant
from appliance.identity.keys import ApiKeys
from appliance.identity.roles import Role

from .test_limits import connected

if TYPE_CHECKING:
    from tests.gateway.conftest import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")

PERSONAS = "/api/v1/personas"
PATHS = [PERSONAS, "/", "/docs", "/openapi.json"]

#: `{}` is a key: an administrator's, a user's, one that is of the right form and unknown, something else.
SCHEMES = [
    "Bearer {}",
    "bearer {}",
    "BEARER  {} ",
    "Bearer\t{}",
    "Basic {}",
    "{}",
    "Bearer",
    "",
    "Bearer {}\xa0",
    "Bearer {} x",
]
HOSTS = [b"tower", b"127.0.0.1:8080", b"[::1]:8080", b"", b"a b", b"a/b", b"\xff", b"@", b"a\x00", b"tower:"]

ODD = st.binary(max_size=12)
NAMES = st.sampled_from(
    [b"accept", b"cookie", b"origin", b"if-none-match", b"range", b"content-length", b"x-odd"]
)


def front_of(served: Served) -> Constant:
    front = served.server.config.app
    assert isinstance(front, Constant)
    return front


async def answer(app: Any, scope: dict[str, Any]) -> list[dict[str, Any]]:
    """What an application sends."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(copy.deepcopy(message))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    await app(copy.deepcopy(scope), receive, send)
    return sent


def scope_of(method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    """As uvicorn makes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8080),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "root_path": "",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "headers": headers,
        "state": {},
    }


async def warmed(served: Served) -> Constant:
    """The gateway's own, which has answered everything once, with both keys known by heart."""
    for key in (served.key, served.user_key):
        for path in PATHS:
            response = await served.client.get(path, headers={"Authorization": f"Bearer {key}"})
            assert response.status_code == 200
    return front_of(served)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    method=st.sampled_from(["GET", "GET", "HEAD", "POST", "OPTIONS", "DELETE", "PUT", "get", "ODD"]),
    path=st.sampled_from(
        [*PATHS, PERSONAS + "/", "//docs", "/api/v1//personas", "/openapi.json/", "/health/x"]
    ),
    query=st.sampled_from([b"", b"a=1", b"%", b"limit=-1"]) | ODD,
    key=st.sampled_from(["admin", "user", "unknown", "no"]),
    schemes=st.lists(st.sampled_from(SCHEMES), max_size=2),
    hosts=st.lists(st.sampled_from(HOSTS) | ODD, max_size=2),
    more=st.lists(st.tuples(NAMES, ODD), max_size=3),
    order=st.randoms(use_true_random=False),
)
@example("GET", PERSONAS, b"", "admin", ["Bearer {}"], [b"tower"], [], None)
@example("HEAD", PERSONAS, b"", "user", ["Bearer {}"], [], [], None)
@example("GET", PERSONAS, b"", "user", ["Basic {}", "Bearer {}"], [], [], None)
@example("GET", "/openapi.json", b"", "no", [], [b"a b"], [], None)
async def test_odd_requests(
    served: Served,
    method: str,
    path: str,
    query: bytes,
    key: str,
    schemes: list[str],
    hosts: list[bytes],
    more: list[tuple[bytes, bytes]],
    order: Any,
) -> None:
    keys = {"admin": served.key, "user": served.user_key, "unknown": served.key[:-1] + "_", "no": "x"}
    headers = [(b"authorization", scheme.format(keys[key]).encode("latin-1")) for scheme in schemes]
    headers += [(b"host", host) for host in hosts] + more
    if order is not None:
        order.shuffle(headers)
    scope = scope_of(method, path, query, headers)
    warm = await warmed(served)
    assert await answer(warm, scope) == await answer(Constant(warm.framework), scope)


@pytest.mark.parametrize(
    ("path", "keyed"), [(PERSONAS, True), ("/docs", False), ("/", False), ("/openapi.json", False)]
)
async def test_the_framework_makes_it_once(served: Served, path: str, keyed: bool) -> None:
    """Then it is asked no more, except by those whom it is to refuse."""
    front = Constant((await warmed(served)).framework)
    asked = []

    async def framework(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["method"])
        await framework_itself(scope, receive, send)

    framework_itself = front.framework
    framework.state = framework_itself.state  # type: ignore[attr-defined]
    front.framework = framework  # type: ignore[assignment]
    with_key = [(b"host", b"tower"), (b"authorization", f"Bearer {served.key}".encode())]
    for method in ("HEAD", "GET", "GET", "HEAD"):
        assert (await answer(front, scope_of(method, path, b"", with_key)))[0]["status"] == 200
    assert asked == ["GET"]
    (start, _) = await answer(front, scope_of("GET", path, b"", []))
    assert start["status"] == (401 if keyed else 200)
    assert len(asked) == (2 if keyed else 1)


async def test_what_is_no_answer_is_not_kept(served: Served) -> None:
    front = Constant((await warmed(served)).framework)
    no_key = scope_of("GET", PERSONAS, b"", [])
    assert (await answer(front, no_key))[0]["status"] == 401
    with_key = scope_of("GET", PERSONAS, b"", [(b"authorization", f"Bearer {served.key}".encode())])
    for _ in range(2):
        assert (await answer(front, with_key))[0]["status"] == 200
    assert (await answer(front, no_key))[0]["status"] == 401


async def test_a_key_that_is_revoked(served: Served) -> None:
    """It opens nothing any more, however often it did."""
    keys: ApiKeys = (await warmed(served)).framework.state.api_keys
    made, key = keys.create("for a moment", Role.USER)
    headers = {"Authorization": f"Bearer {key}"}
    for _ in range(2):
        assert (await served.client.get(PERSONAS, headers=headers)).status_code == 200
    keys.revoke(made.id)
    assert (await served.client.get(PERSONAS, headers=headers)).status_code == 401


@pytest.mark.parametrize(
    ("line", "more"),
    [
        (f"GET {PERSONAS} HTTP/1.1", ""),
        (f"GET {PERSONAS}?a=1 HTTP/1.1", ""),
        ("GET /api/v1/person%61s HTTP/1.1", ""),
        (f"GET {PERSONAS} HTTP/1.0", ""),
        (f"HEAD {PERSONAS} HTTP/1.1", ""),
        (f"GET {PERSONAS} HTTP/1.1", "Expect: 100-continue\r\nContent-Length: 3\r\n"),
    ],
    ids=["plain", "query", "escaped", "old", "head", "body"],
)
async def test_on_the_wire(served: Served, line: str, more: str) -> None:
    """Byte for byte the same, but for the date; several sent at once are answered in turn."""
    kept = (await warmed(served)).answers[PERSONAS]
    head = f"{line}\r\nHost: tower\r\nAuthorization: Bearer {served.key}\r\n{more}"
    body = "abc" if "Length" in more else ""
    requests = f"{head}\r\n{body}" * 2 + f"{head}Connection: close\r\n\r\n{body}"
    found = []
    for messages in (kept.messages, ()):
        kept.messages = messages
        async with connected(served) as raw:
            await raw.send(requests.encode())
            got = await raw.to_the_end()
        found.append([each for each in got.split(b"\r\n") if not each.startswith(b"date:")])
    assert found[0] == found[1]
    assert found[0][0] == b"HTTP/1.1 200 OK"
