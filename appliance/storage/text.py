"""Which strings can be stored: all that have a UTF-8 form, NUL included."""

from __future__ import annotations

from .errors import UnstorableText


def require_storable(text: str, what: str) -> str:
    """`text` itself; UnstorableText, naming it `what`, when it holds a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnstorableText(what, error.start) from None
    return text


def is_storable(text: str) -> bool:
    """Whether a row could hold `text` at all: what cannot be stored need not be looked for."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
