"""JSON Schema of the owner's files, for editors that complete and check while one types."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.config.appliance import Appliance
from appliance.config.network import Network
from appliance.config.secret import Secret

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """`{"appliance.toml": ..., "network.yaml": ...}`, each a schema of draft 2020-12.

    Looser than the loader, which also compares values with one another and checks addresses.
    """
    return {
        name: {"$schema": DIALECT, **msgspec.json.schema(settings, schema_hook=_secret)}
        for name, settings in (("appliance.toml", Appliance), ("network.yaml", Network))
    }


def _secret(kind: type) -> dict[str, Any]:
    if kind is Secret:
        return {"type": "string", "minLength": 1}
    raise NotImplementedError(f"no setting has the type {kind}")
