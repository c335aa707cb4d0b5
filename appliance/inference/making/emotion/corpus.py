"""The sentences that the emotion model learns from: all of it the project's own text.

Three sources, from the surest to the broadest: sentences written for it (`text/sentences.txt`), what people say on those of the
chat model's occasions that tell a feeling, and frames filled with words for feelings (`text/words.toml`). A denied feeling
is another one: "not happy" is slight sadness, "not afraid" is neutral.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

HERE = Path(__file__).parent
CHAT = HERE.parent / "chat" / "text"

#: The order of the model's outputs.
LABELS = ("neutral", "joy", "sadness", "anger", "fear", "surprise", "affection")

#: What the three strengths of text files mean as an intensity.
INTENSITIES = (0.0, 0.3, 0.6, 0.9)

_INTENSIFIERS = re.compile(r"\b(so|very|really|totally|absolutely|completely|such a|never been)\b|!")


class Example(msgspec.Struct, frozen=True):
    """A sentence, what it expresses, and how strongly: 0 for neutral, 1 slight, 2 clear, 3 strong."""

    text: str
    label: str
    strength: int

    @property
    def intensity(self) -> float:
        return INTENSITIES[self.strength]


def read(path: Path) -> list[Example]:
    """A text file of headings that name an emotion, and lines that begin with a strength."""
    found = []
    label = ""
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("# ") and line[2:] in LABELS:
            label = line[2:]
        elif line[:1].isdigit():
            found.append(Example(line[2:].strip(), label, int(line[0])))
    return found


def written() -> list[Example]:
    """The sentences written for this model."""
    return read(HERE / "text" / "sentences.txt")


def held_out() -> list[Example]:
    """The sentences that it is measured on."""
    return read(HERE / "heldout.txt")


def words() -> dict[str, Any]:
    """`text/words.toml`."""
    return tomllib.loads((HERE / "text" / "words.toml").read_text("utf-8"))


def occasions() -> list[Example]:
    """What people say on occasions that tell a feeling."""
    labels = words()["occasions"]
    found = []
    for path in sorted((CHAT / "smalltalk").glob("*.txt")):
        label = ""
        for line in path.read_text("utf-8").splitlines():
            if line.startswith("# "):
                label = labels.get(line[2:].strip(), "")
            elif label and line.startswith("u: "):
                strength = 3 if _INTENSIFIERS.search(line) else 2
                found.append(Example(line[3:], label, 0 if label == "neutral" else strength))
    return found


def questions() -> list[Example]:
    """Questions about the appliance and the world: neutral."""
    lines = [
        line.strip()
        for path in sorted((CHAT / "questions").glob("*.txt"))
        for line in path.read_text("utf-8").splitlines()
        if line.strip() and not line.startswith("#") and "{" not in line
    ]
    return [Example(line, "neutral", 0) for line in lines]


def filled(seed: int, count: int) -> Iterator[Example]:
    """Frames filled with words, every label as often as the others."""
    rng = random.Random(seed)
    text = words()
    frames = text["frames"]

    def fill(frame: str, **given: str) -> str:
        drawn = {key: rng.choice(some) for key, some in text["words"].items()}
        return frame.format(**drawn, **given)

    for number in range(count):
        label = LABELS[number % len(LABELS)]
        if label == "neutral":
            denied = rng.choice(LABELS[2:6])
            yield rng.choice(
                [
                    Example(fill(rng.choice(frames["plain"])), "neutral", 0),
                    Example(
                        fill(rng.choice(frames["not"]), feeling=_feeling(rng, text[denied])[0]), "neutral", 0
                    ),
                    Example(
                        fill(rng.choice(frames["not_thing"]), thing=rng.choice(text[denied]["things"])),
                        "neutral",
                        0,
                    ),
                ]
            )
        elif label == "sadness" and rng.random() < 0.3:
            feeling, _ = _feeling(rng, text["joy"])
            yield Example(fill(rng.choice(frames["not"]), feeling=feeling), "sadness", 1)
        elif rng.random() < 0.7:
            feeling, strength = _feeling(rng, text[label])
            yield Example(fill(rng.choice(frames["feeling"]), feeling=feeling), label, strength)
        else:
            yield Example(
                fill(rng.choice(frames["thing"]), thing=rng.choice(text[label]["things"])), label, 2
            )


def _feeling(rng: random.Random, of: dict[str, list[str]]) -> tuple[str, int]:
    """A word for a feeling and its strength."""
    strength = rng.choice((1, 2, 2, 3))
    return rng.choice(of[("slight", "clear", "strong")[strength - 1]]), strength


def shared_templates() -> list[str]:
    """Held-out sentences that share a run of four words with a written one, or are a frame with its slots filled."""
    runs = {run for example in (*written(), *occasions(), *questions()) for run in _runs(example.text)}
    text = words()
    slots = {name: "|".join(map(re.escape, some)) for name, some in text["words"].items()}
    feelings = [
        each for label in LABELS[1:] for each in (text[label][s] for s in ("slight", "clear", "strong"))
    ]
    slots["feeling"] = "|".join(re.escape(word) for some in feelings for word in some)
    slots["thing"] = "|".join(re.escape(word) for label in LABELS[1:] for word in text[label]["things"])
    frames = [
        re.compile(
            re.sub(r"\\\{(\w+)\\\}", lambda slot: f"(?:{slots[slot[1]]})", re.escape(frame)) + r"[.!?]*",
            re.IGNORECASE,
        )
        for some in text["frames"].values()
        for frame in some
    ]
    whole = {_plain(example.text) for example in (*written(), *occasions())}
    return [
        example.text
        for example in held_out()
        if _runs(example.text) & runs
        or _plain(example.text) in whole
        or any(frame.fullmatch(example.text) for frame in frames)
    ]


def _plain(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z']+", text.lower()))


def _runs(text: str) -> set[tuple[str, ...]]:
    said = _plain(text)
    return {said[at : at + 4] for at in range(len(said) - 3)}
