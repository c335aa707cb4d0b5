"""LoRA adapters: whether one fits a model, and the one that changes nothing.

The engine keeps what it has read of a prompt when it changes from an adapter to none, and so writes on with the adapter's
memories: llama.cpp forgets it only between two adapters that are both in use. So whoever wants no adapter gets one of zeros,
which computes exactly nothing.
"""

from __future__ import annotations

import struct
from pathlib import Path

from appliance.files import write_atomically

from .errors import ModelRefused

Shapes = dict[str, tuple[int, ...]]

#: `general.type` of an adapter's file, and the only `adapter.type` that the engine has.
ADAPTER, LORA = "adapter", "lora"

#: So many names of tensors that do not fit are told.
NAMES_TOLD = 3

_STRING, _FLOAT32 = 8, 6
_ALIGNMENT_BYTES = 32


def check_fits(adapter: Shapes, model: Shapes) -> None:
    """ModelRefused when an adapter's tensors are not pairs of `lora_a` and `lora_b` for tensors of the model. Shapes have the
    fastest dimension first: (n, rank) and (rank, m) belong to (n, m)."""
    if odd := sorted(name for name in adapter if not name.endswith((".lora_a", ".lora_b"))):
        raise ModelRefused(f"holds tensors that are no LoRA's: {_some(odd)}")
    wrong = []
    for name in sorted({name.rpartition(".")[0] for name in adapter}):
        a, b, target = adapter.get(f"{name}.lora_a"), adapter.get(f"{name}.lora_b"), model.get(name)
        if a is None or b is None:
            raise ModelRefused(f"has only one half of the pair for {name[:60]!r}")
        if name == "token_embd.weight":  # looked up, not multiplied: the engine has rules of its own for it
            fits = target is not None
        else:
            fits = len(a) == len(b) == 2 and a[1] == b[0] and target == (a[0], b[1])
        if not fits:
            wrong.append(name)
    if wrong:
        raise ModelRefused(
            f"is made for another model: {len(wrong)} of its tensors do not fit, as {_some(wrong)}"
        )


def write_null(adapter: Shapes, architecture: str, target: Path) -> None:
    """Writes an adapter of zeros for one of the tensors that `adapter` changes."""
    name = min(name for name in adapter if name.endswith(".lora_a")).removesuffix(".lora_a")
    shapes = {
        f"{name}.lora_a": (adapter[f"{name}.lora_a"][0], 1),
        f"{name}.lora_b": (1, adapter[f"{name}.lora_b"][1]),
    }
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(shapes), 4)
    for key, value in (
        ("general.type", ADAPTER),
        ("general.architecture", architecture),
        ("adapter.type", LORA),
    ):
        head += _text(key) + struct.pack("<I", _STRING) + _text(value)
    head += _text("adapter.lora.alpha") + struct.pack("<If", _FLOAT32, 1.0)
    offset = 0
    for tensor, (width, height) in shapes.items():
        head += _text(tensor) + struct.pack("<IQQIQ", 2, width, height, 0, offset)
        offset += _padded(4 * width * height)
    write_atomically(target, head + bytes(_padded(len(head)) - len(head) + offset))


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _some(names: list[str]) -> str:
    told = ", ".join(repr(name[:60]) for name in names[:NAMES_TOLD])
    return f"{told}, ..." if len(names) > NAMES_TOLD else told
