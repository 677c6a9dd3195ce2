"""Lead times as they were on a real engine, for a replay of what it did.

One number does not do on a machine where starts contend: while several start, or others work, each takes longer, and
just then claims are frequent too. So an order in the replay takes as long as what was ordered at that time really took.
"""

from __future__ import annotations

import numpy as np

from gateway.autoscaler.forecast import Floats


class RecordedLeads:
    """Starts that were recorded: when each was ordered, and after how many seconds it was ready."""

    def __init__(self, ordered: Floats, seconds: Floats) -> None:
        """Starts in any order, and at least one of them."""
        by_time = np.argsort(ordered, kind="stable")
        self._ordered, self._seconds = ordered[by_time], seconds[by_time]
        by_end = np.argsort(self._ordered + self._seconds)
        self._ready = (self._ordered + self._seconds)[by_end]
        self._by_end = self._seconds[by_end]

    def at(self, now: float, count: int) -> list[float]:
        """Lead times of `count` orders given at once: those of the starts that were ordered nearest to `now`."""
        right = int(np.searchsorted(self._ordered, now))
        # The nearest `count` lie among the `count` before and the `count` after: no need to sort them all.
        near = self._ordered[max(right - count, 0) : right + count]
        best = np.argsort(np.abs(near - now), kind="stable")[:count] + max(right - count, 0)
        found: list[float] = self._seconds[best].tolist()
        return found + found[-1:] * (count - len(found))

    def median(self, since: float) -> float:
        """Of what was ordered from `since` on (of all, when nothing was)."""
        late = self._seconds[self._ordered >= since]
        return float(np.median(late if len(late) else self._seconds))

    def planned(self, now: float, q: float = 0.9, kept: int = 64) -> float:
        """The quantile (nearest rank) of the latest `kept` starts that were ready by `now`; of the first before."""
        # By the time at which they were ready: a gateway knows a lead time only once its start is over.
        until = max(int(np.searchsorted(self._ready, now, side="right")), 1)
        latest = np.sort(self._by_end[max(until - kept, 0) : until])
        return float(latest[min(len(latest) - 1, int(q * len(latest)))])
