"""How well texts find each other by their vectors, as nDCG@10.

    .venv/bin/python -m appliance.inference.making.embedding.evaluate FILE.tflite

Each query has one relevant document. At rank r it counts 1/log2(1 + r) up to rank 10 and 0 beyond. Three tasks:

- `described`: the one-line description of a package looks for its long description among those of all held-out packages.
- `struck`: the same, with every word of its own line struck from the long description: what is left must be found by meaning.
- `facts`: a question looks for the fact that answers it among all facts about the appliance. Both are the project's own text,
  the questions those on which the chat model is measured; neither model has learnt from them.
"""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from appliance.inference.making.chat.corpus import HERE as CHAT

from . import corpus
from .corpus import Pair

DEPTH = 10

Embed = Callable[[Sequence[str]], NDArray[np.float32]]


class Task(msgspec.Struct, frozen=True):
    """`wanted[n]` is the document that query n looks for."""

    queries: list[str]
    documents: list[str]
    wanted: list[int]


def described(pairs: Sequence[Pair], part: str) -> Task:
    """The packages of a part: test or validation."""
    some = sorted(
        (pair for pair in pairs if corpus.part_of(pair.source) == part), key=lambda pair: pair.source
    )
    return Task([pair.line for pair in some], [pair.text for pair in some], list(range(len(some))))


def struck(task: Task) -> Task:
    """A task whose wanted documents have no word of their query."""
    documents = list(task.documents)
    for query, wanted in zip(task.queries, task.wanted, strict=True):
        said = set(_words(query))
        documents[wanted] = " ".join(
            word for word in documents[wanted].split() if not said & set(_words(word))
        )
    return Task(task.queries, documents, task.wanted)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def facts() -> Task:
    """Questions about the appliance."""
    known = tomllib.loads((CHAT / "text" / "facts.toml").read_text("utf-8"))["fact"]
    numbers = {fact["id"]: number for number, fact in enumerate(known)}
    asked = [
        json.loads(line) for line in (CHAT / "heldout" / "appliance.jsonl").read_text("utf-8").splitlines()
    ]
    return Task(
        [each["question"] for each in asked],
        [" ".join((*fact["say"], fact.get("more", ""))) for fact in known],
        [numbers[each["fact"]] for each in asked],
    )


def ndcg(task: Task, embed: Embed) -> float:
    """Mean nDCG@10. A document with the same score as the wanted one comes before it."""
    queries, documents = embed(task.queries), embed(task.documents)
    scores = np.asarray(queries @ documents.T, np.float64)
    own = scores[np.arange(len(scores)), task.wanted][:, None]
    rank = (scores >= own).sum(axis=1)
    return float(np.where(rank <= DEPTH, 1 / np.log2(1 + rank), 0).mean())


def tasks(pairs: Sequence[Pair], part: str = "test") -> dict[str, Task]:
    """All three."""
    whole = described(pairs, part)
    return {"described": whole, "struck": struck(whole), "facts": facts()}


def main() -> None:
    from appliance.inference.making.export import Runner

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, default=Path(".cache/small-models"), help="where the lists lie")
    arguments = parser.parse_args()
    runner = Runner(arguments.model)
    for name, task in tasks(corpus.available(arguments.work)).items():
        print(
            f"{name}: {len(task.queries)} queries, {len(task.documents)} documents: {ndcg(task, runner.embed):.4f}"
        )


if __name__ == "__main__":
    main()
