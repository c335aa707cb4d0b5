"""Walks a document along the types of its settings and collects everything that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from msgspec import inspect

from appliance.config.document import UNKNOWN, Document, KeyPath
from appliance.config.errors import Problem, Severity
from appliance.config.expand import BadReference, Expanded, Reference, expand, references_only
from appliance.config.expectations import (
    Accepted,
    accepted,
    choices,
    expected,
    in_range,
    of_type,
    shown,
    type_in_words,
    unknown_key,
)
from appliance.config.secret import MASK


@dataclass
class Validated:
    """What a document holds. `data` has good values only, expanded; what refers to unset names is absent.

    `placeholders` are texts to put where a required value refers to an unset name: (table, key, text).
    """

    data: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)
    references: dict[KeyPath, Reference] = field(default_factory=dict)
    placeholders: list[tuple[dict[str, Any], str, str]] = field(default_factory=list)


def validate(document: Document, root: type, lookup: Callable[[str], str | None]) -> Validated:
    """Compares `document` with the struct `root`; names in `${NAME}` are looked up with `lookup`."""
    walk = _Walk(document, lookup)
    kind = inspect.type_info(root)
    assert isinstance(kind, inspect.StructType)
    walk.result.data = walk.struct((), kind, document.data)
    return walk.result


class _Walk:
    def __init__(self, document: Document, lookup: Callable[[str], str | None]) -> None:
        self.result = Validated({})
        self._document = document
        self._lookup = lookup

    def struct(self, path: KeyPath, kind: inspect.StructType, raw: dict[str, Any]) -> dict[str, Any]:
        fields = {item.encode_name: item for item in kind.fields}
        good: dict[str, Any] = {}
        for key, value in raw.items():
            if (item := fields.get(key)) is None:
                self._complain((*path, key), unknown_key(key, fields))
                continue
            checked = self._value((*path, key), accepted(item.type), value)
            if checked is not UNKNOWN:
                good[key] = checked
            elif item.required and isinstance(value, str):
                self._keep_unset((*path, key), accepted(item.type), good, value)
        for key, item in fields.items():
            if item.required and key not in raw:
                self._complain((*path, key), f"missing, expected {self._expected(accepted(item.type))}")
        return good

    def _keep_unset(self, path: KeyPath, kind: Accepted, table: dict[str, Any], text: str) -> None:
        """A required value that refers to an unset name stays as it is written, where a text can stand."""
        reference = self.result.references.get(path)
        if reference is None or not reference.unset:
            return
        if isinstance(kind.base, inspect.StrType):
            self.result.placeholders.append((table, str(path[-1]), text))
        else:
            self._complain(path, f"refers to a name that is not set, expected {self._expected(kind)}")

    def _value(self, path: KeyPath, kind: Accepted, raw: Any) -> Any:
        """The good value, or UNKNOWN."""
        if raw is UNKNOWN or (raw is None and kind.nullable):
            return raw
        base = kind.base
        if not of_type(base, raw):
            what = type_in_words(raw, self._document.table_word)
            return self._complain(path, f"is {what}, expected {self._expected(kind)}")
        match base:
            case inspect.StructType():
                return self.struct(path, base, raw)
            case inspect.DictType():
                return self._dict(path, base, raw)
            case inspect.ListType() | inspect.VarTupleType():
                return self._list(path, base, raw)
            case inspect.IntType() | inspect.FloatType():
                if in_range(base, raw):
                    return raw
                return self._complain(path, f"is {shown(raw)}, expected {self._expected(kind)}")
        return self._text(path, kind, raw) if isinstance(raw, str) else raw

    def _dict(self, path: KeyPath, kind: inspect.DictType, raw: dict[str, Any]) -> dict[str, Any]:
        names = choices(kind.key_type)
        good: dict[str, Any] = {}
        for key, value in raw.items():
            if key not in names:
                self._complain((*path, key), unknown_key(key, names))
                continue
            checked = self._value((*path, key), accepted(kind.value_type), value)
            if checked is not UNKNOWN:
                good[key] = checked
        return good

    def _list(self, path: KeyPath, kind: inspect.ListType | inspect.VarTupleType, raw: list[Any]) -> Any:
        least, most = kind.min_length or 0, kind.max_length
        if len(raw) < least or (most is not None and len(raw) > most):
            return self._complain(path, f"has {len(raw)} items, expected {least} to {most}")
        item = accepted(kind.item_type)
        # UNKNOWN items stay: whoever compares items later needs their numbers.
        return [self._value((*path, number), item, value) for number, value in enumerate(raw)]

    def _text(self, path: KeyPath, kind: Accepted, raw: str) -> Any:
        try:
            text = expand(raw, self._lookup)
        except BadReference as error:
            return self._complain(path, str(error))
        secret = isinstance(kind.base, inspect.CustomType)
        if text.names:
            self._remember(path, raw, text, secret=secret)
        if text.value is None:
            return UNKNOWN
        if secret:
            return text.value or self._complain(path, "is empty, expected a text")
        words = choices(kind.base)
        fits = text.value in words if words else kind.form is None or kind.form.accepts(text.value)
        if fits:
            return text.value
        # What a name stands for may be secret even where nobody expected a secret.
        what = f"the value of {shown(raw)} does not fit" if text.names else f"is {shown(raw)}"
        return self._complain(path, f"{what}, expected {self._expected(kind)}")

    def _remember(self, path: KeyPath, raw: str, text: Expanded, *, secret: bool) -> None:
        problem = self._document.problem(path, "")
        written = references_only(raw, MASK) if secret else raw
        self.result.references[path] = Reference(
            problem.file, problem.line, problem.key, written, text.names, text.unset
        )

    def _expected(self, kind: Accepted) -> str:
        return expected(kind, self._document.table_word)

    def _complain(self, path: KeyPath, message: str) -> Any:
        self.result.problems.append(self._document.problem(path, message, Severity.ERROR))
        return UNKNOWN
