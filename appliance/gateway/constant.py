"""Routes whose answer is the same for every caller as long as this process lives, sent without the framework, which takes three
times as long as all the rest.

A route says so itself: `@get(..., constant=True)`. The framework makes its answer once, and the very same messages go out from
then on. What is not plainly allowed (no key, one that is not known by heart, an odd host) is the framework's: it alone refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from litestar import Litestar
from litestar.middleware import DefineMiddleware
from litestar.routes import HTTPRoute
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, HTTPScope, Scope

from appliance.identity.keys import ApiKeys

from .auth import Authentication, bearer_key, first_header

#: What `opt` of a route's handler calls it.
CONSTANT = "constant"

#: Far less than the framework allows.
_PLAIN_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]*")


class _Answer:
    """What the framework answered, and whether it asks for a key; empty until it has."""

    def __init__(self, *, keyed: bool) -> None:
        self.keyed = keyed
        self.messages: tuple[ASGISendEvent, ...] = ()

    def recording(self, send: ASGISendCallable) -> ASGISendCallable:
        """`send`, and what went through it is kept when it is a whole answer with the status 200."""
        sent: list[ASGISendEvent] = []

        async def record(message: ASGISendEvent) -> None:
            sent.append(message)
            match sent:
                case [{"status": 200}, {"body": _, "more_body": False}]:
                    self.messages = tuple(sent)
            await send(message)

        return record


class Constant:
    """An ASGI application before the framework's: the answers that it has made once, and HEAD."""

    def __init__(self, app: Litestar) -> None:
        self.framework = app
        self.answers = {
            route.path: _Answer(keyed=_needs_key(handler.resolve_middleware()))
            for route in app.routes
            if isinstance(route, HTTPRoute)
            for handler in route.route_handlers
            if handler.opt.get(CONSTANT)
        }

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            answer = self.answers.get(scope["path"])
            if answer is not None:
                if answer.messages and self._plainly_allowed(scope, answer):
                    for message in answer.messages:
                        await send(message)
                    return
                send = answer.recording(send)
            if scope["method"] == "HEAD":
                # GET without the body, which uvicorn leaves out; the framework would answer 405.
                scope = {**scope, "method": "GET"}
        await self.framework(scope, receive, send)  # type: ignore[arg-type]

    def _plainly_allowed(self, scope: HTTPScope, answer: _Answer) -> bool:
        if _PLAIN_HOST.fullmatch(first_header(scope["headers"], b"host")) is None:
            return False
        if not answer.keyed:
            return True
        key = bearer_key(scope["headers"])
        keys: ApiKeys = self.framework.state.api_keys
        return key is not None and keys.remembered(key) is not None


def _needs_key(middleware: Iterable[object]) -> bool:
    return any(
        isinstance(each, DefineMiddleware) and each.middleware is Authentication for each in middleware
    )
