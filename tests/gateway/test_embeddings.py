"""`POST /api/v1/embeddings`, and what a reply expresses, over a real server before a scripted worker."""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
from jsonschema import Draft202012Validator

from appliance.wire.messages import (
    INPUT_LIMIT_CHARS,
    INVOCATIONS_LIMIT,
    EmotionOutput,
    Failure,
    Invoke,
    Invoked,
    Message,
    Priority,
)

if TYPE_CHECKING:
    from tests.gateway.conftest import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")

EMBEDDINGS = "/api/v1/embeddings"


def answered(invoke: Invoke) -> Message:
    """A vector of each text's length; two words each."""
    outputs = [array("f", [len(text), 0.5]).tobytes() for text in invoke.texts]
    return Invoked(
        request_id=invoke.request_id, outputs=outputs, tokens=2 * len(outputs), ran_on=["pci-0", "usb-1-1"]
    )


@pytest.fixture(autouse=True)
def small_models(served: Served) -> Iterator[None]:
    served.fake.models = {"embedding": "small"}
    served.fake.outputs = answered
    served.fake.invokes.clear()
    served.fake.invoke_leases.clear()
    yield
    served.fake.models, served.fake.outputs = {}, None


async def post(served: Served, **body: Any) -> httpx.Response:
    return await served.client.post(EMBEDDINGS, json=body)


async def test_several_texts(served: Served) -> None:
    response = await post(served, input=["a", "bb"], model="small")
    assert response.status_code == 200
    assert response.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [1.0, 0.5]},
            {"object": "embedding", "index": 1, "embedding": [2.0, 0.5]},
        ],
        "model": "small",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
        "ran_on": ["pci-0", "usb-1-1"],
    }
    (lease,), (invoke,) = served.fake.invoke_leases, served.fake.invokes
    assert (lease.invocations, lease.model, lease.avoid) == (2, "small", "")
    assert invoke.texts == ["a", "bb"]
    assert invoke.priority is Priority.LOW
    await served.fake.until("settled", lease.request_id)


async def test_one_text(served: Served) -> None:
    response = await post(served, input="abc", encoding_format="base64")
    (data,) = response.json()["data"]
    assert array("f", base64.b64decode(data["embedding"])).tolist() == [3.0, 0.5]
    assert served.fake.invokes[0].priority is Priority.NORMAL
    assert served.fake.invokes[0].account


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [1]}, "input"),
        ({"input": ["a"] * (INVOCATIONS_LIMIT + 1)}, "input"),
        ({"input": "a" * (INPUT_LIMIT_CHARS + 1)}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 3}, "dimensions"),
    ],
)
async def test_what_is_refused(served: Served, body: dict[str, Any], where: str) -> None:
    response = await served.client.post(EMBEDDINGS, json=body)
    assert response.status_code == 400
    assert where in response.text
    assert not served.fake.invokes
    description = (await served.client.get("/openapi.json")).json()
    schema = {
        **description["components"]["schemas"]["EmbeddingsRequest"],
        "components": description["components"],
    }
    assert not Draft202012Validator(schema).is_valid(body)


async def test_a_model_that_is_not_there(served: Served) -> None:
    response = await post(served, input="a", model="large")
    assert response.status_code == 404
    assert response.json()["code"] == "unknown_model"


async def test_a_text_that_the_model_does_not_take(served: Served) -> None:
    served.fake.outputs = lambda invoke: Failure(
        code="bad_input", message="a text has 9 bytes", request_id=invoke.request_id
    )
    response = await post(served, input="a")
    assert response.status_code == 400
    assert response.json()["detail"] == "a text has 9 bytes"


async def test_a_worker_that_dies_is_replaced(served: Served) -> None:
    def dies_twice(invoke: Invoke) -> Message | None:
        return None if len(served.fake.invokes) < 3 else answered(invoke)

    served.fake.outputs = dies_twice
    response = await post(served, input="abc")
    assert response.json()["data"][0]["embedding"] == [3.0, 0.5]
    assert [lease.avoid for lease in served.fake.invoke_leases] == ["", "text-1", "text-1"]


async def test_a_worker_without_tpus_is_left(served: Served) -> None:
    def no_device(invoke: Invoke) -> Message:
        if len(served.fake.invokes) > 1:
            return answered(invoke)
        return Failure(code="no_device", message="none", request_id=invoke.request_id)

    served.fake.outputs = no_device
    assert (await post(served, input="abc")).status_code == 200
    assert len(served.fake.invokes) == 2


async def events(served: Served, message: str) -> list[dict[str, Any]]:
    body = {"persona_id": "coral", "message": message}
    response = await served.client.post("/api/v1/chat/stream", json=body)
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines]


def joy(invoke: Invoke) -> Message:
    found = EmotionOutput(label="joy", intensity=0.75, probabilities={"joy": 0.9, "neutral": 0.1})
    return Invoked(
        request_id=invoke.request_id, outputs=[msgspec.msgpack.encode(found)], tokens=2, ran_on=["cpu"]
    )


async def test_what_a_reply_expresses(served: Served) -> None:
    served.fake.models, served.fake.outputs = {"emotion": "e"}, joy
    found = await events(served, "are you well?")
    assert [each["type"] for each in found][-2:] == ["persona_emotion", "done"]
    assert found[-2]["payload"] == {"persona_id": "coral", "emotion": "joy", "intensity": 0.75}
    (invoke,) = served.fake.invokes
    assert invoke.texts == ["Hello there."]
    assert invoke.priority is Priority.HIGH


async def test_nobody_hears_what_a_whole_reply_expresses(served: Served) -> None:
    """So it is not asked for."""
    served.fake.models, served.fake.outputs = {"emotion": "e"}, joy
    response = await served.client.post("/api/v1/chat", json={"persona_id": "coral", "message": "and you?"})
    assert response.status_code == 200
    assert served.fake.invoke_leases == []


@pytest.mark.parametrize("trouble", ["no model", "broken output", "failure"])
async def test_a_reply_without_an_emotion(served: Served, trouble: str) -> None:
    def broken(invoke: Invoke) -> Message:
        if trouble == "failure":
            return Failure(code="bad_input", message="no", request_id=invoke.request_id)
        return Invoked(request_id=invoke.request_id, outputs=[b"\xc1"], tokens=0, ran_on=[])

    served.fake.models = {} if trouble == "no model" else {"emotion": "e"}
    served.fake.outputs = broken
    found = await events(served, f"with {trouble}?")
    assert [each["type"] for each in found][-2:] == ["token", "done"]
