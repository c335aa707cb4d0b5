"""A model that never stops by itself: the shipped one, with the end of a turn taken out of its vocabulary.

Replies of the shipped model are over in 20 ms. Tests that interrupt one, and benchmarks that compare replies of one length, need
one that lasts, from the same engine: a copy whose `<|end|>` has another name (llama.cpp stops at tokens of certain names) writes
until it reaches `max_tokens`, at about a millisecond a token.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

from appliance.inference.making.chat.corpus import SPECIAL
from appliance.inference.models import SHIPPED, read_manifest

NAME = "endless"

#: Some thirty seconds of reply.
WINDOW_TOKENS = 8192
ENDLESS_TOKENS = 8000

CONFIGURATION = f"""\
[text]
model = "{NAME}"

[chat]
max_tokens = {ENDLESS_TOKENS}
temperature = 0.8
"""

_GGUF_UINT32 = 4
_GGUF_INT32 = 5
_GGUF_ARRAY = 9
_TOKEN_NORMAL, _TOKEN_CONTROL = 1, 3


def add_endless_model(models: Path, *, window_tokens: int = WINDOW_TOKENS, silent: bool = False) -> Path:
    """Puts the model and its manifest into `models`, the owner's folder; returns the model's file. A `silent` one writes nothing
    but control tokens, which are not shown."""
    entry = next(each for each in read_manifest(SHIPPED) if each.kind == "text")
    data = (SHIPPED / entry.file).read_bytes()
    assert b"<|end|>" in data, "the shipped model ends its turns with another token now: adapt this file"
    data = data.replace(b"<|end|>", b"<|fin|>")
    data = _with_silent_tokens(data) if silent else _with_visible_token(data, SPECIAL.index("<|end|>"))
    data = _with_uint32(data, "tokenizer.ggml.eos_token_id", 0)
    data = _with_uint32(data, "llama.context_length", window_tokens)
    models.mkdir(parents=True, exist_ok=True)
    file = models / f"{NAME}.gguf"
    file.write_bytes(data)
    manifest = {
        "models": [
            {
                "name": NAME,
                "kind": "text",
                "file": file.name,
                "sha256": hashlib.sha256(data).hexdigest(),
                "size_bytes": len(data),
                "context_tokens": window_tokens,
            }
        ]
    }
    (models / "manifest.json").write_text(json.dumps(manifest), "ascii")
    return file


def _with_visible_token(data: bytes, token: int) -> bytes:
    """A GGUF file whose control token is an ordinary one: every token of a reply has text."""
    place = _token_types(data)[0] + 4 * token
    assert data[place : place + 4] == struct.pack("<i", _TOKEN_CONTROL)
    return data[:place] + struct.pack("<i", _TOKEN_NORMAL) + data[place + 4 :]


def _with_silent_tokens(data: bytes) -> bytes:
    """A GGUF file whose tokens are all control tokens."""
    start, count = _token_types(data)
    return data[:start] + struct.pack("<i", _TOKEN_CONTROL) * count + data[start + 4 * count :]


def _token_types(data: bytes) -> tuple[int, int]:
    """Where the types of a GGUF file's tokens begin, and how many there are."""
    field = b"tokenizer.ggml.token_type" + struct.pack("<II", _GGUF_ARRAY, _GGUF_INT32)
    assert data.count(field) == 1, "the tokens' types are not in the model once"
    end = data.index(field) + len(field)
    (count,) = struct.unpack_from("<Q", data, end)
    return end + 8, count


def _with_uint32(data: bytes, key: str, value: int) -> bytes:
    """A GGUF file with another value of a uint32 in its header: key, type, value, all little-endian."""
    field = key.encode() + struct.pack("<I", _GGUF_UINT32)
    assert data.count(field) == 1, f"{key} is not in the model once"
    start = data.index(field) + len(field)
    return data[:start] + struct.pack("<I", value) + data[start + 4 :]
