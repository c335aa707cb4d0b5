"""What a GGUF file says of itself: header, metadata and tensor table, read without trusting any of it.

Only the head is read, never the weights: at most HEAD_LIMIT_BYTES, keeping some megabytes of it, whatever lengths the file
claims. The rules are those of the engine's own reader (llama.cpp, ggml/src/gguf.cpp), which decides in the end; what it refuses
is refused here by name, before a worker is started for it. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from .errors import GgufBroken

#: The versions that the engine loads. Version 1 had 32-bit lengths; nobody writes it any more.
VERSIONS = (2, 3)

#: The largest vocabularies known (262,144 tokens, 515,000 merges) make heads of 16 MB with a hundred keys; models have up to
#: some thousand tensors, chat templates some 20 kB.
HEAD_LIMIT_BYTES = 256 * 1024 * 1024
KEYS_LIMIT = 4096
TENSORS_LIMIT = 65_536
ITEMS_LIMIT = 4 * 1024 * 1024
STRING_LIMIT_BYTES = 1024 * 1024
KEY_LIMIT_BYTES = 1024

#: GGML_MAX_NAME, its closing NUL not counted, and GGML_MAX_DIMS.
TENSOR_NAME_LIMIT_BYTES = 63
DIMENSIONS_LIMIT = 4

ALIGNMENT_BYTES = 32

_INTEGERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}
_SCALARS = {**_INTEGERS, 6: "<f", 7: "<B", 12: "<d"}
_UINT32, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9

#: The texts that anybody asks for; all others are passed over.
_TEXTS = frozenset(
    {"adapter.type", "general.architecture", "general.name", "general.type", "tokenizer.chat_template"}
)

#: An adapter that begins to work only after these tokens.
_INVOCATION = "adapter.alora.invocation_tokens"

#: ggml's types of tensors: name, elements of a block, bytes of a block (ggml.h, ggml-common.h).
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

#: `general.file_type`: the names under which quantisations are published (llama.h, llama_ftype).
FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}


class Gguf(msgspec.Struct, frozen=True, kw_only=True):
    """A file's own words. Texts are as they stand there: control characters are for whoever prints them.

    `context_tokens` is the window that the model was trained for, 0 when the file does not say; `parameters` counts the elements
    of all tensors; `adapter` is `lora` or `alora` for a file of the kind `adapter`. `needed_bytes` is where the last tensor ends:
    a file that is shorter was not copied to its end.
    """

    architecture: str
    name: str = ""
    kind: str = "model"
    adapter: str = ""
    quantisation: str = ""
    context_tokens: int = 0
    parameters: int = 0
    tensors: int = 0
    chat_template: str = ""
    causal: bool = True
    parts: int = 1
    size_bytes: int
    needed_bytes: int

    @property
    def missing_bytes(self) -> int:
        """What lacks of a half-copied file."""
        return max(0, self.needed_bytes - self.size_bytes)


def read_gguf(path: Path) -> Gguf:
    """Reads the head of a file. GgufBroken says what is wrong with it, OSError that it cannot be read at all.

    A file whose head is whole but whose weights are not is returned: see `missing_bytes`.
    """
    with opened(path) as (file, size_bytes):
        return parse_gguf(file, size_bytes)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a file by name, each with its size in every dimension, the fastest first. Errors as `read_gguf`."""
    with opened(path) as (file, size_bytes):
        reader = _Reader(file, size_bytes)
        reader.gguf()
        return reader.shapes


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file, buffered, and its size. GgufBroken for anything else: neither a FIFO nor a device may hold us up."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=1024 * 1024) as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise GgufBroken("not a regular file")
        yield file, found.st_size


def parse_gguf(file: BinaryIO, size_bytes: int) -> Gguf:
    """`read_gguf` of an open, buffered file of that size."""
    return _Reader(file, size_bytes).gguf()


class _Reader:
    """Reads on and on; every length is checked against what the file has left before anything is read."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file, self._size = file, size_bytes
        self._at = 0
        self._items = 0
        self.shapes: dict[str, tuple[int, ...]] = {}

    def gguf(self) -> Gguf:
        magic = self._bytes(4, "magic")
        if magic != b"GGUF" and self._file.read(4) == b"TFL3":
            raise GgufBroken(
                "a TensorFlow Lite model: none can be added; 'make models-tpu' compiles those that ship for Edge TPUs"
            )
        if magic != b"GGUF":
            raise GgufBroken(f"not a GGUF file: it begins with {magic!r}")
        version = self._number("<I", "version")
        if version & 0xFFFF == 0:
            raise GgufBroken("a big-endian GGUF file: the engine here reads little-endian ones")
        if version not in VERSIONS:
            raise GgufBroken(
                f"GGUF version {version}: the engine loads versions 2 and 3; convert the model again"
            )
        tensors = self._count("<Q", "number of tensors", TENSORS_LIMIT)
        keys = self._count("<Q", "number of keys", KEYS_LIMIT)
        values = self._metadata(keys)
        alignment = values.get("general.alignment", ALIGNMENT_BYTES)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise GgufBroken(f"general.alignment is {alignment!r}, expected a power of two")
        parameters, types, data_bytes = self._tensors(tensors, alignment)
        return _described(
            values,
            parameters=parameters,
            types=types,
            tensors=tensors,
            size_bytes=self._size,
            needed_bytes=_padded(self._at, alignment) + data_bytes if tensors else self._at,
        )

    def _metadata(self, count: int) -> dict[str, str | int]:
        """Integers, truth values and _TEXTS by key; of arrays and fractions there is nothing that anybody asks for."""
        seen: set[str] = set()
        values: dict[str, str | int] = {}
        for number in range(count):
            key = self._string(f"key {number + 1}", KEY_LIMIT_BYTES)
            if not key:
                raise GgufBroken(f"key {number + 1} is empty")
            if key in seen:
                raise GgufBroken(f"the key {key[:100]!r} is there twice")
            seen.add(key)
            kind = self._number("<I", key)
            if key == "general.alignment" and kind != _UINT32:
                raise GgufBroken(f"general.alignment is of type {kind}, expected a 32-bit number")
            if kind == _STRING and key in _TEXTS:
                values[key] = self._string(key, STRING_LIMIT_BYTES)
            elif kind == _STRING:
                self._skip(self._count("<Q", f"length of {key[:100]!r}", STRING_LIMIT_BYTES), key)
            elif kind in _INTEGERS:
                values[key] = self._number(_INTEGERS[kind], key)
            elif kind == _BOOL:
                values[key] = self._number("<B", key) != 0
            elif kind in _SCALARS:
                self._skip(struct.calcsize(_SCALARS[kind]), key)
            elif kind == _ARRAY:
                self._array(key)
                if key == _INVOCATION:
                    values[key] = True
            else:
                raise GgufBroken(f"{key[:100]!r} is of type {kind}, which GGUF has not")
        return values

    def _array(self, key: str) -> None:
        """Passes over an array. The engine takes none inside another, so neither do we."""
        kind = self._number("<I", key)
        count = self._count("<Q", f"length of {key[:100]!r}", ITEMS_LIMIT)
        self._items += count
        if self._items > ITEMS_LIMIT:
            raise GgufBroken(f"its arrays have more than {ITEMS_LIMIT} items")
        if kind in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[kind]), key)
        elif kind == _STRING:
            for _ in range(count):
                self._skip(self._count("<Q", f"length of a text in {key[:100]!r}", STRING_LIMIT_BYTES), key)
        else:
            raise GgufBroken(f"{key[:100]!r} is an array of type {kind}, which the engine does not take")

    def _tensors(self, count: int, alignment: int) -> tuple[int, Counter[str], int]:
        """Elements of all tensors, elements by type, and where the last one ends, counted from the first."""
        types: Counter[str] = Counter()
        parameters = offset = end = 0
        for number in range(count):
            name = self._string(f"name of tensor {number + 1}", TENSOR_NAME_LIMIT_BYTES)
            if name in self.shapes:
                raise GgufBroken(f"the tensor {name!r} is there twice")
            dimensions = self._count("<I", f"number of dimensions of {name!r}", DIMENSIONS_LIMIT)
            shape = [self._count("<Q", f"size of {name!r}", 2**63 - 1) for _ in range(dimensions)]
            kind = self._number("<I", name)
            if kind not in TENSOR_TYPES:
                raise GgufBroken(f"the tensor {name!r} is of type {kind}, which the engine does not know")
            self.shapes[name] = tuple(shape)
            label, block, block_bytes = TENSOR_TYPES[kind]
            elements = 1
            for length in shape:
                elements *= length
            if elements >= 2**63:
                raise GgufBroken(f"the tensor {name!r} is said to have {elements} elements")
            if (shape[0] if shape else 1) % block:
                raise GgufBroken(f"a row of the tensor {name!r} is no multiple of {label}'s {block} elements")
            begins = self._number("<Q", name)
            if begins != offset:
                raise GgufBroken(f"the tensor {name!r} begins at {begins}, expected at {offset}")
            end = offset + elements // block * block_bytes
            offset = _padded(end, alignment)
            parameters += elements
            types[label] += elements
        return parameters, types, end

    # --- bytes ------------------------------------------------------------------------------------------------------

    def _take(self, count: int, what: str) -> None:
        """Allows `count` bytes more to be read."""
        if self._at + count > self._size:
            raise GgufBroken(
                f"it ends in its head, at byte {self._size}, in the {what[:100]}: it was not copied to its end"
            )
        if self._at + count > HEAD_LIMIT_BYTES:
            raise GgufBroken(f"its head is longer than {HEAD_LIMIT_BYTES} bytes")
        self._at += count

    def _bytes(self, count: int, what: str) -> bytes:
        self._take(count, what)
        data = self._file.read(count)
        if len(data) != count:
            raise GgufBroken("it became shorter while it was read")
        return data

    def _skip(self, count: int, what: str) -> None:
        self._take(count, what)
        self._file.seek(count, os.SEEK_CUR)

    def _number(self, layout: str, what: str) -> int:
        (value,) = struct.unpack(layout, self._bytes(struct.calcsize(layout), what))
        return int(value)

    def _count(self, layout: str, what: str, limit: int) -> int:
        value = self._number(layout, what)
        if value > limit:
            raise GgufBroken(f"the {what} is {value}, expected at most {limit}")
        return value

    def _string(self, what: str, limit: int) -> str:
        length = self._count("<Q", f"length of {what[:100]!r}", limit)
        return self._bytes(length, what).decode("utf-8", "replace")


def _padded(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _described(
    values: dict[str, str | int],
    *,
    parameters: int,
    types: Counter[str],
    tensors: int,
    size_bytes: int,
    needed_bytes: int,
) -> Gguf:
    def text(key: str) -> str:
        value = values.get(key, "")
        return value if isinstance(value, str) else ""

    def number(key: str) -> int:
        value = values.get(key, 0)
        return value if isinstance(value, int) and value > 0 else 0

    architecture = text("general.architecture")
    if not architecture:
        raise GgufBroken("it does not name its architecture (general.architecture)")
    if isinstance(file_type := values.get("general.file_type"), int):
        quantisation = FILE_TYPES.get(file_type, "")
    else:
        quantisation = next((label for label, _ in types.most_common(1)), "")
    return Gguf(
        architecture=architecture,
        name=text("general.name"),
        kind=text("general.type") or "model",
        adapter="alora" if _INVOCATION in values else text("adapter.type"),
        quantisation=quantisation,
        context_tokens=number(f"{architecture}.context_length"),
        parameters=parameters,
        tensors=tensors,
        chat_template=text("tokenizer.chat_template"),
        causal=values.get(f"{architecture}.attention.causal") is not False,
        parts=max(1, number("split.count")),
        size_bytes=size_bytes,
        needed_bytes=needed_bytes,
    )
