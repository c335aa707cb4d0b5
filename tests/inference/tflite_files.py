"""Small .tflite files for tests, written with LiteRT's own bindings of the schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flatbuffers
import msgspec
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from appliance.inference.features import VERSION, WEIGHTS, FeatureSpec
from appliance.inference.making.dense import Layer, tflite
from appliance.inference.text_models import CARD, WORD_WEIGHTS, Card

SPEC = FeatureSpec(version=VERSION, width=64, words=64)
OUTPUTS = 8


def metadata(card: Card | None = None, weights: int = WEIGHTS) -> dict[str, bytes]:
    """What a text model says of itself."""
    card = card or Card(kind="embedding", features=SPEC)
    return {CARD: msgspec.json.encode(card), WORD_WEIGHTS: bytes([100]) * weights}


def text_model_file(said: Mapping[str, bytes] | None = None, outputs: int = OUTPUTS, seed: int = 1) -> bytes:
    """A text model with weights drawn from a seed."""
    rng = np.random.default_rng(seed)

    def layer(inputs: int, count: int, *, relu: bool) -> Layer:
        return Layer(
            rng.normal(size=(count, inputs)).astype(np.float32),
            rng.normal(size=count).astype(np.float32),
            relu,
        )

    layers = [layer(SPEC.width, 16, relu=True), layer(16, outputs, relu=False)]
    samples = rng.integers(-40, 40, (200, SPEC.width)).astype(np.int8)
    return tflite(layers, SPEC.scale, samples, metadata() if said is None else said, "for tests")


def compiled_file(width: int = SPEC.width, outputs: int = OUTPUTS, before: str = "") -> bytes:
    """What Google's compiler makes: one custom operation between int8 input and output; `before` names another ahead of it."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs = 3, [graph]
    model.buffers = [schema.BufferT()]
    graph.tensors = [_tensor("input", width), _tensor("output", outputs)]
    graph.inputs, graph.outputs = np.array([0], np.int32), np.array([1], np.int32)
    graph.operators, model.operatorCodes = [], []
    for name in filter(None, (before, "edgetpu-custom-op")):
        code = schema.OperatorCodeT()
        code.deprecatedBuiltinCode = code.builtinCode = schema.BuiltinOperator.CUSTOM
        code.customCode = name
        operator = schema.OperatorT()
        operator.opcodeIndex = len(model.operatorCodes)
        operator.inputs, operator.outputs = graph.inputs, graph.outputs
        model.operatorCodes.append(code)
        graph.operators.append(operator)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _tensor(name: str, size: int) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = (
        name,
        np.array([1, size], np.int32),
        schema.TensorType.INT8,
        0,
    )
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale, tensor.quantization.zeroPoint = (
        np.array([0.5], np.float32),
        np.array([3], np.int64),
    )
    return tensor
