"""The tokenizer: byte-level BPE, learnt from our own text alone, one token a digit.

Single digits let a small model copy and place numbers; the merges never join them, so llama.cpp's `gpt-2` pre-tokenizer gives the
same ids as the one here: `samples` is what a test compares the engine with.
"""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .corpus import SPECIAL, Corpus
from .plan import Shape

#: Tokens in all, control tokens included; a multiple of 32 for the Q8_0 blocks.
VOCABULARY = Shape().vocabulary


def learn(corpus: Corpus, path: Path, *, seed: int = 1, conversations: int = 30_000) -> None:
    """Learns the tokenizer from a sample of conversations and writes it to `path` (JSON)."""
    rng = random.Random(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )

    def sample() -> list[str]:
        lines = []
        for _ in range(conversations):
            conversation = corpus.conversation(rng)
            lines.append(conversation.system)
            lines += [message.content for message in conversation.messages]
        return lines

    tokenizer.train_from_iterator(sample(), trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(f"{tokenizer.get_vocab_size()} tokens learnt, {VOCABULARY} wanted: more text")
    partial = path.with_suffix(".partial")
    tokenizer.save(str(partial))
    partial.replace(path)


def load(path: Path) -> Tokenizer:
    """Reads a tokenizer written by `learn`."""
    return Tokenizer.from_file(str(path))


def samples(tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Texts with their ids: what people write, and what trips tokenizers up."""
    texts = [
        "How many TPUs can it hold?",
        "what's 1250 minus 785?",
        "  two  spaces, a tab\tand a\nnew line",
        "I'm sure they've said it isn't. WE'LL SEE!",
        "na\u00efve caf\u00e9 \u2013 \u4f60\u597d \U0001f980",
        '{"name": "set_timer", "arguments": {"minutes": 45}}',
        "x" * 40,
        "...!!!???",
        "3.14 1,000 2026-11-22",
    ]
    return {text: tokenizer.encode(text, add_special_tokens=False).ids for text in texts}


def encode(tokenizer: Tokenizer, pieces: list[tuple[str, bool]]) -> tuple[list[int], list[bool]]:
    """Ids of the rendered pieces and, for each id, whether the model learns to say it."""
    ids: list[int] = []
    learnt: list[bool] = []
    for encoding, (_, says) in zip(
        tokenizer.encode_batch([text for text, _ in pieces], add_special_tokens=False), pieces, strict=True
    ):
        ids += encoding.ids
        learnt += [says] * len(encoding.ids)
    return ids, learnt
