"""What a TensorFlow Lite file says of itself: inputs, outputs, operations and metadata, read without trusting any of it.

Nothing here loads an engine. The file is a FlatBuffer; the numbers of its fields are those of the published schema, where they
never change: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs
"""

from __future__ import annotations

import math
import os
import stat
import struct
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from flatbuffers import number_types as numbers
from flatbuffers.table import Table

from .errors import TfliteBroken

#: An Edge TPU holds 8 MB of parameters, and a model cut into segments some of that each.
SIZE_LIMIT_BYTES = 256 * 1024 * 1024

TENSORS_LIMIT = 65_536
OPERATIONS_LIMIT = 65_536
ITEMS_LIMIT = 256
DIMENSIONS_LIMIT = 8
NAME_LIMIT_BYTES = 1024
METADATA_LIMIT_BYTES = 1024 * 1024

#: schema.fbs, TensorType.
TYPES = {
    0: "float32",
    1: "float16",
    2: "int32",
    3: "uint8",
    4: "int64",
    5: "string",
    6: "bool",
    7: "int16",
    8: "complex64",
    9: "int8",
    10: "float64",
}

#: schema.fbs, BuiltinOperator: those of models for Edge TPUs; any other is shown by its number.
OPERATIONS = {
    0: "ADD",
    1: "AVERAGE_POOL_2D",
    2: "CONCATENATION",
    3: "CONV_2D",
    4: "DEPTHWISE_CONV_2D",
    5: "DEPTH_TO_SPACE",
    6: "DEQUANTIZE",
    7: "EMBEDDING_LOOKUP",
    9: "FULLY_CONNECTED",
    11: "L2_NORMALIZATION",
    14: "LOGISTIC",
    16: "LSTM",
    17: "MAX_POOL_2D",
    18: "MUL",
    19: "RELU",
    20: "RELU_N1_TO_1",
    21: "RELU6",
    22: "RESHAPE",
    23: "RESIZE_BILINEAR",
    25: "SOFTMAX",
    26: "SPACE_TO_DEPTH",
    28: "TANH",
    32: "CUSTOM",
    34: "PAD",
    36: "GATHER",
    39: "TRANSPOSE",
    40: "MEAN",
    41: "SUB",
    43: "SQUEEZE",
    44: "UNIDIRECTIONAL_SEQUENCE_LSTM",
    45: "STRIDED_SLICE",
    47: "EXP",
    49: "SPLIT",
    54: "PRELU",
    55: "MAXIMUM",
    56: "ARG_MAX",
    57: "MINIMUM",
    65: "SLICE",
    67: "TRANSPOSE_CONV",
    70: "EXPAND_DIMS",
    74: "SUM",
    76: "RSQRT",
    82: "REDUCE_MAX",
    83: "PACK",
    89: "REDUCE_MIN",
    97: "RESIZE_NEAREST_NEIGHBOR",
    99: "SQUARED_DIFFERENCE",
    114: "QUANTIZE",
}

_MAGIC = b"TFL3"
_CUSTOM = 32

_Found = TypeVar("_Found")


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor. `scale` and `zero_point` are of the first channel, 0 and 0 when it is not quantised; `scales` counts them."""

    name: str
    shape: tuple[int, ...]
    type: str
    scale: float = 0.0
    zero_point: int = 0
    scales: int = 0
    constant: bool = False
    dynamic: bool = False


class Tflite(msgspec.Struct, frozen=True, kw_only=True):
    """A file's own words. Texts are as they stand there: control characters are for whoever prints them.

    `operations` are in the order of their execution, a custom one as `custom:NAME`. `parameters` counts the elements of all
    constant tensors. `metadata` has what is at most METADATA_LIMIT_BYTES long.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    tensors: list[Tensor]
    operations: list[str]
    parameters: int
    size_bytes: int
    description: str = ""
    metadata: dict[str, bytes] = {}

    @property
    def compiled(self) -> bool:
        """Whether it is for Edge TPUs only: without their delegate nothing can run it."""
        return "custom:edgetpu-custom-op" in self.operations


def read_tflite(path: Path) -> Tflite:
    """Reads a file. TfliteBroken says what is wrong with it, OSError that it cannot be read at all."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise TfliteBroken("not a regular file")
        if found.st_size > SIZE_LIMIT_BYTES:
            raise TfliteBroken(f"has {found.st_size} bytes, expected at most {SIZE_LIMIT_BYTES}")
        return parse_tflite(file.read(SIZE_LIMIT_BYTES))


def parse_tflite(data: bytes) -> Tflite:
    """`read_tflite` of a file's content."""
    if data[4:8] != _MAGIC:
        raise TfliteBroken(f"not a TensorFlow Lite file: it says {data[4:8]!r}, expected {_MAGIC!r}")
    try:
        return _described(_Node(data, int.from_bytes(data[:4], "little")), len(data))
    except (struct.error, IndexError, ValueError, TypeError) as error:
        raise TfliteBroken(f"a FlatBuffer that points outside of itself ({error}): copy it again") from None


class _Node(Table):  # type: ignore[misc]
    """A table of the FlatBuffer. Fields go by their number in the schema; those that are not there have their defaults."""

    def number(self, field: int, kind: Any, default: int = 0) -> int:
        at = self.Offset(4 + 2 * field)
        return int(self.Get(kind, self.Pos + at)) if at else default

    def text(self, field: int) -> str:
        return self.blob(field, NAME_LIMIT_BYTES).decode("utf-8", "replace")

    def blob(self, field: int, limit: int) -> bytes:
        """A string's or a byte vector's content, cut at `limit`."""
        start, length = self._vector(field)
        return bytes(self.Bytes[start : start + min(length, limit)])

    def size(self, field: int) -> int:
        """The length of a vector of bytes."""
        return self._vector(field)[1]

    def numbers(self, field: int, kind: Any, limit: int) -> list[Any]:
        start, length = self._vector(field)
        if length > limit:
            raise TfliteBroken(f"a list of {length} numbers where {limit} are expected at most")
        return [self.Get(kind, start + each * kind.bytewidth) for each in range(length)]

    def node(self, field: int) -> _Node | None:
        at = self.Offset(4 + 2 * field)
        return _Node(self.Bytes, self.Indirect(self.Pos + at)) if at else None

    def nodes(self, field: int, limit: int) -> list[_Node]:
        start, length = self._vector(field)
        if length > limit:
            raise TfliteBroken(f"a list of {length} tables where {limit} are expected at most")
        return [_Node(self.Bytes, self.Indirect(start + each * 4)) for each in range(length)]

    def _vector(self, field: int) -> tuple[int, int]:
        """Where a vector's content starts, and its length; it lies within the file when its elements are bytes."""
        at = self.Offset(4 + 2 * field)
        if not at:
            return 0, 0
        start, length = self.Vector(at), self.VectorLen(at)
        if start + length > len(self.Bytes):
            raise TfliteBroken(
                f"a list of {length} items at byte {start} of {len(self.Bytes)}: copy it again"
            )
        return start, length


def _described(model: _Node, size_bytes: int) -> Tflite:
    """Fields of the schema's Model: 1 operator_codes, 2 subgraphs, 3 description, 4 buffers, 6 metadata."""
    version = model.number(0, numbers.Uint32Flags)
    if version != 3:
        raise TfliteBroken(f"version {version} of the format, expected 3")
    graphs = model.nodes(2, ITEMS_LIMIT)
    if len(graphs) != 1:
        raise TfliteBroken(f"has {len(graphs)} graphs, expected one")
    (graph,) = graphs
    buffers = model.nodes(4, TENSORS_LIMIT)
    tensors = [_tensor(node, buffers) for node in graph.nodes(0, TENSORS_LIMIT)]
    codes = [_operation(node) for node in model.nodes(1, ITEMS_LIMIT)]
    metadata = {}
    for node in model.nodes(6, ITEMS_LIMIT):
        buffer = _item(buffers, node.number(1, numbers.Uint32Flags), "buffer")
        if buffer.size(0) <= METADATA_LIMIT_BYTES:
            metadata[node.text(0)] = buffer.blob(0, METADATA_LIMIT_BYTES)
    return Tflite(
        inputs=[_item(tensors, each, "tensor") for each in graph.numbers(1, numbers.Int32Flags, ITEMS_LIMIT)],
        outputs=[
            _item(tensors, each, "tensor") for each in graph.numbers(2, numbers.Int32Flags, ITEMS_LIMIT)
        ],
        tensors=tensors,
        operations=[
            _item(codes, node.number(0, numbers.Uint32Flags), "operation")
            for node in graph.nodes(3, OPERATIONS_LIMIT)
        ],
        parameters=sum(math.prod(each.shape) for each in tensors if each.constant),
        size_bytes=size_bytes,
        description=model.text(3),
        metadata=metadata,
    )


def _item(items: list[_Found], number: int, what: str) -> _Found:
    if not 0 <= number < len(items):
        raise TfliteBroken(f"names {what} {number}, and there are {len(items)}")
    return items[number]


def _operation(code: _Node) -> str:
    """OperatorCode: the wider field 3 came when field 0, a byte, was full (at 127)."""
    number = max(code.number(0, numbers.Int8Flags), code.number(3, numbers.Int32Flags))
    if number == _CUSTOM:
        return f"custom:{code.text(1)}"
    return OPERATIONS.get(number, f"builtin:{number}")


def _tensor(node: _Node, buffers: list[_Node]) -> Tensor:
    """Tensor: 0 shape, 1 type, 2 buffer, 3 name, 4 quantization (2 scale, 3 zero_point), 5 is_variable, 7 shape_signature."""
    shape = tuple(node.numbers(0, numbers.Int32Flags, DIMENSIONS_LIMIT))
    signature = node.numbers(7, numbers.Int32Flags, DIMENSIONS_LIMIT)
    kind = node.number(1, numbers.Int8Flags)
    buffer = _item(buffers, node.number(2, numbers.Uint32Flags), "buffer")
    quantization = node.node(4)
    scales, zero_points = [], []
    if quantization is not None:
        scales = quantization.numbers(2, numbers.Float32Flags, TENSORS_LIMIT)
        zero_points = quantization.numbers(3, numbers.Int64Flags, TENSORS_LIMIT)
    if min(shape, default=0) < 0:
        raise TfliteBroken(f"a tensor of the shape {shape}")
    return Tensor(
        name=node.text(3),
        shape=shape,
        type=TYPES.get(kind, f"type:{kind}"),
        scale=scales[0] if scales else 0.0,
        zero_point=zero_points[0] if zero_points else 0,
        scales=len(scales),
        constant=buffer.size(0) > 0,
        dynamic=-1 in signature,
    )
