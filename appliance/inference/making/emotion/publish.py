"""Makes the emotion model's file from what was trained, enters it into the manifest and writes its card:

.venv/bin/python -m appliance.inference.making.emotion.publish DIR FILE.tflite
"""

from __future__ import annotations

import argparse
from pathlib import Path

from appliance.files import write_atomically
from appliance.inference.making.export import Runner, enter, export
from appliance.inference.text_models import Emotion
from appliance.inference.tflite import read_tflite

from . import corpus, evaluate
from .corpus import LABELS, Example

NAME = "coral-reef-emotion"
DESCRIPTION = "What a sentence expresses, of seven emotions, and how strongly, made by this project"


def card(path: Path, figures: evaluate.Figures, found: list[tuple[Example, Emotion]]) -> str:
    """The model card."""
    file = read_tflite(path)
    rows = []
    for label in LABELS:
        taken = [emotion.label for example, emotion in found if example.label == label]
        wrong = sorted({each for each in taken if each != label}, key=lambda each: (-taken.count(each), each))
        share = 100 * figures.right[label] / figures.all[label]
        said = ", ".join(f"{each} {taken.count(each)}" for each in wrong) or "-"
        rows.append(f"| {label} | {figures.right[label]} of {figures.all[label]} ({share:.0f} %) | {said} |")
    total = sum(figures.all.values())
    width = file.inputs[0].shape[1]
    hidden = next(each.shape[0] for each in file.tensors if each.name == "weights1")
    return f"""# {NAME}

{DESCRIPTION}: {", ".join(LABELS)}. An Edge TPU runs it whole; without one the CPU does.

## Figures

Measured on the int8 file that ships, on {total} sentences (`appliance/inference/making/emotion/heldout.txt`) that share no template with the
training text: no run of four words with a written sentence, and no frame with its slots filled (a test checks it). They were written for
this project, before the training text and by the same hand, so that strangers' sentences will come out somewhat worse.

| emotion | right | taken for |
|---|---|---|
{chr(10).join(rows)}

- All: {sum(figures.right.values())} of {total} right ({100 * figures.accuracy:.1f} %). Guessing would give {100 / len(LABELS):.0f} %.
- Feelings that are denied ("not afraid") taken as that: {figures.denied} of {len(evaluate.DENIALS)}. These are built like sentences that it learnt from.
- Of two sentences of one emotion, the stronger has the higher intensity in {100 * figures.ordered:.0f} % (guessing: 50 %).

## Method

Words, pairs of words and words after a negation are hashed to a vector of {width:,} signed numbers on the host
(`appliance/inference/features.py`); the network has a hidden layer of {hidden} and {len(LABELS) + 1} outputs (labels and intensity), all int8 with
one scale a tensor. Besides sentences with labels it saw words, sentences and mixtures of both that nobody had labelled: a classifier on the vectors
of the embedding's teacher, all-MiniLM-L6-v2 (Apache-2.0), learnt our labels and guessed theirs.

## Data

The project's own: {len(corpus.written())} sentences written for it, {len(corpus.occasions())} from the chat model's small talk, and frames filled with words for
feelings. Without labels: the chat model's text, the commoner words of the teacher's vocabulary, and one-line descriptions of Debian packages,
read when the model is made.

## Size

{path.stat().st_size / 1e6:.1f} MB of TensorFlow Lite: {file.parameters:,} parameters in {len(file.operations)} fully connected layers. Made by `make models-small`
in less than an hour on two cores, together with the embedding.

## Limits

- English. One emotion a text: of mixed feelings it names one.
- It goes by words and pairs of words. Irony, and situations that are sad or frightening without a word that says so, it often misses.
- Its intensity orders sentences roughly; the number itself means little.
- It says what a text expresses, nothing about the person who wrote it: nobody should be judged by it.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path, help="where the training left its results")
    parser.add_argument("model", type=Path)
    arguments = parser.parse_args()
    path: Path = arguments.model
    if shared := corpus.shared_templates():
        raise SystemExit(f"held-out text shares a template with the training text: {shared}")
    export(arguments.work / "emotion.npz", path, "emotion", DESCRIPTION, LABELS)
    figures, found = evaluate.measure(Runner(path))
    text = card(path, figures, found)
    write_atomically(path.with_suffix(".md"), text.encode())
    enter(path, NAME, "emotion", DESCRIPTION)
    print(text.partition("## Method")[0])


if __name__ == "__main__":
    main()
