"""Which keys network.yaml can have at a path: for completion."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import inspect

from appliance.config.edit import EditError, Step, steps
from appliance.config.expectations import accepted, choices
from appliance.config.network import Network


def continuations(begun: str) -> list[str]:
    """What a path that has begun so may become, up to its next dot: `interfaces.p` to `interfaces.primary`."""
    before, dot, part = begun.rpartition(".")
    try:
        way: Sequence[Step] = steps(before) if dot else ()
    except EditError:
        return []
    return [f"{before}{dot}{key}" for key in keys_at(way) if key.startswith(part)]


def values_at(path: str) -> list[str]:
    """The words that can stand at a path; none where anything can."""
    try:
        found = _type_at(steps(path))
    except EditError:
        return []
    if isinstance(found, inspect.BoolType):
        return ["true", "false"]
    return [] if found is None else list(choices(found))


def keys_at(way: Sequence[Step]) -> list[str]:
    """The keys of a table; of a list none, its items have numbers."""
    match _type_at(way):
        case inspect.StructType(fields=fields):
            return [field.encode_name for field in fields]
        case inspect.DictType(key_type=key_type):
            return list(choices(key_type))
        case _:
            return []


def _type_at(way: Sequence[Step]) -> inspect.Type | None:
    here: inspect.Type = inspect.type_info(Network)
    for step in way:
        match here:
            case inspect.StructType(fields=fields) if isinstance(step, str):
                kinds = [field.type for field in fields if field.encode_name == step]
                if not kinds:
                    return None
                here = accepted(kinds[0]).base
            case inspect.DictType(value_type=value_type) if isinstance(step, str):
                here = accepted(value_type).base
            case inspect.ListType(item_type=item_type) | inspect.VarTupleType(item_type=item_type) if (
                isinstance(step, int)
            ):
                here = accepted(item_type).base
            case _:
                return None
    return here
