"""How well the emotion model knows sentences that share no template with its training text.

.venv/bin/python -m appliance.inference.making.emotion.evaluate FILE.tflite [--wrong]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec

from appliance.inference.making.export import Runner
from appliance.inference.text_models import Emotion

from . import corpus
from .corpus import LABELS, Example

#: Denied feelings, which are not those feelings: what each may be taken for.
DENIALS = {
    "I am not angry with you.": "neutral",
    "She was not afraid of the thunder.": "neutral",
    "He isn't sad about it.": "neutral",
    "This does not surprise me.": "neutral",
    "They were never scared.": "neutral",
    "I am not worried.": "neutral",
    "My boss wasn't furious.": "neutral",
    "I don't hate broccoli.": "neutral",
    "He is not happy.": "sadness",
    "We were not glad to leave.": "sadness",
    "I'm not cheerful these days.": "sadness",
    "Nobody was happy with it.": "sadness",
}


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """`right` and `all` of each label; `denied` of DENIALS; `ordered`: of all pairs of one emotion and different strength, the
    share whose stronger one has the higher intensity."""

    right: dict[str, int]
    all: dict[str, int]
    denied: int
    ordered: float

    @property
    def accuracy(self) -> float:
        return sum(self.right.values()) / sum(self.all.values())


def measure(runner: Runner) -> tuple[Figures, list[tuple[Example, Emotion]]]:
    """The figures, and every sentence with what the model says of it."""
    examples = corpus.held_out()
    found = list(zip(examples, runner.feel([example.text for example in examples]), strict=True))
    denied = runner.feel(list(DENIALS))
    return Figures(
        right={
            label: sum(example.label == label == emotion.label for example, emotion in found)
            for label in LABELS
        },
        all={label: sum(example.label == label for example in examples) for label in LABELS},
        denied=sum(emotion.label == wanted for emotion, wanted in zip(denied, DENIALS.values(), strict=True)),
        ordered=_ordered(found),
    ), found


def _ordered(found: Sequence[tuple[Example, Emotion]]) -> float:
    right = total = 0
    for example, emotion in found:
        for other, weaker in found:
            if other.label == example.label and other.strength < example.strength:
                total += 1
                right += emotion.intensity > weaker.intensity
    return right / total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--wrong", action="store_true", help="show the sentences that it took for another emotion"
    )
    arguments = parser.parse_args()
    runner = Runner(arguments.model)
    figures, found = measure(runner)
    for label in LABELS:
        print(f"{label}: {figures.right[label]} of {figures.all[label]} right")
    print(f"all: {100 * figures.accuracy:.1f} %; denied: {figures.denied} of {len(DENIALS)}")
    print(f"order of strengths: {figures.ordered:.3f}")
    if arguments.wrong:
        for example, emotion in found:
            if emotion.label != example.label:
                print(f"[{example.label}] {example.text} <- {emotion.label} {emotion.intensity:.2f}")
        for (text, wanted), emotion in zip(DENIALS.items(), runner.feel(list(DENIALS)), strict=True):
            if emotion.label != wanted:
                print(f"[denied, {wanted}] {text} <- {emotion.label}")


if __name__ == "__main__":
    main()
