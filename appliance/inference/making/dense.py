"""Writes a network of fully connected layers as an int8 .tflite file that the Edge TPU compiler takes whole.

One scale a tensor, for the compiler knows no other for fully connected layers; inputs and outputs int8, static shapes of one
row. The numbers are those of LiteRT's own int8 reference: https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

Floats = NDArray[np.float32]

#: FULLY_CONNECTED takes int8 from its fourth version on, and runtimes know that one since 1.14.
VERSION = 4
MIN_RUNTIME = b"1.14.0"


@dataclass(frozen=True)
class Layer:
    """Weights (outputs, inputs) and biases (outputs,); `relu` cuts what is negative."""

    weights: Floats
    bias: Floats
    relu: bool


@dataclass(frozen=True)
class _Rounded:
    """A layer as integers."""

    weights: NDArray[np.int8]
    scale: float
    bias: NDArray[np.int32]
    bias_scale: float
    out_scale: float
    out_zero: int
    relu: bool


def weight_scale(weights: Floats) -> float:
    """The scale of a tensor of weights: the largest is 127, but outliers beyond 8 standard deviations are cut."""
    return float(min(np.abs(weights).max(), 8 * weights.std(ddof=1)) / 127)


def rounded(layers: Sequence[Layer], input_scale: float, samples: NDArray[np.int8]) -> list[_Rounded]:
    """The layers as integers, their outputs' ranges taken from `samples`: (n, width)."""
    found = []
    x, x_scale = samples.astype(np.float32) * np.float32(input_scale), input_scale
    for layer in layers:
        scale = weight_scale(layer.weights)
        weights = np.clip(np.rint(layer.weights / scale), -127, 127).astype(np.int8)
        bias = np.rint(layer.bias / (x_scale * scale)).astype(np.int32)
        x = x @ (weights.astype(np.float32).T * np.float32(scale)) + layer.bias
        if layer.relu:
            x = np.maximum(x, 0)
        low, high = min(0.0, float(x.min())), max(0.0, float(np.quantile(x, 0.99999)))
        out_scale = (high - low) / 255
        zero = int(np.clip(round(-128 - low / out_scale), -128, 127))
        found.append(_Rounded(weights, scale, bias, x_scale * scale, out_scale, zero, layer.relu))
        x_scale = out_scale
    return found


def tflite(
    layers: Sequence[Layer],
    input_scale: float,
    samples: NDArray[np.int8],
    metadata: Mapping[str, bytes],
    description: str,
) -> bytes:
    """The file's content."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.description = 3, description
    code = schema.OperatorCodeT()
    code.deprecatedBuiltinCode = code.builtinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = VERSION
    model.operatorCodes = [code]
    model.buffers = [schema.BufferT()]
    model.subgraphs, model.metadata = [graph], []
    graph.name, graph.tensors, graph.operators = "main", [], []

    def buffer(data: bytes) -> int:
        each = schema.BufferT()
        each.data = np.frombuffer(data, np.uint8)
        model.buffers.append(each)
        return len(model.buffers) - 1

    def tensor(
        name: str, shape: Sequence[int], kind: int, scale: float, zero: int = 0, data: bytes = b""
    ) -> int:
        each = schema.TensorT()
        each.name, each.shape, each.type = name, np.array(shape, np.int32), kind
        each.buffer = buffer(data) if data else 0
        each.quantization = schema.QuantizationParametersT()
        each.quantization.scale = np.array([scale], np.float32)
        each.quantization.zeroPoint = np.array([zero], np.int64)
        graph.tensors.append(each)
        return len(graph.tensors) - 1

    int8, int32 = schema.TensorType.INT8, schema.TensorType.INT32
    at = tensor("input", (1, samples.shape[1]), int8, input_scale)
    graph.inputs = np.array([at], np.int32)
    layers_rounded = rounded(layers, input_scale, samples)
    for number, layer in enumerate(layers_rounded, 1):
        last = number == len(layers_rounded)
        weights = tensor(
            f"weights{number}", layer.weights.shape, int8, layer.scale, data=layer.weights.tobytes()
        )
        bias = tensor(f"bias{number}", layer.bias.shape, int32, layer.bias_scale, data=layer.bias.tobytes())
        out = tensor(
            "output" if last else f"hidden{number}",
            (1, len(layer.bias)),
            int8,
            layer.out_scale,
            layer.out_zero,
        )
        operator = schema.OperatorT()
        operator.opcodeIndex = 0
        operator.inputs, operator.outputs = np.array([at, weights, bias], np.int32), np.array([out], np.int32)
        options = schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = (
            schema.ActivationFunctionType.RELU if layer.relu else schema.ActivationFunctionType.NONE
        )
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = options
        graph.operators.append(operator)
        at = out
    graph.outputs = np.array([at], np.int32)
    for name, data in {"min_runtime_version": MIN_RUNTIME, **metadata}.items():
        each = schema.MetadataT()
        each.name, each.buffer = name, buffer(data)
        model.metadata.append(each)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
