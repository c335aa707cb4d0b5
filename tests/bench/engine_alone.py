"""The engine alone in this process: `python -m tests.bench.engine_alone MODEL STREAMS TOKENS`. Prints one line of JSON.

With `--prompt N` one stream writes while another request with a prompt of some N words is read: how long is the first silent?
With `--flash` the engine may use flash attention, ours may not: replies would depend on what else is asked (see `TextEngine`).
"""

from __future__ import annotations

import os

os.environ["OMP_WAIT_POLICY"] = "passive"

import argparse
import itertools
import json
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import xllamacpp

PROMPT = "You are Coral, the host of the Coral-Reef tower. You are kind and clear."

#: A stream that is to be interrupted has written so many pieces before.
BEFORE = 20


def load(model: str, *, slots: int, window: int, batch: int, flash: bool = False) -> Any:
    """A server with the settings of our worker, as far as they concern speed, but for `flash`; `batch` 0: the engine's own."""
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_parallel = slots
    params.n_ctx = slots * window
    if batch:
        params.n_batch = params.n_ubatch = batch
    if not flash:
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_ram_mib = 64
    params.hostnames = [tempfile.mkdtemp(prefix="bench-") + "/engine.sock"]
    params.warmup = params.ui = params.ctx_shift = False
    params.force_pure_content_parser = True
    params.verbosity = -1
    return xllamacpp.Server(params)


def ask(server: Any, question: str, *, tokens: int, seed: int, take: Callable[[], bool]) -> None:
    """One reply; `take` is called for each piece and stops it with True."""
    messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": question}]
    body = {"messages": messages, "stream": True, "max_tokens": tokens, "temperature": 1.0, "seed": seed}
    server.handle_chat_completions(json.dumps(body).encode(), lambda _data: take())


def throughput(server: Any, streams: int, tokens: int) -> dict[str, float]:
    """So many streams at once, after one that says how long a first token takes."""
    moments: list[float] = []

    def note() -> bool:
        moments.append(time.perf_counter())
        return False

    asked = time.perf_counter()
    ask(server, "What is 1000?", tokens=8, seed=1000, take=note)
    first_token_s = moments[1] - asked  # the first chunk only names the role
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    threads = [
        threading.Thread(
            target=ask,
            args=(server, f"What is {number}?"),
            kwargs={"tokens": tokens, "seed": number, "take": lambda: False},
        )
        for number in range(streams)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall_s = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"tokens": streams * tokens, "cpu_s": cpu_s, "wall_s": wall_s, "first_token_s": first_token_s}


def silence(server: Any, words: int) -> dict[str, float]:
    """The longest pause of a stream while a neighbour's prompt of so many words is read."""
    moments: list[float] = []
    writing, over = threading.Event(), threading.Event()

    def note() -> bool:
        moments.append(time.perf_counter())
        if len(moments) == BEFORE:
            writing.set()
        return over.is_set()

    neighbour = threading.Thread(
        target=ask, args=(server, "Go on."), kwargs={"tokens": 100_000, "seed": 1, "take": note}
    )
    neighbour.start()
    writing.wait()
    ask(server, "tide " * words, tokens=1, seed=2, take=lambda: False)
    over.set()
    neighbour.join()
    return {"silence_s": max(b - a for a, b in itertools.pairwise(moments[BEFORE - 1 :]))}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("streams", type=int)
    parser.add_argument("tokens", type=int)
    parser.add_argument("--prompt", type=int)
    parser.add_argument("--flash", action="store_true")
    asked = parser.parse_args()
    if asked.prompt is None:
        server = load(asked.model, slots=asked.streams, window=1024, batch=128, flash=asked.flash)
        found = throughput(server, asked.streams, asked.tokens)
    else:
        server = load(asked.model, slots=asked.streams, window=asked.tokens, batch=0, flash=asked.flash)
        found = silence(server, asked.prompt)
    print(json.dumps(found), flush=True)
    os._exit(0)  # the engine's threads do not end by themselves


if __name__ == "__main__":
    main()
