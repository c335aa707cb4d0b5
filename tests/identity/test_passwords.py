"""Passwords, with the real Argon2."""

from __future__ import annotations

import re

import pytest
from argon2 import PasswordHasher

from appliance.identity.passwords import (
    DECOY,
    HASH_PATTERN,
    PASSWORD_LIMIT_CHARS,
    hash_password,
    is_outdated,
    matches,
    problem_of,
)


def test_a_hash_is_of_its_password_alone() -> None:
    stored = hash_password("coral and reef")
    assert re.fullmatch(HASH_PATTERN, stored)
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert "coral" not in stored
    assert matches("coral and reef", stored)
    assert not matches("Coral and reef", stored)
    assert not matches("", stored)
    assert not matches("x" * 1024, stored)
    assert hash_password("coral and reef") != stored


def test_keyboards_compose_differently() -> None:
    stored = hash_password("Ko\u0308nigsfisch")
    assert matches("K\u00f6nigsfisch", stored)


def test_the_decoy_is_as_dear_as_a_hash_and_of_no_password() -> None:
    assert re.fullmatch(HASH_PATTERN, DECOY)
    assert not is_outdated(DECOY)
    assert not matches("", DECOY)
    assert not matches("coral and reef", DECOY)


def test_other_parameters_are_outdated() -> None:
    weaker = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash("coral and reef")
    assert is_outdated(weaker)
    assert matches("coral and reef", weaker)
    assert not is_outdated(hash_password("coral and reef"))


@pytest.mark.parametrize(
    ("password", "words"),
    [
        ("", "has 0 characters; at least 8"),
        ("7 chars", "has 7 characters; at least 8"),
        ("x" * (PASSWORD_LIMIT_CHARS + 1), "has 257 characters; at most 256"),
        ("eight\x1bchars", "control character"),
        ("eight\udc80chars", "control character"),
        ("eight\nchars", "control character"),
    ],
)
def test_what_is_no_password(password: str, words: str) -> None:
    problem = problem_of(password)
    assert words in problem
    assert "eight" not in problem


@pytest.mark.parametrize(
    "password", ["8 chars!", "x" * PASSWORD_LIMIT_CHARS, "дождь на рифе", "🐠🐠🐠🐠🐠🐠🐠🐠"]
)
def test_what_is_one(password: str) -> None:
    assert problem_of(password) == ""


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "geheim",
        "$argon2i$v=19$m=19456,t=2,p=1$" + "A" * 22 + "$" + "A" * 43,
        "$argon2id$v=19$m=99999999,t=2,p=1$" + "A" * 22 + "$" + "A" * 43,
        "$argon2id$v=19$m=19456,t=2000,p=1$" + "A" * 22 + "$" + "A" * 43,
        "$argon2id$v=19$m=19456,t=2,p=1$" + "A" * 22 + "$" + "A" * 43 + "\n",
        "$argon2id$v=19$m=19456,t=2,p=1$" + "A" * 21 + "$" + "A" * 43,
    ],
)
def test_what_no_stored_hash_looks_like(stored: str) -> None:
    assert re.search(HASH_PATTERN, stored) is None
