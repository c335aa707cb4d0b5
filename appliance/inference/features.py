"""Text to the vector that a text model reads.

An Edge TPU has no embedding lookup, so words become numbers here: each word, its pairs with its neighbours and its letter
n-grams are hashed onto a few signed places of one vector (https://arxiv.org/abs/0902.2206, with several places a word as in
https://arxiv.org/abs/1709.03933), and the network's first layer tells them apart again. Letters are those of ASCII and the bytes
of UTF-8, sums are exact, and the two operations that round are IEEE's, so that every machine, Python and Unicode database gives
the same vector.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from .errors import TextTooLong

#: What `prepare` does. A model says with which version it was trained, and another one is refused.
VERSION = 1

#: About 20,000 words. Longer texts are for whoever splits documents.
TEXT_LIMIT_BYTES = 128 * 1024

#: The beginning of a word is enough to know it; a base64 blob is one word.
WORD_LIMIT_BYTES = 48

#: Words whose places are remembered, about 1 kB each.
REMEMBERED_WORDS = 20_000

#: Entries of the table of word weights; a word's entry is its hash modulo this.
WEIGHTS = 1 << 15

#: One place's sum is cut here, so that the sum of all squares stays below 2**53 and thus exact.
SUM_LIMIT = 1 << 20
WIDTH_LIMIT = 1 << 13

_WORD = re.compile(rb"[a-z0-9\x80-\xff]+(?:'[a-z]+)*")
_APOSTROPHE = "\u2019".encode()
_NEGATIONS = frozenset(
    b"not no never nothing nobody none nor neither without hardly barely cannot cant dont doesnt didnt isnt wasnt".split()
)
#: A negation reaches so many words.
_NEGATION_REACH = 3

#: The n-th time that a text says a word counts less: 16 sqrt(n), rounded down.
_REPEATED = [math.isqrt(256 * count) for count in range(256)]

_MIX, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)

Integers = NDArray[np.int64]


class FeatureSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model wants its texts; kept in the model's own file.

    The vector has `width` places: the first `words` of them are for words, then `pairs` for pairs of neighbours, `grams` for
    letter n-grams of `gram_lengths`, and the rest for words after a negation. A word takes `word_places` of its places. Pairs
    and n-grams count so many eighths of their word. A value that is 1/`gain` of the vector's length becomes 127.
    """

    version: int
    width: int
    words: int
    pairs: int = 0
    grams: int = 0
    word_places: int = 2
    pair_eighths: int = 4
    gram_eighths: int = 4
    gram_lengths: tuple[int, ...] = (3, 4)
    gain: int = 4

    @property
    def negated(self) -> int:
        """Places for words after a negation."""
        return self.width - self.words - self.pairs - self.grams

    @property
    def scale(self) -> float:
        """What 1 of the vector stands for: the scale of the model's input, whose zero point is 0."""
        return 1 / (127 * self.gain)

    def problem(self) -> str:
        """What is wrong with it, empty when nothing is."""
        if self.version != VERSION:
            return f"its features are of version {self.version}, and this software makes version {VERSION}"
        sizes = self.words, self.pairs, self.grams, self.negated
        if not 0 < self.width <= WIDTH_LIMIT or min(sizes) < 0 or not self.words:
            return f"its features have no sense: {sizes} places of {self.width}"
        small = self.word_places, self.pair_eighths, self.gram_eighths, self.gain, *self.gram_lengths
        if (
            not all(1 <= number <= 16 for number in small)
            or self.word_places > 6
            or len(self.gram_lengths) > 8
        ):
            return f"its features have no sense: {small}"
        return ""


def words(text: str) -> list[bytes]:
    """The words of a text, in lower case. TextTooLong when it is over TEXT_LIMIT_BYTES."""
    # A character has at least one byte: a text that is far too long is not copied first.
    size = len(text) if len(text) > TEXT_LIMIT_BYTES else len(data := text.encode("utf-8", "replace"))
    if size > TEXT_LIMIT_BYTES:
        raise TextTooLong(size, TEXT_LIMIT_BYTES)
    data = data.replace(_APOSTROPHE, b"'").lower()
    return [word[:WORD_LIMIT_BYTES] for word in _WORD.findall(data)]


def weight_place(word: bytes) -> int:
    """A word's place in the table of weights."""
    return int(_drawn(word)[0]) % WEIGHTS


def _drawn(word: bytes) -> NDArray[np.uint64]:
    """Eight numbers of 64 bits for a word."""
    return np.frombuffer(hashlib.blake2b(word, digest_size=64).digest(), "<u8")


class _Word(NamedTuple):
    """What a word adds. `places` and `values` are its own and its n-grams', before repetition; `mark` those after a negation."""

    hash: int
    weight: int
    places: Integers
    values: Integers
    mark: int
    mark_value: int


class Features:
    """Makes vectors as `spec` says. `word_weights`: what each word counts, (WEIGHTS,) of uint8, by its hash; rare ones more."""

    def __init__(self, spec: FeatureSpec, word_weights: NDArray[np.uint8]) -> None:
        self.spec = spec
        self.word_weights = word_weights
        self._known: dict[bytes, _Word] = {}

    def prepare(self, texts: Sequence[str]) -> NDArray[np.int8]:
        """(n, width) in -127..127; a text without words is all zeros. TextTooLong for one that is too long."""
        spec = self.spec
        said = [words(text) for text in texts]
        places: list[Integers] = []
        values: list[Integers] = []
        rows: list[int] = []
        factors: list[int] = []
        for number, some in enumerate(said):
            for each, count in Counter(some).items():
                word = self._known.get(each) or self._new(each)
                places.append(word.places)
                values.append(word.values)
                rows.append(number)
                factors.append(_REPEATED[min(count, 255)])
        if not places:
            return np.zeros((len(texts), spec.width), np.int8)
        # One array of all places and values: a call of NumPy costs as much as a dozen places.
        sizes = np.array([len(each) for each in places])
        place = np.concatenate(places) + np.repeat(np.array(rows) * spec.width, sizes)
        value = np.concatenate(values) * np.repeat(np.array(factors), sizes)
        parts = [(place, value)]
        if spec.pairs:
            parts.append(self._pairs(said))
        if spec.negated:
            parts.append(self._denied(said))
        place, value = (np.concatenate(each) for each in zip(*parts, strict=True))
        sums = np.bincount(place, value, len(texts) * spec.width)
        filled = np.flatnonzero(sums)
        sums = np.clip(sums[filled], -SUM_LIMIT, SUM_LIMIT)
        row = filled // spec.width
        squares = np.bincount(row, sums * sums, len(texts))
        scales = 127 * spec.gain / np.sqrt(np.maximum(squares, 1))
        made = np.zeros(len(texts) * spec.width, np.int8)
        made[filled] = np.clip(np.rint(sums * scales[row]), -127, 127)
        return made.reshape(len(texts), spec.width)

    def _pairs(self, said: list[list[bytes]]) -> tuple[Integers, Integers]:
        """Places and values of words that stand side by side."""
        known = [self._word(each) for some in said for each in some]
        rows = np.repeat(np.arange(len(said)), [len(some) for some in said])
        hashes = np.array([word.hash for word in known], np.uint64)
        weights = np.array([word.weight for word in known], np.int64)
        place, sign = _placed(hashes[:-1] * _MIX ^ hashes[1:] * _SECOND, self.spec.pairs)
        place += rows[:-1] * self.spec.width + self.spec.words
        value = sign * (weights[:-1] + weights[1:]) * (8 * self.spec.pair_eighths)
        together = rows[:-1] == rows[1:]
        return place[together], value[together]

    def _denied(self, said: list[list[bytes]]) -> tuple[Integers, Integers]:
        """Places and values of words after a negation."""
        found = [
            (word.mark + row * self.spec.width, word.mark_value)
            for row, some in enumerate(said)
            for word in map(self._word, _after_negation(some))
        ]
        places, values = np.array(found, np.int64).reshape(-1, 2).T
        return places, values

    def _word(self, word: bytes) -> _Word:
        return self._known.get(word) or self._new(word)

    def _new(self, word: bytes) -> _Word:
        """A word that is not remembered yet."""
        if len(self._known) >= REMEMBERED_WORDS:
            self._known.clear()
        found = self._known[word] = self._made(word)
        return found

    def _made(self, word: bytes) -> _Word:
        spec = self.spec
        drawn = _drawn(word)
        weight = int(self.word_weights[int(drawn[0]) % WEIGHTS])
        places, signs = _placed(drawn[1 : 1 + spec.word_places], spec.words)
        values = signs * (weight * 8)
        if spec.grams:
            grams = _grams(word, spec.gram_lengths)
            crcs = np.array([zlib.crc32(gram) for gram in grams], np.uint64)
            gram_places, gram_signs = _placed((crcs + np.uint64(1)) * _MIX, spec.grams)
            places = np.concatenate((places, gram_places + (spec.words + spec.pairs)))
            strength = weight * spec.gram_eighths // max(1, math.isqrt(len(grams)))
            values = np.concatenate((values, gram_signs * strength))
        mark, mark_value = 0, 0
        if spec.negated:
            place, sign = _placed(drawn[7:8], spec.negated)
            mark = int(place[0]) + spec.width - spec.negated
            mark_value = int(sign[0]) * weight * 128
        return _Word(int(drawn[0]), weight, places, values, mark, mark_value)


def _placed(hashes: NDArray[np.uint64], count: int) -> tuple[Integers, Integers]:
    """A place below `count` and a sign for each hash, from its upper half."""
    upper = (hashes >> np.uint64(33)).astype(np.int64)
    signs = 1 - 2 * ((hashes >> np.uint64(32)) & np.uint64(1)).astype(np.int64)
    return upper % count, signs


def _grams(word: bytes, lengths: tuple[int, ...]) -> list[bytes]:
    framed = b"^" + word + b"$"
    found = [framed[at : at + n] for n in lengths for at in range(len(framed) - n + 1)]
    return found or [framed]


def _after_negation(said: list[bytes]) -> list[bytes]:
    """The words that a negation reaches."""
    found: list[bytes] = []
    reach = 0
    for word in said:
        if word in _NEGATIONS or word.endswith(b"n't"):
            reach = _NEGATION_REACH
        elif reach:
            reach -= 1
            found.append(word)
    return found
