"""Settings as plain values for a person to see: what was written, not what it stands for, and no secrets."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.config.expand import Reference
from appliance.config.load import Settings
from appliance.config.secret import MASK, Secret


def show(settings: Settings) -> dict[str, Any]:
    """`{"appliance": {...}, "network": {...}}`, fit for JSON.

    A value with `${NAME}` is shown as it was written, followed by whether the name is set; a secret that is
    written out, as `********`.
    """
    plain: dict[str, Any] = msgspec.to_builtins(
        {"appliance": settings.appliance, "network": settings.network}, enc_hook=_hidden
    )
    for path, reference in settings.references.items():
        table: Any = plain
        for part in path[:-1]:
            table = table[part]
        table[path[-1]] = f"{reference.text} ({_state(reference)})"
    return plain


def _state(reference: Reference) -> str:
    states = {name: "not set" if name in reference.unset else "set" for name in reference.names}
    if len(states) == 1:
        return next(iter(states.values()))
    return ", ".join(f"{name} {state}" for name, state in states.items())


def _hidden(value: object) -> str:
    if isinstance(value, Secret):
        return MASK
    raise NotImplementedError(f"cannot show a {type(value).__name__}")
