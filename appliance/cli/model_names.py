"""The models' names, for the shell's completion."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .place import paths_of

if TYPE_CHECKING:
    from appliance.inference.models import Model


def complete_model(*, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """All models on disk: the shell does not wait for an appliance."""
    return [model.name for model in _models(parsed_args)]


def complete_text_model(*, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Those that can write replies."""
    return [model.name for model in _models(parsed_args) if model.entry.kind == "text"]


def complete_own_model(*, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """The owner's own models."""
    return [model.name for model in _models(parsed_args) if not model.shipped]


def _models(parsed_args: argparse.Namespace) -> list[Model]:
    from appliance.inference import models
    from appliance.inference.errors import InferenceError

    try:
        return list(models.catalogue(paths_of(parsed_args)).values())
    except InferenceError:
        return []
