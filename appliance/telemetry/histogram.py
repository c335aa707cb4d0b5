"""Durations as counts in logarithmic buckets: bounded memory, a bounded error, and histograms add up by adding their counts.

Twenty buckets a decade from 10 microseconds to 100 seconds; what is shorter or longer is in the first or the last. A quantile is
the geometric middle of its bucket, so it is off by at most ERROR in either direction. 10 ms, 100 ms and 1 s are edges, and 50 ms
is one within 0.3 %: the bounds that the specification's histogram is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log10

PER_DECADE = 20
SHORTEST_S = 1e-5
LONGEST_S = 100.0
BUCKETS = 7 * PER_DECADE

#: How far a quantile between SHORTEST_S and LONGEST_S may be off, as a share of it: half a bucket.
ERROR = 10 ** (0.5 / PER_DECADE) - 1

_OFFSET = -log10(SHORTEST_S) * PER_DECADE

#: From here on the logarithm may be rounded up into a bucket that there is not.
_LAST_S = LONGEST_S * (1 - 1e-9)


def bucket_of(seconds: float) -> int:
    """Which bucket counts a duration."""
    if seconds <= SHORTEST_S:
        return 0
    if seconds >= _LAST_S:
        return BUCKETS - 1
    return int(log10(seconds) * PER_DECADE + _OFFSET)


def upper_edge_s(bucket: int) -> float:
    """Up to where a bucket counts; of the last one LONGEST_S, though it counts what is longer, too."""
    return float(10 ** ((bucket + 1 - _OFFSET) / PER_DECADE))


def quantile_s(counts: Sequence[int], share: float) -> float | None:
    """The duration that this share (0 to 1) of those counted does not exceed; None when none was counted."""
    total = sum(counts)
    if not total:
        return None
    left = max(1, ceil(share * total))
    for bucket, count in enumerate(counts):
        left -= count
        if left <= 0:
            return float(10 ** ((bucket + 0.5 - _OFFSET) / PER_DECADE))
    raise ValueError(f"a share of {share}: 0 to 1 was expected")
