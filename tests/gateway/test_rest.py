"""The REST API, over a real server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from appliance.chat.personas import load_personas
from appliance.gateway import links
from appliance.gateway.generator import WHOLE_PAUSE_S
from appliance.storage.conversations import Conversations
from appliance.storage.database import Database
from appliance.wire.messages import Failure, FinishReason, Sampling, Usage

from .conftest import health_that_is

if TYPE_CHECKING:
    from tests.gateway.conftest import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/api/v1/chat"
PROBLEM = "application/problem+json"


def ask(message: str, **more: Any) -> dict[str, Any]:
    return {"persona_id": "coral", "message": message, **more}


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The problem of a response, whose form is checked."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    found: dict[str, Any] = response.json()
    assert found["status"] == status
    assert found["title"]
    assert found["code"]
    return found


async def test_a_reply(served: Served) -> None:
    response = await served.client.post(
        CHAT, json=ask("a reply", max_tokens=9, temperature=0, seed=3, stop=["x"])
    )
    assert response.status_code == 200
    found = response.json()
    assert found.pop("request_id").startswith("req-")
    session_id = found.pop("session_id")
    assert found == {
        "persona_id": "coral",
        "content": "Hello there.",
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "cached_tokens": 0},
        "finish_reason": "stop",
    }
    (generate,) = served.fake.asked("a reply")
    assert generate.sampling == Sampling(max_tokens=9, temperature=0, top_p=0.95, stop=["x"], seed=3)
    assert [turn.role for turn in generate.turns] == ["system", "user"]
    assert generate.turns[0].content == load_personas()["coral"].system
    (lease,) = [each for each in served.fake.requests if each.request_id == generate.request_id]
    assert lease.session_id == session_id


async def test_only_a_stream_is_written_word_by_word(served: Served) -> None:
    """Whoever waits for the whole reply is not woken for each of them, nor is the gateway."""
    for path in (CHAT, f"{CHAT}/stream"):
        assert (await served.client.post(path, json=ask("in pieces?"))).status_code == 200
    whole, streamed = served.fake.asked("in pieces?")
    assert (whole.pause_s, streamed.pause_s) == (WHOLE_PAUSE_S, 0)


async def test_the_lease_is_settled_with_the_tokens(served: Served) -> None:
    found = (await served.client.post(CHAT, json=ask("settled"))).json()
    await served.fake.until("settled", found["request_id"])
    settled = served.fake.settled[found["request_id"]]
    assert (settled.prompt_tokens, settled.completion_tokens) == (2, 3)


async def test_a_conversation_and_its_history(served: Served) -> None:
    first = (await served.client.post(CHAT, json=ask("first"))).json()
    session_id = first["session_id"]
    second = (await served.client.post(CHAT, json=ask("second", session_id=session_id))).json()
    assert second["session_id"] == session_id
    assert second["usage"]["prompt_tokens"] == 4
    response = await served.client.get(f"{CHAT}/history/{session_id}")
    history = response.json()
    assert response.status_code == 200
    assert (history["session_id"], history["persona_id"]) == (session_id, "coral")
    assert [(each["role"], each["content"]) for each in history["messages"]] == [
        ("user", "first"),
        ("assistant", "Hello there."),
        ("user", "second"),
        ("assistant", "Hello there."),
    ]
    assert [each["finish_reason"] for each in history["messages"]] == [None, "stop", None, "stop"]
    times = [each["created_at"] for each in history["messages"]]
    assert times == sorted(times)
    assert times[0] > 1_700_000_000_000


async def test_a_conversation_is_deleted_for_good(served: Served) -> None:
    session_id = (await served.client.post(CHAT, json=ask("delete"))).json()["session_id"]
    gone = await served.client.delete(f"{CHAT}/history/{session_id}")
    assert (gone.status_code, gone.content) == (204, b"")
    problem(await served.client.get(f"{CHAT}/history/{session_id}"), 404)
    problem(await served.client.delete(f"{CHAT}/history/{session_id}"), 404)
    found = problem(await served.client.post(CHAT, json=ask("on", session_id=session_id)), 404)
    assert found["code"] == "unknown_session"


async def test_whose_conversation(served: Served) -> None:
    """Another user neither reads, continues nor deletes it, and cannot tell it from one that does not exist."""
    session_id = (await served.client.post(CHAT, json=ask("mine"))).json()["session_id"]
    stranger = {"Authorization": f"Bearer {served.user_key}"}
    url = f"{CHAT}/history/{session_id}"
    hidden = problem(await served.client.get(url, headers=stranger), 404)
    unknown = problem(await served.client.get(f"{CHAT}/history/no-such", headers=stranger), 404)
    assert hidden["detail"].replace(session_id, "no-such") == unknown["detail"]
    problem(await served.client.delete(url, headers=stranger), 404)
    problem(await served.client.post(CHAT, json=ask("on", session_id=session_id), headers=stranger), 404)
    assert (await served.client.get(url)).status_code == 200


async def test_an_administrator_reads_every_conversation(served: Served) -> None:
    stranger = {"Authorization": f"Bearer {served.user_key}"}
    session_id = (await served.client.post(CHAT, json=ask("theirs"), headers=stranger)).json()["session_id"]
    assert (await served.client.get(f"{CHAT}/history/{session_id}")).status_code == 200


async def test_personas(served: Served) -> None:
    found = (await served.client.get("/api/v1/personas")).json()["personas"]
    assert [each["id"] for each in found] == list(load_personas())
    assert set(found[0]) == {"id", "name", "role", "description"}


async def test_status_and_models(served: Served) -> None:
    status = (await served.client.get("/api/v1/system/status")).json()
    assert (status["type"], status["summary"]) == ("Status", "1 of 1 workers ready")
    models = (await served.client.get("/api/v1/system/models")).json()["models"]
    assert [(each["name"], each["loaded_by"]) for each in models] == [("m", ["text-1"])]


async def test_who_asks_for_the_health_shares_the_answer(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "RECENT_S", 1000.0)
    await served.connected()
    asked = served.fake.status_requests
    answers = await asyncio.gather(*(served.client.get("/health") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert served.fake.status_requests - asked <= 1


@pytest.mark.parametrize("path", ["/health", "/openapi.json", "/api/v1/personas", "/"])
async def test_head_is_get_without_the_body(served: Served, path: str) -> None:
    got, head = await served.client.get(path), await served.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == got.headers[name]


async def test_a_history_page_by_page(served: Served) -> None:
    session_id = (await served.client.post(CHAT, json=ask("turn 0"))).json()["session_id"]
    for number in range(1, 4):
        await served.client.post(CHAT, json=ask(f"turn {number}", session_id=session_id))
    url = f"{CHAT}/history/{session_id}"
    everything = (await served.client.get(url)).json()
    assert [each["position"] for each in everything["messages"]] == list(range(8))
    assert everything["earlier"] is False
    pages: list[list[dict[str, Any]]] = []
    before: int | None = None
    while True:
        asked = {"limit": 3} | ({} if before is None else {"before": before})
        page = (await served.client.get(url, params=asked)).json()
        pages.insert(0, page["messages"])
        if not page["earlier"]:
            break
        before = page["messages"][0]["position"]
    assert [len(page) for page in pages] == [2, 3, 3]
    assert [each for page in pages for each in page] == everything["messages"]
    nothing = (await served.client.get(url, params={"before": 0})).json()
    assert (nothing["messages"], nothing["earlier"]) == ([], False)


@pytest.mark.parametrize(
    "asked",
    [{"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"before": -1}, {"before": 2**60}, {"before": ""}],
)
async def test_pages_that_there_are_not(served: Served, asked: dict[str, Any]) -> None:
    session_id = (await served.client.post(CHAT, json=ask("page"))).json()["session_id"]
    found = problem(await served.client.get(f"{CHAT}/history/{session_id}", params=asked), 400)
    assert next(iter(asked)) in found["detail"]


async def test_health_needs_no_key(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url, trust_env=False) as client:
        response = await client.get("/health")
        assert (response.status_code, response.json()["status"]) == (200, "ok")
        served.fake.ready = False
        try:
            response = await health_that_is(client, 503)
        finally:
            served.fake.ready = True
    assert (response.json()["status"], response.json()["detail"]) == ("starting", "0 of 1 workers ready")


# --- what is refused ------------------------------------------------------------------------------------------------

PRIVATE = [
    ("POST", CHAT),
    ("POST", f"{CHAT}/stream"),
    ("GET", f"{CHAT}/history/x"),
    ("DELETE", f"{CHAT}/history/x"),
    ("GET", "/api/v1/personas"),
    ("GET", "/api/v1/system/status"),
    ("GET", "/api/v1/system/models"),
]


@pytest.mark.parametrize(("method", "path"), PRIVATE)
async def test_no_key(served: Served, method: str, path: str) -> None:
    async with httpx.AsyncClient(base_url=served.url, trust_env=False) as client:
        response = await client.request(method, path, json=ask("x") if method == "POST" else None)
    found = problem(response, 401)
    assert response.headers["www-authenticate"] == "Bearer"
    assert found["detail"] == "send your API key: Authorization: Bearer KEY"


@pytest.mark.parametrize(
    "header", ["Bearer wrong", "bearer  x", "Bearer", "Basic eDp5", "", "Bearer \xff", "Bearer " + "k" * 3000]
)
async def test_a_wrong_key(served: Served, header: str) -> None:
    headers = {b"Authorization": header.encode("latin-1")}
    response = await served.client.get("/api/v1/personas", headers=headers)
    problem(response, 401)
    assert response.headers["www-authenticate"] == "Bearer"


async def test_nearly_the_key(served: Served) -> None:
    last = "x" if served.key[-1] != "x" else "y"
    response = await served.client.get(
        "/api/v1/personas", headers={"Authorization": f"Bearer {served.key[:-1]}{last}"}
    )
    assert problem(response, 401)["detail"] == "this API key is not valid"


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/api", "/api/v1/", "/api/v1/chat/x", "/docs/x", "/%00", "/\u00e9", "/api/v1/chat/history/"],
)
async def test_unknown_paths(served: Served, path: str) -> None:
    assert problem(await served.client.get(path), 404)["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "path"), [("GET", CHAT), ("PUT", CHAT), ("POST", "/health"), ("POST", "/api/v1/personas")]
)
async def test_unknown_methods(served: Served, method: str, path: str) -> None:
    response = await served.client.request(method, path)
    problem(response, 405)
    assert response.headers["allow"]


async def test_a_body_too_large(served: Served) -> None:
    assert problem(await served.client.post(CHAT, json=ask("x" * 70_000)), 413)["code"] == "too_large"


WRONG = [
    (ask("m", max_tokens="many"), "max_tokens"),
    (ask("m", max_tokens=0), "max_tokens"),
    (ask("m", max_tokens=32_769), "max_tokens"),
    (ask("m", max_tokens=1.5), "max_tokens"),
    (ask("m", temperature=-0.1), "temperature"),
    (ask("m", temperature=2.1), "temperature"),
    (ask("m", top_p=0), "top_p"),
    (ask("m", seed=-1), "seed"),
    (ask("m", stop="x"), "stop"),
    (ask("m", stop=["x"] * 9), "stop"),
    (ask("m", stop=[""]), "stop"),
    (ask("m", stream="no"), "stream"),
    (ask("m", session_id=""), "session_id"),
    (ask("m", session_id=7), "session_id"),
    (ask("", persona_id="coral"), "message"),
    (ask("   "), "message"),
    (ask("x" * 501), "message"),
    ({"persona_id": "coral", "message": None}, "message"),
    ({"persona_id": "coral"}, "message"),
    ({"message": "m"}, "persona_id"),
    ({}, "persona_id"),
    (ask("m", persona_id=5), "persona_id"),
    (ask("m", tempreature=1), "tempreature"),
]


@pytest.mark.parametrize(("body", "field"), WRONG)
async def test_the_field_that_is_wrong(served: Served, body: dict[str, Any], field: str) -> None:
    found = problem(await served.client.post(CHAT, json=body), 400)
    assert field in found["detail"]
    for error in found.get("errors", []):
        assert field in error["field"]
        assert error["message"]


BAD_JSON = {
    "empty": b"",
    "cut": b"{",
    "words": b"nonsense",
    "list": b"[]",
    "null": b"null",
    "text": b'"text"',
    "number": b"NaN",
    "nul": b"\x00",
    "surrogate": b'{"persona_id": "coral", "message": "\\ud800"}',
    "nan": b'{"persona_id": "coral", "message": "m", "temperature": NaN}',
    "infinite": b'{"persona_id": "coral", "message": "m", "temperature": 1e999}',
    "huge": b'{"persona_id": "coral", "message": "m", "seed": ' + b"9" * 6000 + b"}",
}
WORSE_JSON = {
    "lists": b"[" * 60_000,
    "objects": b'{"a":' * 12_000,
    "field": b'{"persona_id": ' + b"[" * 60_000,
    "unknown-field": b'{"other": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    "utf-8": b'{"persona_id": "coral", "message": "\xff\xfe"}',
}


@pytest.mark.parametrize(
    "body",
    [pytest.param(body, id=name) for name, body in (BAD_JSON | WORSE_JSON).items()],
)
@pytest.mark.parametrize("path", [CHAT, f"{CHAT}/stream"])
async def test_bad_json(served: Served, body: bytes, path: str) -> None:
    response = await served.client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert problem(response, 400)["detail"]


async def test_an_unknown_persona(served: Served) -> None:
    found = problem(await served.client.post(CHAT, json=ask("m", persona_id="nemo")), 404)
    assert found["code"] == "unknown_persona"
    assert "there are: coral, finn" in found["detail"]


async def test_a_session_id_too_long(served: Served) -> None:
    found = problem(await served.client.get(f"{CHAT}/history/{'x' * 65}"), 400)
    assert [each["field"] for each in found["errors"]] == ["session_id"]


@pytest.mark.parametrize("message", ["a\x00b", "\U0001f41a", "\u202e\ufeff", "\r\n\t."])
async def test_any_character_is_kept(served: Served, message: str) -> None:
    found = (await served.client.post(CHAT, json=ask(message))).json()
    history = (await served.client.get(f"{CHAT}/history/{found['session_id']}")).json()
    assert history["messages"][0]["content"] == message


# --- when the appliance cannot --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [("engine_error", 502, "engine_error"), ("prompt_too_long", 400, "prompt_too_long")],
)
async def test_a_failure_of_the_engine(served: Served, code: str, status: int, told: str) -> None:
    message = f"fails with {code}"
    served.fake.scripts[message] = served.script(end=Failure(code=code, message="why"))
    found = problem(await served.client.post(CHAT, json=ask(message)), status)
    assert (found["code"], found["detail"]) == (told, "why")


async def test_a_worker_that_dies(served: Served) -> None:
    served.fake.scripts["dies"] = served.script(end=None)
    found = problem(await served.client.post(CHAT, json=ask("dies")), 502)
    assert found["code"] == "worker_lost"
    assert (await served.client.post(CHAT, json=ask("after a death"))).status_code == 200


async def test_a_worker_that_cannot_be_reached(served: Served) -> None:
    served.fake.scripts["dies before"] = served.script(end=None)
    await served.client.post(CHAT, json=ask("dies before"))  # so that there is no connection left to it
    good, served.fake.socket = served.fake.socket, served.fake.socket + ".gone"
    try:
        response = await served.client.post(CHAT, json=ask("unreachable"))
    finally:
        served.fake.socket = good
    found = problem(response, 502)
    assert (found["code"], "text-1 cannot be reached" in found["detail"]) == ("worker_lost", True)
    await served.fake.until("settled", served.fake.requests[-1].request_id)


async def test_a_full_queue(served: Served) -> None:
    served.fake.refusal = ("queue_full", "256 requests are waiting already")
    try:
        response = await served.client.post(CHAT, json=ask("turned away"))
    finally:
        served.fake.refusal = None
    found = problem(response, 503)
    assert (found["code"], response.headers["retry-after"]) == ("queue_full", "1")
    assert served.fake.asked("turned away") == []


async def test_a_model_and_its_adapter(served: Served) -> None:
    response = await served.client.post(CHAT, json=ask("in its voice", model="m", adapter="chef"))
    assert response.status_code == 200
    (generate,) = served.fake.asked("in its voice")
    (lease,) = [each for each in served.fake.requests if each.request_id == generate.request_id]
    assert (lease.model, lease.adapter, generate.adapter) == ("m", "chef", "chef")


@pytest.mark.parametrize("code", ["unknown_model", "unknown_adapter"])
async def test_what_no_worker_has(served: Served, code: str) -> None:
    served.fake.refusal = (code, "there are: m")
    try:
        response = await served.client.post(CHAT, json=ask("not served", model="n"))
    finally:
        served.fake.refusal = None
    found = problem(response, 404)
    assert (found["code"], found["detail"]) == (code, "there are: m")


async def test_a_client_that_goes_away_cancels(served: Served) -> None:
    gate = asyncio.Event()
    served.fake.scripts["left alone"] = served.script(gate=gate)
    asking = asyncio.create_task(served.client.post(CHAT, json=ask("left alone")))
    async with asyncio.timeout(5), served.fake.changed:
        await served.fake.changed.wait_for(lambda: served.fake.asked("left alone"))
    (generate,) = served.fake.asked("left alone")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await served.fake.until("cancels", generate.request_id)
    await served.fake.until("settled", generate.request_id)


async def test_a_cancelled_reply_says_so(served: Served) -> None:
    served.fake.scripts["cut"] = served.script(pieces=["a", "b"], end=FinishReason.LENGTH)
    found = (await served.client.post(CHAT, json=ask("cut"))).json()
    assert (found["finish_reason"], found["content"]) == ("length", "ab")
    assert Usage(**found["usage"]).completion_tokens == 2


async def test_a_long_conversation_goes_on(served: Served) -> None:
    """What the worker is shown must fit a frame, however long the conversation became."""
    session_id = (await served.client.post(CHAT, json=ask("begin"))).json()["session_id"]

    def fill() -> None:
        with Database.open(served.paths) as database:
            for number in range(20):
                Conversations(database).append_turn(
                    session_id,
                    "\U0001f41a" * 15_000,
                    "short",
                    request_id=f"r{number}",
                    finish_reason="stop",
                    prompt_tokens=1,
                    completion_tokens=1,
                )

    await asyncio.to_thread(fill)
    response = await served.client.post(CHAT, json=ask("go on", session_id=session_id))
    assert response.status_code == 200, response.text
