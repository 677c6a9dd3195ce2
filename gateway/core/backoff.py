"""Exponential back-off: how long to wait before the next try."""

from __future__ import annotations

import random


def backoff(failures: int, *, first: float, longest: float) -> float:
    """Seconds to wait after `failures` (1 or more) in a row: `first`, doubled with each further one, up to `longest`.

    first 0.5, longest 30: 0.5, 1, 2, 4, 8, 16, 30, 30, ...
    """
    # The exponent is capped because 2.0 ** 1024 overflows: a part that fails every 30 s gets there in nine hours.
    return min(longest, first * 2.0 ** min(failures - 1, 32))


def jittered(seconds: float) -> float:
    """A uniformly random time between half of `seconds` and all of it, so that clients do not retry in lockstep.

    Source: Brooker, "Exponential Backoff and Jitter" (2015), equal jitter.
    """
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
