"""Passwords: Argon2id, and what a password must be."""

from __future__ import annotations

import unicodedata
from base64 import b64encode

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

#: OWASP's Password Storage Cheat Sheet: 19 MiB, two passes, one lane. Some 50 ms on a core of 2020.
MEMORY_KIB = 19 * 1024
PASSES = 2
LANES = 1

PASSWORD_LEAST_CHARS = 8
PASSWORD_LIMIT_CHARS = 256

#: How a hash begins and ends; one that asks for more memory or time than this is none of ours.
HASH_PATTERN = (
    r"^\$argon2id\$v=19\$m=[1-9][0-9]{1,5},t=[1-9][0-9]?,p=[1-4]\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}\Z"
)

_hasher = PasswordHasher(
    time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES, hash_len=32, salt_len=16
)


def _nothing(length: int) -> str:
    return b64encode(bytes(length)).decode().rstrip("=")


#: Compared with where there is no user of that name, so that the answer does not come sooner. No password has this hash.
DECOY = f"$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}${_nothing(16)}${_nothing(32)}"


def problem_of(password: str) -> str:
    """Why nobody may have this password; empty when it will do."""
    if len(password) < PASSWORD_LEAST_CHARS:
        return f"The password has {len(password)} characters; at least {PASSWORD_LEAST_CHARS} are needed"
    if len(password) > PASSWORD_LIMIT_CHARS:
        return f"The password has {len(password)} characters; at most {PASSWORD_LIMIT_CHARS} are possible"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in password):
        return "The password holds a control character; use those that a keyboard types"
    return ""


def hash_password(password: str) -> str:
    """What is stored of it, with a salt of its own. Takes 19 MiB and some 50 ms without the interpreter's lock."""
    return _hasher.hash(_typed(password))


def matches(password: str, stored: str) -> bool:
    """Whether `stored` was made of this password. As dear as making it."""
    try:
        return _hasher.verify(stored, _typed(password))
    except VerifyMismatchError:
        return False


def is_outdated(stored: str) -> bool:
    """Whether it was made with other parameters than these."""
    return _hasher.check_needs_rehash(stored)


def _typed(password: str) -> bytes:
    """The same bytes however a keyboard composes its letters: RFC 8265, 4.2."""
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")
