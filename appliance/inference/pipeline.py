"""A model that was cut into segments, each on a TPU of its own: while the second TPU works on one input, the first has the next.

For models that do not fit one TPU's memory: their parameters stay on the chips instead of being sent for each input.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tensor_models import Rows, Runner

Pipe = queue.Queue[NDArray[Any] | None]

#: Inputs between two stages: enough that neither waits for the other's hiccups.
DEPTH = 2


class StageFailed(RuntimeError):
    """`stage` counts from 0."""

    def __init__(self, stage: int, error: BaseException) -> None:
        super().__init__(str(error))
        self.stage = stage


class Pipeline:
    """Runs rows through a chain of stages, each in a thread of its own; as `Runner` does it on one device."""

    def __init__(self, stages: Sequence[Runner]) -> None:
        self._stages = stages
        self.scale, self.zero_point = stages[-1].scale, stages[-1].zero_point
        #: When each stage began what it does, on the monotonic clock; 0 while it waits.
        self.since = [0.0] * len(stages)

    def run(self, rows: Rows, before_each: Callable[[], None]) -> NDArray[Any]:
        """(n, ...) of the last stage's output, in the order of the rows. StageFailed when one does; then nothing of it counts.

        `before_each` is called before each invoke, from the stages' threads.
        """
        pipes: list[Pipe] = [queue.Queue(DEPTH) for _ in self._stages]
        outputs: list[NDArray[Any]] = []
        failures: list[StageFailed] = []

        def work(number: int) -> None:
            """A stage's thread: from one queue to the next, until None comes. When one has failed, the rest passes by."""
            target = pipes[number + 1] if number + 1 < len(pipes) else None
            while (row := pipes[number].get()) is not None:
                if failures:
                    continue
                self.since[number] = time.monotonic()
                try:
                    done = self._stages[number].run(row, before_each)
                except Exception as error:  # noqa: BLE001  # whatever it is, who asked must hear of it
                    failures.append(StageFailed(number, error))
                    continue
                finally:
                    self.since[number] = 0.0
                if target is None:
                    outputs.append(done)
                else:
                    target.put(done)
            if target is not None:
                target.put(None)

        chain = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(pipes))]
        for thread in chain:
            thread.start()
        for number in range(len(rows)):
            pipes[0].put(rows[number : number + 1])
        pipes[0].put(None)
        for thread in chain:
            thread.join()
        if failures:
            raise failures[0]
        return np.concatenate(outputs)
