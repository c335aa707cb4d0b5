"""`coral-reef model show` of a model for TPUs: a .tflite file."""

from __future__ import annotations

from collections import Counter
from typing import Any

from appliance.inference import models
from appliance.inference.tflite import Tensor, Tflite, read_tflite

from .model import count, on_disk, print_lines, whose
from .tables import print_json


def run_show(model: models.Model, *, as_json: bool) -> None:
    """Prints a model, for programs or for people. TfliteBroken or OSError when its file cannot be read."""
    head = read_tflite(model.path)
    if as_json:
        found = {"model": model.entry, "path": str(model.path), "shipped": model.shipped}
        print_json(found | {"tflite": for_programs(head)})
    else:
        show(model, head)


def show(model: models.Model, head: Tflite) -> None:
    """Prints a model for people."""
    counted = Counter(head.operations)
    print_lines(
        [
            ("model", whose(model)),
            ("kind", model.entry.kind),
            ("title", head.description),
            *(("input", _tensor(each)) for each in head.inputs),
            *(("output", _tensor(each)) for each in head.outputs),
            ("operations", ", ".join(f"{number} {name}" for name, number in counted.items())),
            ("parameters", "in the compiled part" if head.compiled else count(head.parameters)),
            ("compiled from", model.entry.twin),
            *on_disk(model),
        ]
    )


def for_programs(head: Tflite) -> dict[str, Any]:
    """What a .tflite file says, without its weights' names and the contents of its metadata."""
    return {
        "inputs": head.inputs,
        "outputs": head.outputs,
        "operations": head.operations,
        "parameters": head.parameters,
        "compiled": head.compiled,
        "description": head.description,
        "metadata_bytes": {name: len(content) for name, content in head.metadata.items()},
    }


def _tensor(tensor: Tensor) -> str:
    """`int8 1x384, scale 0.0039, zero point -1`."""
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    quantised = f", scale {tensor.scale:.4g}, zero point {tensor.zero_point}" if tensor.scales else ""
    return f"{tensor.type} {shape}{quantised} ({tensor.name})"
