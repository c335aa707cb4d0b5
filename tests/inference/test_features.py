"""Text to vectors: the same everywhere, within bounds, and different for different words."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.inference.errors import TextTooLong
from appliance.inference.features import (
    TEXT_LIMIT_BYTES,
    VERSION,
    WEIGHTS,
    Features,
    FeatureSpec,
    weight_place,
    words,
)

SPEC = FeatureSpec(version=VERSION, width=1024, words=512, pairs=128, grams=256)
EVEN = np.full(WEIGHTS, 100, np.uint8)


def features(spec: FeatureSpec = SPEC) -> Features:
    return Features(spec, EVEN)


def likeness(one: str, other: str) -> float:
    """The cosine of two texts' vectors."""
    first, second = features().prepare([one, other]).astype(float)
    return float(first @ second / math.sqrt((first @ first) * (second @ second)))


@given(st.lists(st.text(), max_size=4))
def test_vectors_are_bounded_and_each_row_is_its_own_texts(texts: list[str]) -> None:
    made = features()
    rows = made.prepare(texts)
    assert rows.shape == (len(texts), SPEC.width)
    assert rows.dtype == np.int8
    assert rows.min(initial=0) >= -127
    for text, row in zip(texts, rows, strict=True):
        assert (row == features().prepare([text])[0]).all()
        assert words(text) or not row.any()


@given(st.text(max_size=300))
def test_case_and_spacing_of_ascii_do_not_matter(text: str) -> None:
    spaced = "".join(f" {each} " if each in ".,;\n" else each for each in text)
    shouted = "".join(each.upper() if each.isascii() else each for each in spaced)
    assert (features().prepare([spaced]) == features().prepare([shouted])).all()


#: What version 1 makes. A change here is a new version, and every model must be trained anew.
GOLDEN = "9197469c9db5327b2fcb1ccab2bd8db8"
SAMPLES = (
    "The quick brown fox isn\u2019t here.",
    "Caf\u00e9 na\u00efve \u4f60\u597d \U0001f600 x",
    "not happy, never " * 40,
    "",
    "\ud800 broken",
    "a" * 500,
)


def test_a_version_always_makes_the_same() -> None:
    rows = features().prepare(SAMPLES)
    assert hashlib.sha256(rows.tobytes()).hexdigest()[:32] == GOLDEN


def test_another_process_makes_the_same() -> None:
    """Python's own hash() differs from process to process."""
    code = (
        "import hashlib; from tests.inference import test_features as t; "
        "print(hashlib.sha256(t.features().prepare(t.SAMPLES).tobytes()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == hashlib.sha256(features().prepare(SAMPLES).tobytes()).hexdigest()


def test_words() -> None:
    assert words("I'm HERE: don\u2019t-stop 42x!") == [b"i'm", b"here", b"don't", b"stop", b"42x"]
    assert words("\u00fcber") == ["\u00fcber".encode()]
    assert words("x" * 1000) == [b"x" * 48]


def test_texts_that_are_alike() -> None:
    assert likeness("a printer driver", "the driver of a printer") > likeness(
        "a printer driver", "a game of chess"
    )
    assert likeness("printing", "printers") > 0.1
    assert likeness("rare words", "rare words") == pytest.approx(1)


def test_a_negation_leaves_a_mark() -> None:
    plain, denied, later = features().prepare(["happy", "not happy", "happy not"])[:, -SPEC.negated :]
    assert denied.any()
    assert not plain.any()
    assert not later.any()


def test_rare_words_count_more() -> None:
    weights = EVEN.copy()
    weights[weight_place(b"the")] = 1
    spec = FeatureSpec(version=VERSION, width=1024, words=1024)
    the, whale, both = Features(spec, weights).prepare(["the", "whale", "the whale"]).astype(float)
    assert both @ whale > 10 * abs(both @ the)


def test_a_text_that_repeats_itself_is_much_the_same() -> None:
    assert likeness("the sea is calm", "the sea is calm " * 50) > 0.8


@pytest.mark.parametrize("text", ["x" * (TEXT_LIMIT_BYTES + 1), "\u20ac" * (TEXT_LIMIT_BYTES // 3 + 1)])
def test_a_text_that_is_too_long(text: str) -> None:
    with pytest.raises(
        TextTooLong, match=r"a text has \d+ bytes, and the model reads at most 131072: split it"
    ):
        features().prepare(["short", text])


def test_the_longest_text() -> None:
    rows = features().prepare(["ab " * (TEXT_LIMIT_BYTES // 3), "a b c d e f " * 9000])
    assert rows.any(axis=1).all()


def test_more_words_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.inference import features as module

    texts = [f"word{number} and word{number + 1}" for number in range(40)]
    expected = features().prepare(texts)
    monkeypatch.setattr(module, "REMEMBERED_WORDS", 8)
    assert (features().prepare(texts) == expected).all()


@pytest.mark.parametrize(
    ("change", "words_of_it"),
    [
        ({"version": VERSION + 1}, "its features are of version 2, and this software makes version 1"),
        ({"width": 0}, "have no sense"),
        ({"width": 1 << 20}, "have no sense"),
        ({"words": 0}, "have no sense"),
        ({"pairs": 2000}, "have no sense"),
        ({"gram_lengths": (0,)}, "have no sense"),
        ({"word_places": 7}, "have no sense"),
        ({"gain": 1000}, "have no sense"),
    ],
)
def test_specs_that_this_software_does_not_make(change: dict[str, int], words_of_it: str) -> None:
    assert not SPEC.problem()
    assert words_of_it in msgspec.structs.replace(SPEC, **change).problem()


@settings(max_examples=50)
@given(
    st.integers(0, 512),
    st.integers(0, 512),
    st.integers(1, 6),
    st.lists(st.integers(1, 16), min_size=1, max_size=8),
)
def test_every_sensible_spec_works(pairs: int, grams: int, places: int, lengths: list[int]) -> None:
    spec = FeatureSpec(
        version=VERSION,
        width=1600,
        words=512,
        pairs=pairs,
        grams=grams,
        word_places=places,
        gram_lengths=tuple(lengths),
    )
    assert not spec.problem()
    assert features(spec).prepare(["not a very long text", "x"]).any(axis=1).all()
