"""Distils the teacher into a network for Edge TPUs: `python -m appliance.inference.making.embedding.train --out DIR`.

The student reads hashed words (`appliance.inference.features`) and learns two things at once: to give each text the teacher's
vector, also when words of the text are missing, and to know a package's line from the lines of others by its text. It trains
with the int8 weights that ship in mind: the last part of the training rounds them as they will be.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor

from appliance.inference.features import Features, FeatureSpec
from appliance.inference.making.student import SAMPLES, Bags, Network, save, torn, warm_cosine, word_weights

from . import corpus, evaluate
from .teacher import DIMENSIONS, Teacher

SPEC = FeatureSpec(version=1, width=8192, words=5120, grams=3072, gram_eighths=8, gram_lengths=(4,))


@dataclass(frozen=True)
class Plan:
    """Everything that decides the result."""

    hidden: int = 512
    steps: int = 4_000
    #: Packages and other texts in a step.
    pairs: int = 256
    others: int = 256
    warmup: int = 100
    learning_rate: float = 2.0e-3
    #: From here on the weights are rounded to int8 as they will ship.
    rounded_from: float = 0.8
    temperature: float = 0.05
    #: What the distance from the teacher's vector counts, and the contrast between packages.
    likeness: float = 10.0
    contrast: float = 1.0
    #: What the teacher's likenesses of a line to all texts of the step count.
    relation: float = 2.0
    #: The chance of each word to be missing in texts that are torn.
    torn_words: float = 0.35
    #: Single words among the other texts.
    words: int = 6_000
    seed: int = 7


@dataclass(frozen=True)
class Lesson:
    """Texts, whole and in other variants, with the teacher's vectors of the whole ones: (n, 384)."""

    bags: list[Bags]
    target: Tensor

    def draw(self, rows: NDArray[np.int64], variant: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """Some of the texts in one variant, taken modulo."""
        return self.bags[variant % len(self.bags)].pick(rows), self.target[torch.from_numpy(rows)].float()


def lesson(portions: list[list[str]], teacher: Teacher, features: Features, plan: Plan) -> Lesson:
    """The texts of all portions, whole and with words missing."""
    texts = [text for portion in portions for text in portion]
    vectors = np.concatenate([teacher.embed(portion) for portion in portions])
    rng = random.Random(plan.seed)
    some = [torn(text, rng, plan.torn_words) for text in texts]
    return Lesson([Bags(features, texts), Bags(features, some)], torch.from_numpy(vectors))


def train(network: Network, lines: Lesson, texts: Lesson, others: Lesson, plan: Plan) -> None:
    """To the end of the plan."""
    optimizer = torch.optim.Adam(network.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), fused=True)
    rng = np.random.default_rng(plan.seed)
    began = time.monotonic()
    for step in range(plan.steps):
        network.rounded = step >= plan.rounded_from * plan.steps
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * warm_cosine(step, plan.steps, plan.warmup)
        pairs = rng.integers(0, len(lines.target), plan.pairs)
        rest = rng.integers(0, len(others.target), plan.others)
        drawn = [
            lines.draw(pairs, 0),
            texts.draw(pairs, int(rng.integers(6))),
            others.draw(rest, int(rng.integers(6))),
        ]
        outputs = [functional.normalize(network(bags)) for bags, _ in drawn]
        targets = [target for _, target in drawn]
        output, target = torch.cat(outputs), torch.cat(targets)
        likeness = 1 - (output * target).sum(1).mean()
        documents, known = torch.cat(outputs[1:]), torch.cat(targets[1:])
        scores = outputs[0] @ documents.T / plan.temperature
        wanted = torch.arange(len(scores))
        contrast = functional.cross_entropy(scores, wanted)
        contrast = contrast + functional.cross_entropy(scores[:, : len(scores)].T, wanted)
        relation = functional.kl_div(
            functional.log_softmax(scores, 1),
            functional.softmax(targets[0] @ known.T / plan.temperature, 1),
            reduction="batchmean",
        )
        loss = plan.likeness * likeness + plan.contrast * contrast + plan.relation * relation
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        done = step + 1
        if done % 100 == 0:
            spent = time.monotonic() - began
            print(
                f"step {done}/{plan.steps}  cosine {1 - likeness.item():.3f}  contrast {contrast.item() / 2:.3f}  "
                f"relation {relation.item():.3f}  {spent:.0f} s, {spent / done * (plan.steps - done):.0f} s to go",
                flush=True,
            )


def run(work: Path, plan: Plan, threads: int) -> None:
    """Reads, asks the teacher, trains, and writes `embedding.npz` into `work`."""
    teacher = Teacher(work, threads)
    pairs = [pair for pair in corpus.available(work) if corpus.part_of(pair.source) == "train"]
    manuals = [pair for pair in corpus.manuals() if corpus.part_of(pair.source) == "train"]
    documentation = [text for source, text in corpus.documentation() if corpus.part_of(source) == "train"]
    lines, texts = [pair.line for pair in pairs], [pair.text for pair in pairs]
    others = [
        [pair.line for pair in manuals],
        [pair.text for pair in manuals],
        documentation,
        corpus.our_lines(),
        teacher.common_words(plan.words),
    ]
    print(f"{len(pairs)} packages, {sum(map(len, others))} other texts", flush=True)
    everything = [text for portion in (lines, texts, *others) for text in portion]
    features = Features(SPEC, word_weights(everything))
    torch.manual_seed(plan.seed)
    network = Network(SPEC.width, plan.hidden, DIMENSIONS)
    lessons = [lesson(some, teacher, features, plan) for some in ([lines], [texts], others)]
    lessons[1].bags.append(
        Bags(features, evaluate.struck(evaluate.Task(lines, texts, list(range(len(lines))))).documents)
    )
    train(network, lessons[0], lessons[1], lessons[2], plan)
    samples = random.Random(plan.seed).sample(everything, SAMPLES)
    save(work / "embedding.npz", network, features, samples)
    measure(work, teacher)


def measure(work: Path, teacher: Teacher) -> None:
    """The teacher's own figures, for the card."""

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        return teacher.embed(texts).astype(np.float32)

    found = {
        name: evaluate.ndcg(task, embed) for name, task in evaluate.tasks(corpus.available(work)).items()
    }
    (work / "teacher-figures.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for what is computed on the way")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    run(arguments.out, Plan(), arguments.threads)


if __name__ == "__main__":
    main()
