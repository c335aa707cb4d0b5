"""What a type of the settings accepts, in words and as a test of one value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from msgspec import inspect

from appliance.config.document import quoted
from appliance.config.forms import Form

#: Integers beyond it are not written out: a TOML file can hold one of 200,000 hexadecimal digits.
_SHOWN_INTEGER = 10**18


@dataclass(frozen=True)
class Accepted:
    """A type without its wrappings."""

    base: inspect.Type
    form: Form | None = None
    nullable: bool = False


def accepted(kind: inspect.Type) -> Accepted:
    """Looks through metadata and `| None`."""
    if isinstance(kind, inspect.Metadata):
        inner = accepted(kind.type)
        form = (kind.extra or {}).get("form", inner.form)
        return Accepted(inner.base, form, inner.nullable)
    if isinstance(kind, inspect.UnionType):
        others = [item for item in kind.types if not isinstance(item, inspect.NoneType)]
        if len(others) != 1:
            raise TypeError(f"settings are of one type or None, not {kind}")
        inner = accepted(others[0])
        return Accepted(inner.base, inner.form, nullable=True)
    return Accepted(kind)


def choices(base: inspect.Type) -> tuple[str, ...]:
    """The words that an enumeration or a literal allows; nothing for other types."""
    if isinstance(base, inspect.EnumType):
        return tuple(str(member.value) for member in base.cls)
    if isinstance(base, inspect.LiteralType):
        return tuple(str(value) for value in base.values)
    return ()


def expected(kind: Accepted, table_word: str) -> str:
    """Completes "expected ..."."""
    if kind.form is not None:
        return kind.form.expected
    if words := choices(kind.base):
        return f"one of {', '.join(words)}" if len(words) > 1 else words[0]
    match kind.base:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType():
            return _expected_number(kind.base)
        case inspect.StructType() | inspect.DictType():
            return f"a {table_word}"
        case inspect.ListType() | inspect.VarTupleType():
            return "a list"
        case _:
            return "a text"


def _expected_number(base: inspect.IntType | inspect.FloatType) -> str:
    noun = "an integer" if isinstance(base, inspect.IntType) else "a number"
    if base.ge is not None and base.le is not None:
        return f"{noun} from {base.ge:g} to {base.le}"
    if base.gt is not None and base.le is not None:
        return f"{noun} above {base.gt:g} and at most {base.le}"
    return noun


def in_range(base: inspect.IntType | inspect.FloatType, value: float) -> bool:
    """Written so that not-a-number, which compares as false with everything, is in no range."""
    return (
        (base.ge is None or value >= base.ge)
        and (base.gt is None or value > base.gt)
        and (base.le is None or value <= base.le)
        and (base.lt is None or value < base.lt)
    )


def of_type(base: inspect.Type, value: Any) -> bool:
    """Whether a value of a file has the type at all. To Python, not here, a truth value is an integer."""
    match base:
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.IntType():
            return isinstance(value, int) and not isinstance(value, bool)
        case inspect.FloatType():
            return isinstance(value, int | float) and not isinstance(value, bool)
        case inspect.StructType() | inspect.DictType():
            return isinstance(value, dict)
        case inspect.ListType() | inspect.VarTupleType():
            return isinstance(value, list)
        case _:
            return isinstance(value, str)


def type_in_words(value: Any, table_word: str) -> str:
    """What a value of a wrong type is."""
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case int():
            return "an integer"
        case float():
            return "a number"
        case str():
            return f"the text {quoted(value)}"
        case dict():
            return f"a {table_word}"
        case list():
            return "a list"
        case _:
            return "a date or a time"


def shown(value: Any) -> str:
    """A value of the right type inside a message."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, int) and abs(value) > _SHOWN_INTEGER:
        return "a huge number"
    return str(value)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The message for a key that is none of `known`."""
    names = tuple(known)
    message = f"unknown key, expected one of {', '.join(names)}"
    nearest = _nearest(key, names)
    return f"{message}, nearest valid key: {nearest}" if nearest else message


def _nearest(key: str, names: tuple[str, ...]) -> str | None:
    found = difflib.get_close_matches(key.lower(), names, n=1)
    return found[0] if found else None
