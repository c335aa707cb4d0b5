"""The application: routes, what they are given, how errors look, and the OpenAPI description."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Request, Router
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import NotFoundException
from litestar.middleware import DefineMiddleware
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from appliance import __version__
from appliance.chat.personas import load_personas
from appliance.chat.replies import Chat
from appliance.config.appliance import Appliance
from appliance.identity.keys import ApiKeys
from appliance.paths import Paths
from appliance.storage.async_store import AsyncStore
from appliance.storage.conversations import Conversations
from appliance.storage.database import Database
from appliance.telemetry.network_counters import NetworkCounters
from appliance.wire.messages import Sampling

from . import embeddings, network_doctor, network_statistics, rest, websocket
from .auth import Authentication
from .generator import LeasedGenerator
from .links import SupervisorLink, WorkerLinks
from .pages import docs, openapi_json
from .problems import HANDLERS
from .session_tokens import SessionTokens
from .store import ConversationStore
from .tensors import Tensors


async def nothing_here(request: Request[Any, Any, Any]) -> None:
    """`/openapi.json` is the one description, and `/docs` the one page."""
    raise NotFoundException(f"no {request.url.path}; the description is /openapi.json")


def create_app(
    paths: Paths, appliance: Appliance, reloaded: Callable[[], None], counters: NetworkCounters
) -> Litestar:
    """The application of one gateway process. Of the settings it knows `config.appliance.gateway_part`."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        """Opens the database and the way to the supervisor; closes both."""
        async with AsyncStore() as thread:
            database = await thread.run(Database.open, paths)
            try:
                conversations = ConversationStore(thread, Conversations(database))
                supervisor = SupervisorLink(
                    str(paths.control_socket),
                    queue_s=appliance.scheduler.queue_timeout_s,
                    on_reloaded=reloaded,
                    on_session_ended=lambda: tokens.forget(),
                )
                tokens = SessionTokens(supervisor.holder_of, time.monotonic)
                supervisor.start()
                workers = WorkerLinks()
                generator = LeasedGenerator(supervisor, workers)
                tensors = Tensors(supervisor, workers)
                chat = Chat(
                    load_personas(),
                    conversations,
                    generator,
                    history_messages=appliance.chat.history_messages,
                    message_limit_chars=appliance.gateway.message_limit_chars,
                    emotions=tensors,
                    defaults=Sampling(
                        max_tokens=appliance.chat.max_tokens,
                        temperature=appliance.chat.temperature,
                        top_p=appliance.chat.top_p,
                    ),
                )
                app.state.update(
                    {
                        "paths": paths,
                        "api_keys": ApiKeys(database),
                        "session_tokens": tokens,
                        "store_thread": thread,
                        "conversations": conversations,
                        "generator": generator,
                        "chat": chat,
                        "tensors": tensors,
                    }
                )
                try:
                    yield
                finally:
                    await chat.close()
                    await generator.close()
            finally:
                await thread.run(database.close)

    async def chat_service(state: State) -> Chat:
        found: Chat = state.chat
        return found

    async def conversations(state: State) -> ConversationStore:
        found: ConversationStore = state.conversations
        return found

    async def generator(state: State) -> LeasedGenerator:
        found: LeasedGenerator = state.generator
        return found

    async def session_tokens(state: State) -> SessionTokens:
        found: SessionTokens = state.session_tokens
        return found

    async def tensors(state: State) -> Tensors:
        found: Tensors = state.tensors
        return found

    async def network_counters() -> NetworkCounters:
        return counters

    api = Router(
        "/",
        route_handlers=[
            *rest.ROUTES,
            embeddings.embeddings,
            network_statistics.network_stats,
            network_doctor.network_doctor,
            websocket.chat_socket,
        ],
        middleware=[DefineMiddleware(Authentication)],
        security=[{"key": []}],
    )
    return Litestar(
        [api, rest.health, openapi_json, docs],
        lifespan=[lifespan],
        exception_handlers=HANDLERS,
        dependencies={
            "chat_service": Provide(chat_service),
            "conversations": Provide(conversations),
            "generator": Provide(generator),
            "tensors": Provide(tensors),
            "session_tokens": Provide(session_tokens),
            "counters": Provide(network_counters),
        },
        openapi_config=OpenAPIConfig(
            title="Coral-Reef",
            version=__version__,
            description="Chat with the personas of a Coral-Reef tower.",
            use_handler_docstrings=True,
            # The framework insists on a place of its own for the description, and answers every path below it with HTML.
            openapi_router=Router(
                "/openapi", route_handlers=[], include_in_schema=False, before_request=nothing_here
            ),
            render_plugins=[JsonRenderPlugin()],
            components=Components(
                security_schemes={
                    "key": SecurityScheme(
                        type="http", scheme="bearer", description="an API key: Authorization: Bearer KEY"
                    )
                }
            ),
        ),
        request_max_body_size=appliance.gateway.body_limit_bytes,
        logging_config=None,
    )
