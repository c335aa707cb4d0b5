"""Tokens of sessions: what a person who has logged in shows to the gateway. They live in the supervisor's memory, as digests."""

from __future__ import annotations

import hashlib
import re
import secrets

#: As the secret of an API key (`key_format`), which begins with `cr_`.
_TOKEN = re.compile(r"crs_[A-Za-z0-9_-]{43}")
_RANDOM_BYTES = 32


def new_token() -> str:
    """A new random token."""
    return f"crs_{secrets.token_urlsafe(_RANDOM_BYTES)}"


def token_digest(text: str) -> bytes | None:
    """SHA-256 of a well-formed token, 32 bytes; None when `text` is none."""
    return hashlib.sha256(text.encode("ascii")).digest() if _TOKEN.fullmatch(text) else None
