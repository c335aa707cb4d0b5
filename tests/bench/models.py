"""The models that are measured: both write until they are told to stop, so that every reply has the same length."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from pathlib import Path

from tests.endless import NAME, add_endless_model
from tests.inference.gguf_files import STRING, U32, pair, tensor

#: Some 28 million parameters in Q8_0, as a model of that size has them.
EMBEDDING, BLOCKS, FEED_FORWARD, HEADS, KV_HEADS = 512, 9, 1536, 8, 2
HEAD = EMBEDDING // HEADS
Q8_0 = 8

#: Elements and bytes of a Q8_0 block; its scale makes weights as large as a fresh network's.
BLOCK, BLOCK_BYTES, SCALE = 32, 34, struct.pack("<e", 4e-4)


def add_small(models: Path, *, window_tokens: int = 1024) -> Path:
    """The shipped model without an end."""
    return add_endless_model(models, window_tokens=window_tokens)


def add_random(models: Path, *, window_tokens: int = 1024) -> Path:
    """A model of 28 million random weights with the shipped one's tokenizer; it writes nonsense, at its size's speed."""
    file = add_endless_model(models, window_tokens=window_tokens)
    pairs, tokens = _metadata(file.read_bytes())
    changed = {
        "llama.embedding_length": EMBEDDING,
        "llama.block_count": BLOCKS,
        "llama.feed_forward_length": FEED_FORWARD,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.dimension_count": HEAD,
    }
    assert changed.keys() <= pairs.keys()
    pairs |= {key: pair(key, U32, struct.pack("<I", value)) for key, value in changed.items()}
    draw = random.Random(28)
    table, data = bytearray(), bytearray()
    for name, shape in _tensors(tokens):
        table += tensor(name, shape, len(data), Q8_0 if len(shape) == 2 else 0)
        data += _weights(draw, *shape) if len(shape) == 2 else struct.pack("<f", 1.0) * shape[0]
        data += bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, 2 + 9 * BLOCKS, len(pairs)) + b"".join(pairs.values()) + table
    content = head + bytes(-len(head) % 32) + data
    file.write_bytes(content)
    manifest = json.loads((models / "manifest.json").read_bytes())
    manifest["models"][0] |= {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    (models / "manifest.json").write_text(json.dumps(manifest), "ascii")
    return file


def configuration(*, slots: int, max_tokens: int = 1024, more: str = "") -> str:
    """`appliance.toml` for either."""
    return f'[text]\nmodel = "{NAME}"\nslots = {slots}\n[chat]\nmax_tokens = {max_tokens}\n{more}'


def _tensors(tokens: int) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes, the fastest dimension first, of a llama with tied embeddings."""
    found: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (EMBEDDING, tokens)),
        ("output_norm.weight", (EMBEDDING,)),
    ]
    for number in range(BLOCKS):
        found += [
            (f"blk.{number}.{name}.weight", shape)
            for name, shape in (
                ("attn_norm", (EMBEDDING,)),
                ("attn_q", (EMBEDDING, EMBEDDING)),
                ("attn_k", (EMBEDDING, KV_HEADS * HEAD)),
                ("attn_v", (EMBEDDING, KV_HEADS * HEAD)),
                ("attn_output", (EMBEDDING, EMBEDDING)),
                ("ffn_norm", (EMBEDDING,)),
                ("ffn_gate", (EMBEDDING, FEED_FORWARD)),
                ("ffn_up", (EMBEDDING, FEED_FORWARD)),
                ("ffn_down", (FEED_FORWARD, EMBEDDING)),
            )
        ]
    return found


def _weights(draw: random.Random, width: int, height: int) -> bytes:
    blocks = width * height // BLOCK
    data = bytearray(draw.randbytes(blocks * BLOCK_BYTES))
    data[0::BLOCK_BYTES], data[1::BLOCK_BYTES] = SCALE[:1] * blocks, SCALE[1:] * blocks
    return bytes(data)


def _metadata(data: bytes) -> tuple[dict[str, bytes], int]:
    """The key-value pairs of a GGUF file as they lie there, by key, and how many tokens its vocabulary has."""
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    (count,) = struct.unpack_from("<Q", data, 16)
    at, tokens = 24, 0
    pairs: dict[str, bytes] = {}

    def text_end(start: int) -> int:
        return start + 8 + int(struct.unpack_from("<Q", data, start)[0])

    for _ in range(count):
        start, end = at, text_end(at)
        key = data[start + 8 : end].decode("ascii")
        (kind,) = struct.unpack_from("<I", data, end)
        at = end + 4
        items = 1
        if kind == 9:
            kind, items = struct.unpack_from("<IQ", data, at)
            at += 12
            tokens = items if key == "tokenizer.ggml.tokens" else tokens
        for _ in range(items):
            at = text_end(at) if kind == STRING else at + sizes[kind]
        pairs[key] = data[start:at]
    return pairs, tokens
