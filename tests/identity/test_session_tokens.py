"""What the token of a session looks like."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from appliance.identity.key_format import new_key, parse_key
from appliance.identity.session_tokens import new_token, token_digest


def test_a_token_and_its_digest() -> None:
    token = new_token()
    assert token != new_token()
    assert token_digest(token) == hashlib.sha256(token.encode()).digest()
    assert parse_key(token) is None
    assert token_digest(new_key().text()) is None


@given(st.text() | st.from_regex(r"crs_[A-Za-z0-9_-]{40,46}\n?", fullmatch=True))
def test_only_a_token_has_a_digest(text: str) -> None:
    digest = token_digest(text)
    assert (digest is not None) == (len(text) == 47 and text.startswith("crs_") and not text.endswith("\n"))


def test_look_alikes() -> None:
    token = new_token()
    for other in (
        token + "\n",
        token + "=",
        token[:-1],
        " " + token,
        token.upper(),
        token[:-1] + "ä",
        "x" * 10**6,
    ):
        assert token_digest(other) is None
