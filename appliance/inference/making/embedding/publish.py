"""Makes the embedding's file from what was trained, enters it into the manifest and writes its card:

.venv/bin/python -m appliance.inference.making.embedding.publish DIR FILE.tflite
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec
import numpy as np

from appliance.files import write_atomically
from appliance.inference.features import Features, FeatureSpec
from appliance.inference.making.export import Runner, enter, export
from appliance.inference.tflite import read_tflite

from . import corpus, evaluate

NAME = "coral-reef-embedding"
DESCRIPTION = "Text to vectors of 384 dimensions for finding what is about the same, made by this project"

#: Share of the teacher's nDCG@10 that `described` is to reach.
GOAL = 0.8


def lexical(spec: FeatureSpec, word_weights: np.ndarray) -> evaluate.Embed:
    """The hashed words themselves as vectors: what a search for the same words finds, without any network."""
    features = Features(spec, word_weights)

    def embed(texts: list[str]) -> np.ndarray:
        vectors = features.prepare(texts).astype(np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths == 0, 1, lengths)

    return embed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path, help="where the training left its results")
    parser.add_argument("model", type=Path)
    arguments = parser.parse_args()
    work: Path = arguments.work
    path: Path = arguments.model
    export(work / "embedding.npz", path, "embedding", DESCRIPTION)
    pairs = corpus.available(work)
    tasks = evaluate.tasks(pairs)
    runner = Runner(path)
    with np.load(work / "embedding.npz") as saved:
        spec = msgspec.json.decode(saved["spec"].tobytes(), type=FeatureSpec)
        words_only = lexical(spec, saved["word_weights"])
    teacher = json.loads((work / "teacher-figures.json").read_text("utf-8"))
    rows = []
    for name, task in tasks.items():
        ours, plain = evaluate.ndcg(task, runner.embed), evaluate.ndcg(task, words_only)
        cells = f"{ours:.3f} | {teacher[name]:.3f} | {ours / teacher[name]:.2f} | {plain:.3f}"
        rows.append(f"| {name} | {len(task.queries):,} | {len(task.documents):,} | {cells} |")
        print(rows[-1], flush=True)
        if name == "described" and ours < GOAL * teacher[name]:
            print(f"the goal of {GOAL} of the teacher's figure is not reached")
    trained = sum(corpus.part_of(pair.source) == "train" for pair in pairs)
    write_atomically(path.with_suffix(".md"), card(path, rows, trained).encode())
    enter(path, NAME, "embedding", DESCRIPTION)


def card(path: Path, rows: list[str], trained: int) -> str:
    """The model card."""
    file = read_tflite(path)
    width, outputs = file.inputs[0].shape[1], file.outputs[0].shape[1]
    hidden = next(each.shape[0] for each in file.tensors if each.name == "weights1")
    return f"""# {NAME}

{DESCRIPTION}. An Edge TPU runs it whole; without one the CPU does.

## Figures

nDCG@10 of the int8 file that ships, beside that of its teacher and of the hashed words alone, which find what has the same words.

| task | queries | documents | this model | teacher | share | words alone |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

- `described`: the one-line description of a Debian package looks for its long description among those of all packages held out.
  Packages share most words with themselves, so that words alone do well here. Goal: {GOAL} of the teacher's figure.
- `struck`: the same, with every word of its own line struck from the long description: what is left must be found by meaning.
- `facts`: one of 200 questions looks for the fact that answers it among those that the chat model knows. None of these was learnt
  from; questions of the same kind were among the texts.

Held out is every sixteenth source package, by the SHA-256 of its name, with all that belongs to it or says the same: see
`appliance/inference/making/embedding/corpus.py`. Debian changes, and the figures of the first two tasks a little with it.

## Method

Words, and parts of words, are hashed to a vector of {width:,} signed numbers on the host (`appliance/inference/features.py`); the
network has a hidden layer of {hidden} and {outputs} outputs, all int8 with one scale a tensor. It learnt to give each text the vector of its
teacher, also when words are missing, to rank texts as the teacher does, and to know a package's long description by its line, also
when the words of the line are struck from it.

## Data

Descriptions of {trained:,} Debian packages (bookworm), manual pages and documentation of the machine that it was made on, and this
project's own sentences. They are read when the model is made and are not part of it. The teacher is all-MiniLM-L6-v2 (Apache-2.0), needed for
nothing but the training.

## Size

{path.stat().st_size / 1e6:.1f} MB of TensorFlow Lite: {file.parameters:,} parameters in {len(file.operations)} fully connected layers. Made by `make models-small`
in less than an hour on two cores, together with the emotion model.

## Limits

- English. Words that it never saw are known by their letters only; other alphabets hardly at all.
- The order of words is lost but for what the teacher made of it: "dog bites man" and "man bites dog" are nearly the same.
- Texts beyond a paragraph blur: split documents first.
- It learnt from software's descriptions and small talk. In other fields expect less than the figures above.
"""


if __name__ == "__main__":
    main()
