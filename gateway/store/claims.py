"""The layout of the claim history, the same in every store.

Each claim counts in a bucket of a second and in one of a minute. Seconds are kept for six hours (forecasters learn
short rhythms from them), minutes for fourteen days (so that each weekday occurs twice).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

HORIZON_S = {1: 6 * 3600, 60: 14 * 86400}  # bucket width -> how long it is kept, both in seconds


def fold(counts: Mapping[int, int]) -> dict[tuple[int, int], int]:
    """(bucket width, bucket start) -> claims, for counts keyed by second."""
    folded: Counter[tuple[int, int]] = Counter()
    for second, n in counts.items():
        if n > 0:
            for bucket in HORIZON_S:
                folded[bucket, second - second % bucket] += n  # e.g. second 125 counts in (1, 125) and (60, 120)
    return dict(folded)


def oldest_start(bucket: int, since: float, now: float) -> int:
    """The earliest bucket start to return: not before `since`, and within the horizon.

    Raises ValueError for a bucket width that is not kept.
    """
    if bucket not in HORIZON_S:
        raise ValueError(f"claims are kept in buckets of {' or '.join(map(str, HORIZON_S))} seconds, not {bucket}")
    # -int(-x // 1) rounds up: a bucket that began before `since` counts claims from before it.
    return -int(-max(since, now - HORIZON_S[bucket]) // 1)
