"""How hot a TPU is, and what follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

#: A sensor that says less or more than this is dead, never cold or hot (FACTS of the gasket driver; -89700 is an ADC of all ones:
#: the chip has fallen off its bus).
SANE_MILLICELSIUS = range(-40_000, 125_001)
OFF_THE_BUS_MILLICELSIUS = -89_700


class Heat(IntEnum):
    """How far it is from doing nothing."""

    NORMAL = 0
    THROTTLED = 1
    SHUT_DOWN = 2


#: The share of its usual work that a TPU gets.
LOAD_LIMITS: Mapping[Heat, float] = {Heat.NORMAL: 1.0, Heat.THROTTLED: 0.5, Heat.SHUT_DOWN: 0.0}


@dataclass(frozen=True)
class Thresholds:
    """Degrees Celsius. `shutdown_c` is at least `throttle_c` plus `hysteresis_c`."""

    throttle_c: float
    shutdown_c: float
    hysteresis_c: float

    def after(self, before: Heat, celsius: float) -> Heat:
        """What follows on `before` at that temperature: up at a threshold, down only when it is `hysteresis_c` cooler."""
        rising = Heat((celsius >= self.throttle_c) + (celsius >= self.shutdown_c))
        falling = Heat(
            (celsius >= self.throttle_c - self.hysteresis_c)
            + (celsius >= self.shutdown_c - self.hysteresis_c)
        )
        return max(rising, min(before, falling))
