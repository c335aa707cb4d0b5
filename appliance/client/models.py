"""The models as a table."""

from __future__ import annotations

from rich.table import Table

from appliance.wire.messages import ModelStatus

from .amounts import size
from .screen import table


def models_table(models: list[ModelStatus]) -> Table:
    """A row a model."""
    rows = [
        (
            model.name,
            model.kind,
            size(model.size_bytes),
            str(model.context_tokens or ""),
            "ships" if model.shipped else "yours",
            ", ".join(model.loaded_by) or "-",
            model.problem,
        )
        for model in models
    ]
    return table(("model", "kind", ">size", ">window", "from", "runs on", "note"), rows)
