"""GGUF files for tests: tiny ones made of nothing, and the shipped model with other metadata."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from appliance.inference.gguf import read_shapes
from appliance.inference.models import SHIPPED, read_manifest

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)

TYPES_OF_ENGINE = {"F32": 0, "Q8_0": 8}


def text(value: str | bytes) -> bytes:
    """A GGUF string."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    """A key with its value."""
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, items: Sequence[bytes]) -> bytes:
    """The value of an ARRAY."""
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def tensor(name: str, shape: Sequence[int], offset: int, kind: int = 0) -> bytes:
    """A line of the tensor table."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


METADATA = (
    pair("general.architecture", STRING, text("llama")),
    pair("general.name", STRING, text("Tiny")),
    pair("general.file_type", U32, struct.pack("<I", 7)),
    pair("llama.context_length", U32, struct.pack("<I", 512)),
    pair("llama.rope.freq_base", F32, struct.pack("<f", 10_000)),
    pair("tokenizer.ggml.tokens", ARRAY, array(STRING, [text("<s>"), text("a"), text("")])),
    pair("tokenizer.ggml.scores", ARRAY, array(F32, [struct.pack("<f", 0)] * 3)),
    pair("tokenizer.ggml.add_bos_token", BOOL, b"\x01"),
    pair("tokenizer.chat_template", STRING, text("{{ messages }}")),
)

TENSORS = (tensor("token_embd.weight", (8, 4), 0), tensor("output.weight", (32, 2), 128, 8))

#: 8 x 4 elements of 4 bytes, then two rows of one block of 34 bytes.
DATA_BYTES = 128 + 68


def gguf(
    metadata: Iterable[bytes] = METADATA,
    tensors: Iterable[bytes] = TENSORS,
    *,
    version: int = 3,
    data_bytes: int = DATA_BYTES,
    alignment: int = 32,
) -> bytes:
    """A whole file."""
    metadata, tensors = list(metadata), list(tensors)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata)) + b"".join(metadata + tensors)
    return head + bytes(-len(head) % alignment) + bytes(data_bytes)


def shipped_model() -> Path:
    """The file of the text model that ships."""
    entry = next(each for each in read_manifest(SHIPPED) if each.kind == "text")
    return SHIPPED / entry.file


LORA_METADATA = (
    pair("general.type", STRING, text("adapter")),
    pair("general.architecture", STRING, text("llama")),
    pair("adapter.type", STRING, text("lora")),
    pair("adapter.lora.alpha", F32, struct.pack("<f", 4)),
)


def lora(
    seed: int = 1,
    *,
    target: str = "blk.0.attn_q.weight",
    rank: int = 4,
    metadata: Iterable[bytes] = LORA_METADATA,
) -> bytes:
    """An adapter of random numbers for the shipped model, large enough to be heard in what it writes."""
    width, height = read_shapes(shipped_model())[target]
    draw = random.Random(seed)
    count = (width + height) * rank
    weights = struct.pack(f"<{count}f", *(draw.gauss(0, 1) for _ in range(count)))
    table = (
        tensor(f"{target}.lora_a", (width, rank), 0),
        tensor(f"{target}.lora_b", (rank, height), 4 * width * rank),
    )
    return gguf(metadata, table, data_bytes=0) + weights


def without_chat_template(data: bytes) -> bytes:
    """A model whose chat template has another key: the engine takes a general one."""
    assert data.count(b"tokenizer.chat_template") == 1
    return data.replace(b"tokenizer.chat_template", b"tokenizer.shut_template")
