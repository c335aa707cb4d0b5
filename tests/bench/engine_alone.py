"""The engine alone in this process: `python -m tests.bench.engine_alone MODEL STREAMS TOKENS`. Prints one line of JSON."""

from __future__ import annotations

import os

os.environ["OMP_WAIT_POLICY"] = "passive"

import json
import resource
import sys
import tempfile
import threading
import time

import xllamacpp

PROMPT = "You are Coral, the host of the Coral-Reef tower. You are kind and clear."


def main() -> None:
    model, streams, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_parallel = streams
    params.n_ctx = streams * 1024
    params.n_batch = params.n_ubatch = 128
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_ram_mib = 64
    params.hostnames = [tempfile.mkdtemp(prefix="bench-") + "/engine.sock"]
    params.warmup = params.ui = params.ctx_shift = False
    params.force_pure_content_parser = True
    params.verbosity = -1
    server = xllamacpp.Server(params)
    first: list[float] = []

    def ask(number: int, count: int) -> None:
        messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": f"What is {number}?"}]
        body = {"messages": messages, "stream": True, "max_tokens": count, "temperature": 1.0, "seed": number}
        began = time.perf_counter()
        seen = [0]

        def take(_: bytes) -> bool:
            seen[0] += 1
            if seen[0] == 2:  # the first chunk only names the role
                first.append(time.perf_counter() - began)
            return False

        server.handle_chat_completions(json.dumps(body).encode(), take)

    ask(1000, 8)
    cold = first[0]
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    threads = [threading.Thread(target=ask, args=(number, tokens)) for number in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        json.dumps({"tokens": streams * tokens, "cpu_s": cpu, "wall_s": wall, "first_token_s": cold}),
        flush=True,
    )
    os._exit(0)  # the engine's threads do not end by themselves


if __name__ == "__main__":
    main()
