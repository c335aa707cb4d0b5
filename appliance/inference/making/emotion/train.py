"""Trains the emotion model: `python -m appliance.inference.making.emotion.train --out DIR`.

A few thousand sentences teach a small network what feelings are called. That it also knows words which these do not have, it
learns from the embedding's teacher in two ways: a classifier on the teacher's vectors labels words and sentences that nobody
labelled, and the network's hidden layer must besides be able to give the teacher's vector back.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from appliance.inference.features import Features, FeatureSpec
from appliance.inference.making.embedding import corpus as descriptions
from appliance.inference.making.embedding.teacher import DIMENSIONS, Teacher
from appliance.inference.making.student import SAMPLES, Bags, Network, save, torn, warm_cosine, word_weights

from . import corpus
from .corpus import LABELS, Example

SPEC = FeatureSpec(version=1, width=6144, words=3072, pairs=1024, grams=1536, gram_lengths=(4,))


@dataclass(frozen=True)
class Plan:
    """Everything that decides the result."""

    hidden: int = 192
    filled: int = 14_000
    words: int = 12_000
    lines: int = 4_000
    mixed: int = 12_000
    steps: int = 4_000
    batch: int = 256
    warmup: int = 100
    learning_rate: float = 3.0e-3
    rounded_from: float = 0.8
    #: Each labelled sentence is there a second time, with this chance of each word to be missing.
    torn_words: float = 0.2
    #: How many of the hidden units are dropped at each step.
    dropout: float = 0.2
    #: What the teacher's vector counts beside the labels, and what a label that the classifier gave counts beside ours.
    likeness: float = 2.0
    guessed: float = 1.0
    seed: int = 7


class Classifier(nn.Module):
    """The teacher's vectors -> labels and intensity: (n, 384) -> (n, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(DIMENSIONS, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, len(LABELS) + 1)
        )

    def forward(self, vectors: Tensor) -> Tensor:
        found: Tensor = self.layers(vectors)
        return found


def loss_of(output: Tensor, label: Tensor, intensity: Tensor, weight: Tensor) -> Tensor:
    """Cross entropy of the labels, which may be shares, and of the intensity."""
    labels = functional.cross_entropy(output[:, :-1], label, reduction="none", label_smoothing=0.05)
    strength = functional.binary_cross_entropy_with_logits(output[:, -1], intensity, reduction="none")
    return (weight * (labels + strength)).mean()


def targets(examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """One-hot labels, intensities, and weights that let every label count the same."""
    numbers = torch.tensor([LABELS.index(example.label) for example in examples])
    counts = torch.bincount(numbers, minlength=len(LABELS)).float()
    weights = (len(examples) / len(LABELS) / counts.clamp(min=1))[numbers]
    return (
        functional.one_hot(numbers, len(LABELS)).float(),
        torch.tensor([example.intensity for example in examples]),
        weights,
    )


def classifier(vectors: Tensor, examples: Sequence[Example], seed: int) -> Classifier:
    """Learns from our sentences what the teacher's vectors mean."""
    torch.manual_seed(seed)
    net = Classifier()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3, weight_decay=1e-4)
    label, intensity, weight = targets(examples)
    for _ in range(400):
        optimizer.zero_grad()
        loss_of(net(vectors), label, intensity, weight).backward()
        optimizer.step()
    return net.eval()


def mixture(said: Sequence[str], some_words: Sequence[str], rng: random.Random) -> str:
    """One or two sentences, some of their words replaced by others: only the teacher knows what that says."""
    sentence = rng.choice(said) if rng.random() < 0.5 else f"{rng.choice(said)}, {rng.choice(said)}"
    return " ".join(rng.choice(some_words) if rng.random() < 0.3 else word for word in sentence.split())


def pool(teacher: Teacher, ours: Sequence[Example], work: Path, plan: Plan) -> tuple[list[str], Tensor]:
    """Words and sentences that nobody labelled, with the teacher's vectors."""
    rng = random.Random(plan.seed)
    said = [example.text for example in ours]
    some_words = teacher.common_words(plan.words)
    mixed = [mixture(said, some_words, rng) for _ in range(plan.mixed)]
    pairs = descriptions.available(work)
    lines = [pair.line for pair in pairs if descriptions.part_of(pair.source) == "train"]
    # Asked in the same portions as for the embedding, which the teacher remembers.
    chosen = rng.sample(range(len(lines)), plan.lines)
    portions = [descriptions.our_lines(), some_words, [f"i feel {word}" for word in some_words], mixed]
    vectors = [teacher.embed(portion) for portion in portions]
    texts = [text for portion in portions for text in portion]
    return (
        [*texts, *(lines[each] for each in chosen)],
        torch.from_numpy(np.concatenate([*vectors, teacher.embed(lines)[chosen]])).float(),
    )


class Student(nn.Module):
    """The network that ships, and beside it what gives the teacher's vector back from the same hidden layer."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.network = Network(SPEC.width, plan.hidden, len(LABELS) + 1)
        self.vector = nn.Linear(plan.hidden, DIMENSIONS)
        self.dropout = nn.Dropout(plan.dropout)

    def forward(self, bags: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden = self.network.hidden(bags)
        return self.network.output(self.dropout(hidden)), functional.normalize(self.vector(hidden))


def train(work: Path, plan: Plan, threads: int) -> None:
    """Trains to the end of the plan and writes `emotion.npz` into `work`."""
    teacher = Teacher(work, threads)
    written, occasions = corpus.written(), corpus.occasions()
    ours = [*written, *occasions]
    filled = list(corpus.filled(plan.seed, plan.filled))
    questions = random.Random(plan.seed).sample(corpus.questions(), 600)
    labelled = [*ours, *questions]
    vectors = torch.from_numpy(teacher.embed([example.text for example in labelled])).float()
    guess = classifier(vectors, labelled, plan.seed)
    unlabelled, pool_vectors = pool(teacher, ours, work, plan)
    with torch.no_grad():
        guessed = guess(pool_vectors)
    features = Features(SPEC, word_weights([*(example.text for example in labelled), *unlabelled]))
    said = [example.text for example in labelled]
    rng_words = random.Random(plan.seed)
    said_torn = [torn(text, rng_words, plan.torn_words) for text in said]
    bags = Bags(features, [*said, *said_torn, *(example.text for example in filled)])
    pool_bags = Bags(features, unlabelled)
    label, intensity, weight = (
        torch.cat(each) for each in zip(targets([*labelled, *labelled]), targets(filled), strict=True)
    )

    torch.manual_seed(plan.seed)
    student = Student(plan)
    optimizer = torch.optim.Adam(
        student.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=1e-6
    )
    rng = np.random.default_rng(plan.seed)
    began = time.monotonic()
    for step in range(plan.steps):
        student.network.rounded = step >= plan.rounded_from * plan.steps
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * warm_cosine(step, plan.steps, plan.warmup)
        # Half of them written sentences, a quarter frames.
        own = np.concatenate(
            (
                rng.integers(0, 2 * len(labelled), plan.batch // 2),
                rng.integers(2 * len(labelled), len(bags), plan.batch // 4),
            )
        )
        rest = rng.integers(0, len(unlabelled), plan.batch)
        output, _ = student(bags.pick(own))
        loss = loss_of(output, label[own], intensity[own], weight[own])
        output, vector = student(pool_bags.pick(rest))
        shares = functional.softmax(guessed[rest, :-1], 1)
        strengths = torch.sigmoid(guessed[rest, -1])
        loss = loss + plan.guessed * loss_of(output, shares, strengths, torch.ones(len(rest)))
        likeness = (vector * pool_vectors[rest]).sum(1).mean()
        loss = loss + plan.likeness * (1 - likeness)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % 250 == 0:
            spent = time.monotonic() - began
            print(
                f"step {step + 1}/{plan.steps}  loss {loss.item():.3f}  cosine {likeness.item():.3f}  {spent:.0f} s",
                flush=True,
            )
    save(work / "emotion.npz", student.network, features, [example.text for example in labelled[:SAMPLES]])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for what is computed on the way")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    train(arguments.out, Plan(), arguments.threads)


if __name__ == "__main__":
    main()
