"""Models for tests: chains of int8 fully connected layers, and the compiler of the stand-in for libedgetpu.

`compiled` turns a model into what edgetpu_compiler would make of it: one `edgetpu-custom-op` that names its twin. The stand-in
(libedgetpu.c) computes what the twin does.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise

import flatbuffers
import msgspec
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from appliance.inference.features import VERSION, WEIGHTS, FeatureSpec
from appliance.inference.text_models import CARD, WORD_WEIGHTS, Card

CUSTOM_OP = "edgetpu-custom-op"
_MAGIC = b"FAKETPU1"

#: Those of the test models' tensors: inputs and weights of a size that makes the output vary.
SCALE, ZERO = 0.05, 3


EMOTIONS = ("neutral", "joy", "sadness")


def text_model(kind: str, *, width: int = 256, hidden: int = 64, outputs: int = 32, seed: int = 1) -> bytes:
    """A model for texts, `embedding` or `emotion`, that has learned nothing. An emotion model's outputs are its labels' and
    one more."""
    features = FeatureSpec(version=VERSION, width=width, words=width - width // 4, grams=width // 4)
    card = Card(kind=kind, features=features, labels=EMOTIONS if kind == "emotion" else ())
    if kind == "emotion":
        outputs = len(EMOTIONS) + 1
    metadata = {CARD: msgspec.json.encode(card), WORD_WEIGHTS: bytes([100]) * WEIGHTS}
    return fully_connected((width, hidden, outputs), seed=seed, metadata=metadata)


def fully_connected(
    widths: Sequence[int], *, seed: int = 1, relu: bool = True, metadata: Mapping[str, bytes] | None = None
) -> bytes:
    """A model of int8 layers with random weights: input [1, widths[0]], output [1, widths[-1]]."""
    draw = np.random.default_rng(seed)
    model = _model()
    graph = model.subgraphs[0]
    _tensor(model, (1, widths[0]), schema.TensorType.INT8, SCALE, ZERO)
    graph.inputs = [0]
    for number, (before, after) in enumerate(pairwise(widths)):
        source = graph.operators[-1].outputs[0] if graph.operators else 0
        weights = draw.integers(-127, 128, (after, before), dtype=np.int8)
        scale = 0.6 / (127 * before**0.5)
        first = _tensor(model, weights.shape, schema.TensorType.INT8, scale, 0, weights)
        bias = draw.integers(-200, 200, after, dtype=np.int32)
        second = _tensor(model, bias.shape, schema.TensorType.INT32, SCALE * scale, 0, bias)
        out = _tensor(model, (1, after), schema.TensorType.INT8, SCALE, ZERO)
        operator = schema.OperatorT()
        operator.opcodeIndex = 0
        operator.inputs, operator.outputs = [source, first, second], [out]
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = schema.FullyConnectedOptionsT()
        last = number == len(widths) - 2
        activation = schema.ActivationFunctionType
        operator.builtinOptions.fusedActivationFunction = (
            activation.RELU if relu and not last else activation.NONE
        )
        graph.operators.append(operator)
        graph.outputs = [out]
    model.metadata = []
    for name, content in (metadata or {}).items():
        entry = schema.MetadataT()
        entry.name, entry.buffer = name, _buffer(model, content)
        model.metadata.append(entry)
    return _packed(model)


def compiled(twin: bytes, *, name: str = "twin", part: slice = slice(None)) -> bytes:
    """What the stand-in runs in place of `twin`, a chain of fully connected layers and reshapes, or of `part` of the chain."""
    source = schema.ModelT.InitFromObj(schema.Model.GetRootAs(twin))
    graph = source.subgraphs[0]
    operators = graph.operators[part]
    layers = []
    for operator in operators:
        code = source.operatorCodes[operator.opcodeIndex]
        builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
        if builtin == schema.BuiltinOperator.RESHAPE:
            continue
        assert builtin == schema.BuiltinOperator.FULLY_CONNECTED, f"the stand-in has no operator {builtin}"
        layers.append(_layer(source, graph, operator))
    label = name.encode()
    options = b"".join(
        [_MAGIC, struct.pack("<i", len(label)), label, struct.pack("<i", len(layers)), *layers]
    )
    model = _model()
    code = model.operatorCodes[0]
    code.builtinCode, code.deprecatedBuiltinCode = (
        schema.BuiltinOperator.CUSTOM,
        schema.BuiltinOperator.CUSTOM,
    )
    code.customCode = CUSTOM_OP
    ends = []
    for index in (operators[0].inputs[0], operators[-1].outputs[0]):
        tensor = graph.tensors[index]
        quantization = tensor.quantization
        ends.append(
            _tensor(model, tensor.shape, tensor.type, quantization.scale[0], int(quantization.zeroPoint[0]))
        )
    operator = schema.OperatorT()
    operator.opcodeIndex = 0
    operator.inputs, operator.outputs = [ends[0]], [ends[1]]
    operator.customOptions = list(options)
    model.subgraphs[0].operators.append(operator)
    model.subgraphs[0].inputs, model.subgraphs[0].outputs = [ends[0]], [ends[1]]
    return _packed(model)


def _layer(model: schema.ModelT, graph: schema.SubGraphT, operator: schema.OperatorT) -> bytes:
    source, weights, *rest = (graph.tensors[index] for index in operator.inputs)
    out = graph.tensors[operator.outputs[0]]
    outputs, inputs = weights.shape
    multipliers = (
        np.broadcast_to(np.asarray(weights.quantization.scale, np.float32), outputs)
        * np.float32(source.quantization.scale[0])
        / np.float32(out.quantization.scale[0])
    ).astype("<f4")
    zero = int(out.quantization.zeroPoint[0])
    relu = operator.builtinOptions.fusedActivationFunction == schema.ActivationFunctionType.RELU
    bias = _data(model, rest[0], "<i4") if rest and rest[0] is not None else np.zeros(outputs, "<i4")
    head = struct.pack(
        "<6i", inputs, outputs, int(source.quantization.zeroPoint[0]), zero, zero if relu else -128, 127
    )
    body = _data(model, weights, "i1").tobytes()
    return head + multipliers.tobytes() + bias.tobytes() + body + bytes(-len(body) % 4)


def _data(model: schema.ModelT, tensor: schema.TensorT, kind: str) -> npt.NDArray[np.generic]:
    return np.asarray(model.buffers[tensor.buffer].data, np.uint8).view(kind)


def _model() -> schema.ModelT:
    """An empty graph with one operator code, of fully connected layers."""
    model = schema.ModelT()
    model.version = 3
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 4
    model.operatorCodes = [code]
    model.buffers = [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.tensors, graph.operators, graph.inputs, graph.outputs = [], [], [], []
    model.subgraphs = [graph]
    return model


def _tensor(
    model: schema.ModelT,
    shape: Sequence[int],
    kind: int,
    scale: float,
    zero: int,
    data: npt.NDArray[np.generic] | None = None,
) -> int:
    tensors = model.subgraphs[0].tensors
    tensor = schema.TensorT()
    tensor.shape, tensor.type = list(shape), kind
    tensor.name = f"t{len(tensors)}"
    tensor.buffer = 0
    if data is not None:
        tensor.buffer = _buffer(model, data.tobytes())
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale, tensor.quantization.zeroPoint = [float(scale)], [zero]
    tensors.append(tensor)
    return len(tensors) - 1


def _buffer(model: schema.ModelT, content: bytes) -> int:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(content, np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _packed(model: schema.ModelT) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
