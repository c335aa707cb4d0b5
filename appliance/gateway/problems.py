"""Every error as `application/problem+json` (RFC 9457): what is wrong, which field, what to do."""

from __future__ import annotations

import logging
import re
import traceback
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.status_codes import HTTP_500_INTERNAL_SERVER_ERROR

from appliance.chat.errors import ChatError

log = logging.getLogger(__name__)

#: How msgspec names a field that is missing or unknown.
_QUOTED_FIELD = re.compile(r"field `([^`]*)`")


class Field(msgspec.Struct, frozen=True):
    """One field of a request that is wrong."""

    field: str
    message: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The body of an error. `code` is for programs, `detail` for people."""

    title: str
    status: int
    code: str
    detail: str = ""
    type: str = "about:blank"
    errors: list[Field] = []


#: What the status of a problem means, for the description of the API.
MEANINGS = {
    400: "the request is wrong; `errors` names the fields",
    401: "no API key, or one that is not valid",
    403: "your API key may not do this",
    404: "there is no such persona, session, model or TPU, or it is not yours",
    408: "the request was not complete in time",
    413: "the body is too large",
    431: "the request's line and headers are too large",
    502: "the worker died, or its engine gave up; ask again",
    503: "no place was free in time, or a part is being restarted; `Retry-After` says when to ask again",
}


def respond(problem: Problem, headers: dict[str, str] | None = None) -> Response[bytes]:
    """The response that carries a problem."""
    return Response(
        msgspec.json.encode(problem),
        status_code=problem.status,
        media_type="application/problem+json",
        headers=headers,
    )


def _titles(status: int) -> str:
    from http import HTTPStatus

    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def of_http(_request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """What the framework refused: bad JSON, a wrong field, an unknown path, no key."""
    status = error.status_code
    fields: list[Field] = []
    detail = error.detail
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        fields = [
            Field(_field(each), str(each.get("message", "")))
            for each in error.extra
            if isinstance(each, dict)
        ]
        detail = "; ".join(f"{each.field}: {each.message}" if each.field else each.message for each in fields)
    codes = {
        400: "bad_request",
        401: "unauthorized",
        403: "forbidden",
        404: "not_found",
        405: "method_not_allowed",
        413: "too_large",
    }
    problem = Problem(
        title=_titles(status),
        status=status,
        code=codes.get(status, "http_error"),
        detail=detail,
        errors=fields,
    )
    return respond(problem, dict(error.headers or {}))


def _field(extra: dict[str, Any]) -> str:
    """The field of a validation message: the one that the text quotes as missing or unknown, else the framework's key."""
    key = str(extra.get("key") or "")
    quoted = _QUOTED_FIELD.search(str(extra.get("message", "")))
    if quoted is None:
        return "" if key == "data" else key  # `data` is the framework's name for the whole body
    return quoted[1] if key in ("", "data") else f"{key}.{quoted[1]}"


def of_chat(_request: Request[Any, Any, Any], error: ChatError) -> Response[bytes]:
    """What the chat refused."""
    headers = {"Retry-After": "1"} if error.status == 503 else {}
    return respond(
        Problem(title=_titles(error.status), status=error.status, code=error.code, detail=error.message),
        headers,
    )


def _in_decoder(error: Exception) -> bool:
    """Whether the error comes out of the framework's JSON decoder, which lets two kinds of bad input through as they are."""
    return isinstance(error, RecursionError | UnicodeDecodeError) and any(
        frame.filename.endswith("litestar/serialization/msgspec_hooks.py")
        for frame in traceback.extract_tb(error.__traceback__)
    )


def of_bug(_request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """What nobody expected: the log has the trace, the client only learns that it is our fault."""
    if _in_decoder(error):
        detail = "too deeply nested" if isinstance(error, RecursionError) else "not valid UTF-8"
        return respond(
            Problem(title=_titles(400), status=400, code="bad_request", detail=f"the body is {detail}")
        )
    log.error("internal error", exc_info=error)
    status = HTTP_500_INTERNAL_SERVER_ERROR
    return respond(
        Problem(
            title=_titles(status), status=status, code="internal_error", detail="a bug of ours: see the log"
        )
    )


HANDLERS: dict[Any, Any] = {HTTPException: of_http, ChatError: of_chat, Exception: of_bug}
