"""The description of the API, for programs and for people."""

from __future__ import annotations

import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from appliance.config.appliance import Appliance
from appliance.gateway.app import create_app
from appliance.paths import Paths
from appliance.telemetry.network_counters import Board, NetworkCounters

if TYPE_CHECKING:
    from tests.gateway.conftest import Served

MODULE = pytest.mark.asyncio(loop_scope="module")

ROUTES = {
    "/api/v1/chat": {"post"},
    "/api/v1/chat/stream": {"post"},
    "/api/v1/chat/history/{session_id}": {"get", "delete"},
    "/api/v1/embeddings": {"post"},
    "/api/v1/personas": {"get"},
    "/api/v1/system/status": {"get"},
    "/api/v1/system/models": {"get"},
    "/api/v1/system/repairs": {"get"},
    "/api/v1/system/tpus": {"get"},
    "/api/v1/system/tpus/{tpu_id}": {"get"},
    "/api/v1/system/network/stats": {"get"},
    "/api/v1/system/network/doctor": {"post"},
    "/health": {"get"},
}


async def description(served: Served) -> dict[str, Any]:
    response = await served.client.get("/openapi.json", headers={"Authorization": ""})
    assert response.status_code == 200
    assert "json" in response.headers["content-type"]
    found: dict[str, Any] = response.json()
    return found


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        here = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return here.union(*(references(each) for each in node.values()))
    if isinstance(node, list):
        return set().union(*(references(each) for each in node))
    return set()


@MODULE
async def test_it_is_openapi(served: Served) -> None:
    found = await description(served)
    assert found["openapi"].startswith("3.1.")
    assert found["info"]["title"]
    assert found["info"]["version"]
    ids = []
    for operations in found["paths"].values():
        for operation in operations.values():
            ids.append(operation["operationId"])
            assert operation["summary"]
            assert operation["responses"]
            assert all(re.fullmatch(r"[1-5]\d\d|default", status) for status in operation["responses"])
            assert all(answer["description"] for answer in operation["responses"].values())
            for parameter in operation.get("parameters", []):
                assert parameter["in"] in ("path", "query", "header", "cookie")
                assert parameter["in"] != "path" or parameter["required"]
    assert len(ids) == len(set(ids))
    for name, schema in found["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
    for reference in references(found):
        assert reference.removeprefix("#/components/schemas/") in found["components"]["schemas"]


@MODULE
async def test_every_route(served: Served) -> None:
    found = await description(served)
    assert {path: set(operations) for path, operations in found["paths"].items()} == ROUTES


@MODULE
async def test_what_needs_a_key(served: Served) -> None:
    found = await description(served)
    assert found["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, operations in found["paths"].items():
        for operation in operations.values():
            needed = operation.get("security", found.get("security", []))
            assert bool(needed) == (path != "/health"), path


@MODULE
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"max_tokens": 5, "seed": 1, "stop": ["x"], "top_p": 0.5, "temperature": 2},
        {"model": "coral-reef-chat", "adapter": "chef"},
        {"max_tokens": 0},
        {"adapter": ""},
        {"temperature": 3},
        {"message": ""},
        {"persona_id": None},
        {"stop": ["x"] * 9},
        {"mood": 1},
        {"top_p": 0},
        {"temperature": -1},
    ],
    ids=str,
)
async def test_the_schema_of_a_question_agrees_with_what_is_taken(
    served: Served, more: dict[str, Any]
) -> None:
    found = await description(served)
    schema = {**found["components"]["schemas"]["ChatRequest"], "components": found["components"]}
    body = {"persona_id": "coral", "message": "m"} | more
    response = await served.client.post("/api/v1/chat", json=body)
    assert (response.status_code == 200) == Draft202012Validator(schema).is_valid(body)


@MODULE
async def test_errors_are_problems(served: Served) -> None:
    """Every error that is described has our form, and what happens is described."""
    found = await description(served)
    schema = {**found["components"]["schemas"]["Problem"], "components": found["components"]}
    for path, operations in found["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if status >= "400" and path != "/health":
                    assert set(response["content"]) == {"application/problem+json"}, (path, status)
    tried: list[tuple[str, str, dict[str, Any], int]] = [
        ("post", "/api/v1/chat", {"json": {}}, 400),
        ("post", "/api/v1/chat", {"json": {}, "headers": {"Authorization": ""}}, 401),
        ("post", "/api/v1/chat/stream", {"json": {"persona_id": "nemo", "message": "m"}}, 404),
        ("post", "/api/v1/chat", {"content": b" " * 100_000}, 413),
        ("get", "/api/v1/chat/history/{session_id}", {}, 404),
        ("delete", "/api/v1/chat/history/{session_id}", {}, 404),
        ("post", "/api/v1/embeddings", {"json": {"input": []}}, 400),
        ("post", "/api/v1/embeddings", {"json": {"input": "x"}}, 404),
        ("get", "/api/v1/personas", {"headers": {"Authorization": ""}}, 401),
        ("get", "/health", {"headers": {"X-Long": "x" * 40_000}}, 431),
    ]
    for method, path, more, status in tried:
        response = await served.client.request(method, path.replace("{session_id}", "none"), **more)
        assert response.status_code == status
        assert str(status) in found["paths"][path][method]["responses"]
        Draft202012Validator(schema).validate(response.json())


@MODULE
@pytest.mark.parametrize("path", ["/openapi", "/openapi/", "/openapi/openapi.json", "/openapi/x"])
async def test_there_is_one_description(served: Served, path: str) -> None:
    response = await served.client.get(path)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


class Elements(HTMLParser):
    """What a page holds and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


@MODULE
@pytest.mark.parametrize("path", ["/docs", "/"])
async def test_the_page(served: Served, path: str) -> None:
    response = await served.client.get(path, headers={"Authorization": ""})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    page = Elements()
    page.feed(response.text)
    for route in [*ROUTES, "/ws"]:
        assert route in page.text
    for field in ("persona_id", "max_tokens", "finish_reason"):
        assert field in page.text
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base"})
    assert all(link.startswith("/") and not link.startswith("//") for link in page.links)
    assert "@import" not in response.text
    assert "url(" not in response.text


def test_nothing_deprecated_is_asked_of_the_framework(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert create_app(
            Paths.under(tmp_path), Appliance(), lambda: None, NetworkCounters(Board(1), 0)
        ).routes
