"""What an API key looks like: `cr_<id>_<secret>`.

The id is public: it finds the row, and stands in lists and logs. The secret is shown once and stored nowhere.
"""

from __future__ import annotations

import hashlib
import re
import secrets

import msgspec

#: Without look-alikes (0 and o, 1, i and l) and without `_`, which separates: ids are read aloud and typed.
ID_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
ID_CHARACTERS = 8
SECRET_BYTES = 32

#: Longer input is refused before anything looks at it.
KEY_LIMIT_CHARACTERS = 256

# 32 bytes are 43 characters of base64url without padding, `_` among them.
_KEY = re.compile(rf"cr_([{ID_ALPHABET}]{{{ID_CHARACTERS}}})_([A-Za-z0-9_-]{{43}})")


class KeyText(msgspec.Struct, frozen=True):
    """A well-formed key. `repr` shows no secret; `text()` does."""

    id: str
    secret: str

    def text(self) -> str:
        """The key as its holder writes it."""
        return f"cr_{self.id}_{self.secret}"

    def digest(self) -> bytes:
        """SHA-256 of the secret, 32 bytes: what is stored.

        No slow hash such as Argon2: those make it dear to guess a short password, and nobody guesses 256
        random bits.
        """
        return hashlib.sha256(self.secret.encode("ascii")).digest()

    def __repr__(self) -> str:
        return f"KeyText(id={self.id!r})"


def new_key() -> KeyText:
    """A new random key."""
    key_id = "".join(secrets.choice(ID_ALPHABET) for _ in range(ID_CHARACTERS))
    return KeyText(key_id, secrets.token_urlsafe(SECRET_BYTES))


def parse_key(text: str) -> KeyText | None:
    """The parts of a key, or None when `text` is no key of ours."""
    if len(text) > KEY_LIMIT_CHARACTERS:
        return None
    match = _KEY.fullmatch(text)
    return None if match is None else KeyText(match[1], match[2])
