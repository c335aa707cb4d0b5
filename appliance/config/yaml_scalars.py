"""What a plain scalar means by YAML 1.2's core schema (section 10.3.2 of its specification).

PyYAML resolves by YAML 1.1, where `on` is true and `12:34:56` is 45296.
"""

from __future__ import annotations

import math
import re

_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"([-+]?)\.(?:inf|Inf|INF)")

#: No setting is near it; beyond 4300 digits Python refuses to convert.
_DIGITS_LIMIT = 100


def plain_scalar(text: str) -> bool | int | float | str | None:
    """The value of an unquoted scalar. Numbers of more than 100 characters count as infinite."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _DIGITS_LIMIT and (_DECIMAL.fullmatch(text) or _HEXADECIMAL.fullmatch(text)):
        return -math.inf if text.startswith("-") else math.inf
    if _DECIMAL.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text) or _HEXADECIMAL.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if match := _INFINITY.fullmatch(text):
        return -math.inf if match[1] == "-" else math.inf
    return math.nan if text in {".nan", ".NaN", ".NAN"} else text
