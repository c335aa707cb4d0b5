"""The page that explains the API to people: the OpenAPI description as plain HTML, without scripts or anything from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

import msgspec
from litestar import Litestar, MediaType, Request, get

from .embeddings import EmbeddingsRequest
from .envelope import ChatRequest
from .problems import MEANINGS, Problem

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --coral: #e8604c; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
h1 { color: var(--coral); } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
details { border: 1px solid var(--line); border-radius: .5rem; margin: .6rem 0; padding: .5rem .9rem; }
summary { cursor: pointer; } code, pre { font: 14px/1.45 ui-monospace, monospace; }
pre { background: var(--soft); border-radius: .4rem; padding: .7rem; overflow-x: auto; }
.method { display: inline-block; min-width: 4rem; font-weight: 700; color: var(--coral); }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; border-top: 1px solid var(--line); }
"""

_INTRODUCTION = """
<p>{description} Every call but <code>/health</code> carries your API key, <code>Authorization: Bearer KEY</code>;
the first one was written to <code>admin.key</code> in the state folder. Errors come as <code>application/problem+json</code>.</p>
<pre>curl -H "Authorization: Bearer $(cat .state/admin.key)" -H "Content-Type: application/json" \\
  -d '{{"persona_id": "coral", "message": "What are you?"}}' http://127.0.0.1:8080/api/v1/chat</pre>
<h2>WebSocket</h2>
<p><code>/ws</code> takes and sends <code>{{"type": ..., "payload": {{...}}}}</code>. A browser offers the subprotocols
<code>coral-reef</code> and <code>bearer.KEY</code>.</p>
<table>
<tr><th>you send</th><td><code>chat</code> (the body of <code>POST /api/v1/chat</code>, and <code>stream</code>),
<code>cancel {{request_id}}</code>, <code>ping</code>; as an administrator <code>subscribe {{channels: ["system"]}}</code> and
<code>unsubscribe</code>, which are answered with <code>system {{event: "subscribed", data: {{channels}}}}</code></td></tr>
<tr><th>you get</th><td><code>system {{event: "request_started", data: {{request_id, session_id}}}}</code>,
<code>system {{event: "queued", data: {{request_id, position}}}}</code> while it waits (1 is the next),
<code>system {{event: "progress", data: {{request_id, done, total}}}}</code> while a long conversation is read (tokens),
<code>token {{content, request_id}}</code>,
<code>persona_emotion {{persona_id, emotion, intensity}}</code> before the end where a model tells,
<code>done {{request_id, usage, finish_reason}}</code>,
<code>error {{code, message, request_id}}</code>, <code>pong {{latency_ms}}</code></td></tr>
<tr><th>of the channel system</th><td><code>system {{event: "repair", data: {{id, kind, subject, severity, since, what,
advice, fix, gone}}}}</code> when something is wrong, changes, or is gone; <code>system {{event: "worker", data: {{name, state,
...}}}}</code> (as in <code>/api/v1/system/status</code>) when a worker changes its state; <code>system {{event: "tpu",
data: {{id, state, ...}}}}</code> (as in <code>/api/v1/system/tpus</code>) when a TPU does; <code>system {{event: "events_lost",
data: {{count}}}}</code> in place of those that you were too slow for: ask for the status then</td></tr>
</table>
"""


#: What may become of any request below the application (see `protocols`).
ERRORS_OF_ALL = (408, 431)

#: The errors of each operation beside those, and 401 wherever a key is needed.
ERRORS: dict[tuple[str, str], tuple[int, ...]] = {
    ("post", "/api/v1/chat"): (400, 404, 413, 502, 503),
    ("post", "/api/v1/chat/stream"): (400, 404, 413, 503),
    ("get", "/api/v1/chat/history/{session_id}"): (400, 404, 503),
    ("delete", "/api/v1/chat/history/{session_id}"): (400, 404, 503),
    ("post", "/api/v1/embeddings"): (400, 404, 413, 502, 503),
    ("get", "/api/v1/personas"): (),
    ("get", "/api/v1/system/status"): (503,),
    ("get", "/api/v1/system/models"): (503,),
    ("get", "/api/v1/system/repairs"): (503,),
    ("get", "/api/v1/system/tpus"): (403, 503),
    ("get", "/api/v1/system/tpus/{tpu_id}"): (400, 403, 404, 503),
    ("get", "/api/v1/system/network/stats"): (403,),
    ("post", "/api/v1/system/network/doctor"): (400, 403, 413, 503),
    ("get", "/health"): (),
}


def describe(app: Litestar) -> dict[str, Any]:
    """The framework's description, with our request and our errors as they are: the framework leaves out limits of 0, and that
    unknown fields are refused, and knows of one error only, in a form of its own."""
    found = app.openapi_schema.to_schema()
    _, components = msgspec.json.schema_components(
        [ChatRequest, EmbeddingsRequest, Problem], ref_template="#/components/schemas/{name}"
    )
    found["components"]["schemas"].update(components)
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            errors = [*ERRORS_OF_ALL, *ERRORS[method, path], *([401] if operation.get("security") else [])]
            kept = {status: each for status, each in operation["responses"].items() if status < "400"}
            operation["responses"] = kept | {str(status): _problem(status) for status in sorted(errors)}
    health = found["paths"]["/health"]["get"]["responses"]
    health["503"] = {**health["200"], "description": "a chat would not be answered; `detail` says why"}
    return found


def _problem(status: int) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": MEANINGS[status], "content": {"application/problem+json": {"schema": schema}}}


@get("/openapi.json", include_in_schema=False, sync_to_thread=False, constant=True)
def openapi_json(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """The OpenAPI 3.1 description, for programs."""
    return describe(request.app)


@get(["/", "/docs"], include_in_schema=False, media_type=MediaType.HTML, sync_to_thread=False, constant=True)
def docs(request: Request[Any, Any, Any]) -> str:
    """The same for people; whoever opens the bare address in a browser reads it too."""
    return page(describe(request.app))


def page(description: dict[str, Any]) -> str:
    """The whole page of an OpenAPI 3.1 description."""
    info = description["info"]
    groups: dict[str, list[str]] = {}
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            if isinstance(operation, dict) and "responses" in operation:
                tag = (operation.get("tags") or ["other"])[0]
                groups.setdefault(tag, []).append(_operation(path, method, operation, description))
    body = "".join(f"<h2>{escape(tag)}</h2>{''.join(parts)}" for tag, parts in groups.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>"
        f"{_INTRODUCTION.format(description=escape(info.get('description', '')))}{body}"
        '<p><a href="/openapi.json">openapi.json</a> for programs.</p></body></html>'
    )


def _operation(path: str, method: str, operation: dict[str, Any], root: dict[str, Any]) -> str:
    title = f'<span class="method">{escape(method.upper())}</span> <code>{escape(path)}</code>'
    parts = [f"<details><summary>{title} {escape(operation.get('summary', ''))}</summary>"]
    parts.append(f"<p>{escape(operation.get('description', ''))}</p>")
    body = operation.get("requestBody", {}).get("content", {})
    parts += [_fields("you send", _resolve(content["schema"], root), root) for content in body.values()]
    parts += [
        f"<p><code>{escape(each['name'])}</code> {escape(each.get('description', ''))}</p>"
        for each in operation.get("parameters", [])
    ]
    for status, response in operation["responses"].items():
        if not status.startswith("2"):
            continue
        for kind, content in (response.get("content") or {}).items():
            schema = _resolve(content.get("schema", {}), root)
            parts.append(_fields(f"{status} {kind}", schema, root))
    return "".join(parts) + "</details>"


def _fields(title: str, schema: dict[str, Any], root: dict[str, Any]) -> str:
    rows = []
    required = set(schema.get("required", []))
    for name, field in schema.get("properties", {}).items():
        field = _one(field)
        text = " ".join(filter(None, (field.get("description"), _limits(field))))
        rows.append(
            f"<tr><td><code>{escape(name)}</code>{'' if name in required else ' (optional)'}</td>"
            f"<td>{escape(_kind(field, root))}</td><td>{escape(text)}</td></tr>"
        )
    return f"<h4>{escape(title)}</h4><table>{''.join(rows)}</table>"


def _resolve(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref", "")
    if reference.startswith("#/components/schemas/"):
        found: dict[str, Any] = root["components"]["schemas"][reference.rpartition("/")[2]]
        return found
    return schema


def _one(field: dict[str, Any]) -> dict[str, Any]:
    """An optional field as what it is when it is given."""
    given = [each for each in field.get("oneOf") or field.get("anyOf") or [] if each.get("type") != "null"]
    return (
        {**given[0], **{k: v for k, v in field.items() if k not in ("oneOf", "anyOf")}}
        if len(given) == 1
        else field
    )


def _kind(field: dict[str, Any], root: dict[str, Any]) -> str:
    if "$ref" in field:
        resolved = _resolve(field, root)
        return _kind(resolved, root) if "enum" in resolved else str(field["$ref"].rpartition("/")[2])
    if "enum" in field:
        return " | ".join(json.dumps(value) for value in field["enum"])
    if choices := field.get("oneOf") or field.get("anyOf"):
        return " | ".join(_kind(each, root) for each in choices if each.get("type") != "null")
    kind = field.get("type", "")
    if kind == "array":
        return f"list of {_kind(field.get('items', {}), root)}"
    return " | ".join(kind) if isinstance(kind, list) else str(kind)


def _limits(field: dict[str, Any]) -> str:
    names = {
        "minimum": "from",
        "maximum": "to",
        "minLength": "at least",
        "maxLength": "at most",
        "maxItems": "at most",
        "exclusiveMinimum": "above",
    }
    found = [f"{word} {field[key]}" for key, word in names.items() if key in field]
    return f"({', '.join(found)})" if found else ""
