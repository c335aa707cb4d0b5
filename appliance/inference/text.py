"""The text engine: llama.cpp's server core in this process, through xllamacpp.

One `TextEngine` is one loaded GGUF with `slots` places. `generate` blocks a thread for one reply; the engine batches all of them.
What is known of it, and why each setting is what it is, stands at the settings.
"""

from __future__ import annotations

import gc
import http.client
import importlib.metadata
import re
import socket
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from appliance.process import available_cores
from appliance.wire.messages import EngineBuild, Finished, FinishReason, Generate, Turn, Usage

from . import prefill
from .errors import AdapterUnknown, EngineFailed, PromptTooLong
from .gguf import read_gguf, read_shapes
from .lora import write_null

#: An answer of the engine's own HTTP side takes about a millisecond; a hang there is a bug, not a load.
ENGINE_TIMEOUT_S = 30.0

#: A token holds at least one byte of text, and a template adds a few tokens a turn: what is this short fits for certain.
TEMPLATE_TOKENS_PER_TURN = 16
TEMPLATE_TOKENS = 128


class _Choice(msgspec.Struct, frozen=True):
    text: str = ""
    finish_reason: str | None = None


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int = 0


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details = _Details()


class _Error(msgspec.Struct, frozen=True):
    message: str = ""
    type: str = ""
    n_prompt_tokens: int = 0
    n_ctx: int = 0


class _Progress(msgspec.Struct, frozen=True):
    total: int = 0
    cache: int = 0
    processed: int = 0


class _Chunk(msgspec.Struct, frozen=True):
    """The parts that matter of a chunk of `/v1/completions`: progress of the prompt, a token, or the end with the usage."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    prompt_progress: _Progress | None = None
    error: _Error | None = None


_chunk_decoder = msgspec.json.Decoder(_Chunk)
_json = msgspec.json.Encoder()


class _EngineConnection(http.client.HTTPConnection):
    """HTTP to the engine's own UNIX socket: the only way to its tokenizer."""

    def __init__(self, path: str) -> None:
        super().__init__("engine", timeout=ENGINE_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ENGINE_TIMEOUT_S)
        self.sock.connect(self._path)


def _installed_build() -> EngineBuild:
    distribution = importlib.metadata.distribution("xllamacpp")
    # `Tag: cp310-abi3-manylinux...` is made for every machine, `...-linux_x86_64` where it is installed (PEP 600).
    native = re.search(r"(?m)^Tag: \S+-linux_\w+$", distribution.read_text("WHEEL") or "")
    return EngineBuild(version=distribution.version, build="native" if native else "wheel")


#: Read when the engine is imported: `make native` may replace it on the disk, not in a process that runs.
_BUILD = _installed_build()


def _adapter(xllamacpp: Any, path: Path) -> Any:
    info = xllamacpp.CommonAdapterLoraInfo()
    info.path, info.scale = str(path), 0.0
    return info


def engine_build() -> EngineBuild:
    """Which build of the engine this process has. Uses the engine: never to be called before a fork."""
    import xllamacpp

    features = re.findall(r"(\w+) = 1\b", xllamacpp.get_system_info())
    return msgspec.structs.replace(_BUILD, features=features)


class TextEngine:
    """A loaded model. EngineFailed when it does not load."""

    def __init__(
        self,
        model: Path,
        folder: Path,
        *,
        slots: int,
        threads: int,
        context_tokens: int,
        batch_tokens: int,
        cache_mib: int,
        adapters: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        """`adapters` by name: EngineFailed when one does not fit the model. `batch_tokens` 0: measured, so that a step takes at
        most 250 ms (see `prefill`); else at least `slots`."""
        import xllamacpp

        self._socket = str(folder / "engine.sock")
        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.n_parallel = slots
        params.n_ctx = slots * context_tokens
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cache_ram_mib = cache_mib  # the default of 8 GiB is beyond any worker's ceiling
        params.hostnames = [self._socket]  # else it opens a TCP port that anybody may use
        params.n_threads_http = 2
        params.ctx_shift = False
        # Flash attention computes a step of 64 tokens or more in tiles whose rounding depends on where the step begins, and so
        # on what else was asked at that moment: of 24 sessions on 4 slots, 14 wrote greedily something else than alone; without
        # it, none did.
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.warmup = False
        params.ui = False
        # The chat template writes prompts, nothing is to be parsed out of the replies.
        params.force_pure_content_parser = True
        params.verbosity = -1
        #: Calls back from the engine, and the seconds between two of one reply (a running mean): threads race for them, which
        #: costs a count now and then and no harm, since only their growth matters.
        self.steps = 0
        self.pace_s = 0.0
        #: Names of the adapters that were loaded with the model. In the engine the last one is that of zeros: see `lora`.
        self.adapters = tuple(adapters)
        if adapters:
            first = next(iter(adapters.values()))
            null = folder / "null.gguf"
            write_null(read_shapes(first), read_gguf(first).architecture, null)
            params.lora_adapters = [_adapter(xllamacpp, path) for path in (*adapters.values(), null)]
            params.lora_init_without_apply = True
            params.cache_ram_mib = 0  # the memory of prompts seen before does not tell adapters apart
        self._server: Any = None
        self._load(params, max(batch_tokens or prefill.LARGEST, slots))
        properties = self._get("/props")
        self.context_tokens = int(properties["default_generation_settings"]["n_ctx"])
        self.step_s = 0.0
        if not batch_tokens:
            cost = prefill.cost_of(self._measure(threads))
            chosen = prefill.choose(cost, window=self.context_tokens, slots=slots)
            if chosen != self.batch_tokens:
                self._load(params, chosen)
            self.step_s = cost.step_s(chosen, max(self.context_tokens - chosen, 0))

    def _load(self, params: Any, batch_tokens: int) -> None:
        """Loads the model; `batch_tokens` can be chosen here only. Between two steps of so many tokens of prompts the
        neighbours get their token and a cancel is seen."""
        import xllamacpp

        if self._server is not None:
            self._server = None
            gc.collect()  # its threads end, and its memory is free, before the next one needs them
        # Loading fails on a socket that a predecessor left behind.
        Path(self._socket).unlink(missing_ok=True)
        params.n_batch = params.n_ubatch = self.batch_tokens = batch_tokens
        try:
            self._server = xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            raise EngineFailed(f"{params.model.path}: the engine does not load it: {error}") from error

    def _measure(self, threads: int) -> list[prefill.Step]:
        """Reads a throw-away prompt and tells what its steps cost. In processor time: what else runs on the machine at this
        moment says nothing of the model."""
        words = min(prefill.STEPS * self.batch_tokens, self.context_tokens // 2)
        body = {
            "prompt": "tide " * words,
            "stream": True,
            "return_progress": True,
            "max_tokens": 1,
            "cache_prompt": False,
            **self._scales(""),
        }
        parallel = min(threads, available_cores())
        began = time.monotonic()
        seen: list[tuple[int, float]] = []

        def take(data: bytes) -> bool:
            progress = _chunk_decoder.decode(data).prompt_progress
            if progress is not None:
                seen.append((progress.processed, time.process_time()))
            return len(seen) > 1 and time.monotonic() - began > prefill.MEASURE_S

        try:
            self._server.handle_completions(_json.encode(body), take)
        except RuntimeError as error:
            raise EngineFailed(f"the engine refused the request: {error}") from error
        steps = [
            prefill.Step(before, after - before, (end - start) / parallel)
            for (before, start), (after, end) in pairwise(seen)
            if after - before == self.batch_tokens  # the rest of a prompt is short, and dear for its length
        ]
        return steps[1:] or steps  # the first one pays for memory that is touched for the first time

    def generate(
        self,
        request: Generate,
        emit: Callable[[str], None],
        cancelled: Callable[[], bool],
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> Finished:
        """Writes one reply: calls `emit` with each piece of text and `progress` with the tokens of the prompt that were read, of
        how many; asks `cancelled` after each token and each step of the prompt.

        Blocks. AdapterUnknown when the request's was not loaded (the engine would ignore it); PromptTooLong when the newest
        message does not fit; EngineFailed when the engine gives up.
        """
        if request.adapter and request.adapter not in self.adapters:
            raise AdapterUnknown(request.adapter, self.adapters)
        sampling = request.sampling
        turns = self._fit(list(request.turns), sampling.max_tokens)
        body: dict[str, object] = {
            # Not `messages`: of a chat completion the engine says nothing at tokens without text (those that are not shown, and
            # text that may become a stop string), and a reply of them could neither be cancelled nor told from a stall. Of a
            # completion it is silent only in the middle of a character.
            "prompt": self._post("/apply-template", {"messages": turns})["prompt"],
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop": sampling.stop,
            "cache_prompt": True,
            **self._scales(request.adapter),
            # Never `id_slot`: with the prompt cache on, two sessions pinned to one slot overwrite each other's KV.
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        reason: str | None = None
        usage = _Usage()
        reading = _Progress()
        failure: _Error | None = None
        written = 0
        stopped = False
        before = time.monotonic()

        def take(data: bytes) -> bool:
            nonlocal reason, usage, reading, failure, written, stopped, before
            now = time.monotonic()
            self.steps += 1
            self.pace_s += 0.05 * (now - before - self.pace_s)
            before = now
            chunk = _chunk_decoder.decode(data)
            if chunk.error is not None:
                failure = chunk.error
                return True
            for choice in chunk.choices:
                if choice.text:
                    emit(choice.text)
                reason = choice.finish_reason or reason
            if chunk.usage is not None:
                usage = chunk.usage
                return False
            if chunk.prompt_progress is not None:
                reading = chunk.prompt_progress
                progress(reading.processed, reading.total)
            else:
                written += 1
            stopped = cancelled()
            return stopped

        try:
            self._server.handle_completions(_json.encode(body), take)
        except RuntimeError as error:
            raise EngineFailed(f"the engine refused the request: {error}") from error
        if failure is not None:
            if failure.type == "exceed_context_size_error":
                raise PromptTooLong(failure.n_prompt_tokens, failure.n_ctx)
            raise EngineFailed(failure.message)
        if stopped:
            return Finished(
                request_id=request.request_id,
                finish_reason=FinishReason.CANCELLED,
                usage=Usage(
                    prompt_tokens=reading.total, completion_tokens=written, cached_tokens=reading.cache
                ),
            )
        if reason not in ("stop", "length"):
            raise EngineFailed(f"the engine ended a reply with {reason!r}")
        return Finished(
            request_id=request.request_id,
            finish_reason=FinishReason(reason),
            usage=Usage(
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cached_tokens=usage.prompt_tokens_details.cached_tokens,
            ),
        )

    def _scales(self, adapter: str) -> dict[str, object]:
        """What says that this adapter is used and no other; empty for the one of zeros."""
        if not self.adapters:
            return {}
        number = self.adapters.index(adapter) if adapter else len(self.adapters)
        return {"lora": [{"id": number, "scale": 1.0}]}

    def count(self, turns: list[Turn]) -> int:
        """Tokens of a conversation in the model's chat template, the reply's opening included."""
        answer = self._post("/v1/chat/completions/input_tokens", {"messages": turns})
        return int(answer["input_tokens"])

    def _fit(self, turns: list[Turn], max_tokens: int) -> list[Turn]:
        """Leaves out the oldest turns until the reply has room: its full length or a quarter of the window."""
        room = self.context_tokens - min(max_tokens, self.context_tokens // 2)
        size = sum(len(turn.content.encode()) + TEMPLATE_TOKENS_PER_TURN for turn in turns)
        if size + TEMPLATE_TOKENS <= room or self.count(turns) <= room:
            return turns
        fixed = 1 if turns[0].role == "system" else 0
        # The replies go with what they answered: a conversation starts with the user.
        starts = [i for i in range(fixed + 1, len(turns)) if turns[i].role == "user"]
        low, high = 0, len(starts)
        while low < high:
            middle = (low + high) // 2
            if self.count(turns[:fixed] + turns[starts[middle] :]) <= room:
                high = middle
            else:
                low = middle + 1
        if low < len(starts):
            return turns[:fixed] + turns[starts[low] :]
        last = turns[:fixed] + turns[starts[-1] if starts else fixed :]
        tokens = self.count(last)
        # Alone, the newest message may use the reply's reserve too, as long as a word of reply fits.
        if tokens >= self.context_tokens:
            raise PromptTooLong(tokens, self.context_tokens - 1)
        return last

    def _get(self, path: str) -> dict[str, Any]:
        return self._ask("GET", path, None)

    def _post(self, path: str, body: dict[str, object]) -> dict[str, Any]:
        return self._ask("POST", path, _json.encode(body))

    def _ask(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        connection = _EngineConnection(self._socket)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise EngineFailed(f"{method} {path}: {error}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise EngineFailed(f"{method} {path}: {response.status} {data[:500].decode(errors='replace')}")
        answer: dict[str, Any] = msgspec.json.decode(data)
        return answer
