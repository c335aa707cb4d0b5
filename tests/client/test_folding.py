"""Lines broken between words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from appliance.client.folding import Folding, folded


def test_a_line_ends_between_words() -> None:
    assert folded("one two three four", 10) == "one two\nthree\nfour"
    assert folded("one two", 80) == "one two"


def test_what_stands_on_the_line_before_counts() -> None:
    said: list[str] = []
    folding = Folding(said.append, lambda: 12, column=len("Finn> "))
    folding("Hello there")
    folding.flush()
    assert "".join(said) == "Hello\nthere"


def test_columns_and_paragraphs_stay() -> None:
    text = "a   b\n  indented\n\nend "
    assert folded(text, 80) == text


def test_a_word_is_held_back_until_it_has_ended() -> None:
    said: list[str] = []
    folding = Folding(said.append, lambda: 80)
    folding("Hel")
    assert said == []
    folding("lo, w")
    assert "".join(said) == "Hello,"
    folding.flush()
    assert "".join(said) == "Hello, w"


WORDS = st.text(alphabet="ab \n海", max_size=60)


@given(st.lists(WORDS, max_size=6), st.integers(4, 30))
def test_whatever_comes(pieces: list[str], columns: int) -> None:
    """Nothing is lost but spaces where a line ends; no line is longer than the screen unless a word is; pieces do not matter."""
    said: list[str] = []
    folding = Folding(said.append, lambda: columns)
    for piece in pieces:
        folding(piece)
    folding.flush()
    text, shown = "".join(pieces), "".join(said)
    assert shown.split() == text.split()
    assert shown == folded(text, columns)
    for line in shown.splitlines():
        assert cell_len(line.rstrip()) < columns or len(line.split()) == 1
