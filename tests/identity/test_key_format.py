"""What a key looks like."""

from __future__ import annotations

import base64
import hashlib
import re

from hypothesis import given
from hypothesis import strategies as st

from appliance.identity.key_format import ID_ALPHABET, KeyText, new_key, parse_key


def test_a_new_key() -> None:
    key = new_key()
    assert re.fullmatch(r"cr_[a-hj-km-np-z2-9]{8}_[A-Za-z0-9_-]{43}", key.text())
    assert len(base64.urlsafe_b64decode(key.secret + "=")) == 32
    assert not set("_-0o1il") & set(ID_ALPHABET)
    assert parse_key(key.text()) == key
    assert new_key() != key


def test_the_digest_is_that_of_the_secret() -> None:
    key = new_key()
    assert key.digest() == hashlib.sha256(key.secret.encode()).digest()


def test_the_secret_is_not_shown() -> None:
    key = new_key()
    for shown in (repr(key), str(key), f"{key}", repr([key])):
        assert key.secret not in shown
        assert key.id in shown


@given(st.text(ID_ALPHABET, min_size=8, max_size=8), st.from_regex(r"[A-Za-z0-9_\-]{43}", fullmatch=True))
def test_what_is_well_formed_comes_back(key_id: str, secret: str) -> None:
    assert parse_key(f"cr_{key_id}_{secret}") == KeyText(key_id, secret)


@given(st.text(max_size=400))
def test_only_keys_are_parsed(text: str) -> None:
    key = parse_key(text)
    assert key is None or key.text() == text


def test_near_misses() -> None:
    text = new_key().text()
    for wrong in (
        "",
        text + "\n",
        " " + text,
        text[:-1],
        text + "a",
        text.upper(),
        text * 5,
        "cr__" + text[4:],
    ):
        assert parse_key(wrong) is None
