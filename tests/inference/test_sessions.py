"""Sessions that take turns, more than there are slots: each writes what it writes alone."""

from __future__ import annotations

import gc
import random
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Semaphore

import pytest

import appliance.inference.preload  # noqa: F401  (how a worker imports the engine)
from appliance.inference.text import TextEngine
from appliance.wire.messages import Generate, Sampling, Turn
from tests.endless import add_endless_model

SESSIONS = 24
SLOTS = 4
TURNS = 3

#: The engine multiplies a row alone by another kernel than several at once, and the two round differently: where two words are as
#: likely, the batch that a step happens to be in decides. Seen once in some 40 runs, in one session; memory that is mixed up, or
#: flash attention, changes most of them.
ROUNDING = 1

#: Their order makes no sense, so that no word is much likelier than the next: what differs by a rounding would be seen.
WORDS = ["sea", "crab", "tower", "shell", "tide", "sand", "reef", "fish", "coral", "wave", "storm", "boat"]


@contextmanager
def engine(model: Path, slots: int) -> Iterator[TextEngine]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        found = TextEngine(
            model, Path(folder), slots=slots, threads=1, context_tokens=1024, batch_tokens=128, cache_mib=16
        )
        yield found
        del found._server  # its threads end here, not while the interpreter does
        gc.collect()


def converse(engine: TextEngine, number: int, places: Semaphore) -> tuple[list[str], int]:
    """What a session's replies are, and how many tokens of its prompts were still in the engine."""
    draw = random.Random(number)
    turns = [Turn("system", f"You are {draw.choice(WORDS)}.")]
    replies, cached = [], 0
    for turn in range(TURNS):
        turns.append(Turn("user", " ".join(draw.choices(WORDS, k=20 + number))))
        request = Generate(request_id=f"{number}-{turn}", turns=list(turns), sampling=Sampling(max_tokens=24))
        pieces: list[str] = []
        with places:
            finished = engine.generate(request, pieces.append, lambda: False)
        cached += finished.usage.cached_tokens
        replies.append("".join(pieces))
        turns.append(Turn("assistant", replies[-1]))
    return replies, cached


@pytest.mark.timeout(900)
def test_each_writes_what_it_writes_alone(tmp_path: Path) -> None:
    model = add_endless_model(tmp_path)
    alone = []
    for number in range(SESSIONS):
        with engine(model, SLOTS) as fresh:
            alone.append(converse(fresh, number, Semaphore(SLOTS))[0])
    with engine(model, SLOTS) as shared, ThreadPoolExecutor(SESSIONS) as pool:
        places = Semaphore(SLOTS)
        together = list(pool.map(lambda number: converse(shared, number, places), range(SESSIONS)))
    different = [number for number in range(SESSIONS) if together[number][0] != alone[number]]
    assert len(different) <= ROUNDING, [(together[number][0], alone[number]) for number in different]
    assert len({reply for replies in alone for reply in replies}) > SESSIONS // 2, (
        "they speak of different things"
    )
    # What was read before is not read again: most of each conversation is the history of its last turn.
    assert sum(cached for _, cached in together) > SESSIONS * TURNS * 20
