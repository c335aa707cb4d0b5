"""The least that a server can be: an application on uvicorn without a framework, keys, sessions, a database, or a process of its
own for the engine. `python -m tests.bench.bare PORT MODEL SLOTS [--flash]`

POST /chat writes a reply with the engine in this process, which has our settings, or with `--flash` flash attention (see
`engine_alone`); GET /BYTES answers with so many bytes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from appliance.chat.personas import load_personas

from .engine_alone import load


def main() -> None:
    port, model, slots = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    engine = load(model, slots=slots, window=1024, batch=128, flash="--flash" in sys.argv)
    threads = ThreadPoolExecutor(slots)
    system = load_personas()["coral"].system

    def write(question: dict[str, Any]) -> bytes:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question["message"]}]
        wanted = {key: question[key] for key in ("max_tokens", "temperature", "top_p", "seed")}
        said: list[str] = []

        def take(data: bytes) -> bool:
            said.extend(choice["delta"].get("content") or "" for choice in json.loads(data)["choices"])
            return False

        engine.handle_chat_completions(
            json.dumps({"messages": messages, "stream": True, **wanted}).encode(), take
        )
        return json.dumps({"content": "".join(said)}).encode()

    async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        assert scope["type"] == "http"
        if scope["path"] == "/chat":
            body, more = b"", True
            while more:
                event = await receive()
                assert event["type"] == "http.request"
                body += event["body"]
                more = event["more_body"]
            answer = await asyncio.get_running_loop().run_in_executor(threads, write, json.loads(body))
        else:
            answer = b"x" * int(scope["path"][1:])
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": False})
        await send({"type": "http.response.body", "body": answer, "more_body": False})

    uvicorn.run(
        app, port=port, lifespan="off", log_level="error", access_log=False, loop="uvloop", http="httptools"
    )


if __name__ == "__main__":
    main()
