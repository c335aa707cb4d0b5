"""The models' names, for the shell's completion."""

from __future__ import annotations

import argparse
from typing import Any

from .place import paths_of


def complete_model(*, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """All models on disk: the shell does not wait for an appliance."""
    return [name for name, _ in _models(parsed_args)]


def complete_own_model(*, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """The owner's own models."""
    return [name for name, shipped in _models(parsed_args) if not shipped]


def _models(parsed_args: argparse.Namespace) -> list[tuple[str, bool]]:
    from appliance.inference import models
    from appliance.inference.errors import InferenceError

    try:
        found = models.catalogue(paths_of(parsed_args))
    except InferenceError:
        return []
    return [(model.name, model.shipped) for model in found.values()]
