"""Counts claims per second in memory, writes them to the store in batches, and reads those of all replicas.

The data path calls `waiting` when a claim begins and ends, and `claimed` when it has its sandbox; both only update
dictionaries. A claim counts when it begins: one that finds the pool empty gets its sandbox a lead time later, which is
too late to order for the claims that follow. The leader takes the counts since its last pass: its own from memory,
those of other replicas from the store, a second or two later.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from typing import NamedTuple

from gateway.autoscaler.window import MAX_TIMES, times_within
from gateway.core.errors import StoreUnavailableError
from gateway.core.interfaces import SessionStore
from gateway.core.model import RuntimeKey, StartKind

_MISSES = frozenset({StartKind.COLD, StartKind.WAKE_COLD})
# Per-second counts are kept so long, to tell this gateway's claims in the store from those of other replicas. A flush
# that waits for the store is retried each tick, so a count is in the store well within this time or not at all.
_COUNTS_KEPT_S = 120.0
_MAX_BACKLOG_S = 7200  # unwritten counts older than this are dropped during an outage of the store


class Taken(NamedTuple):
    """Claims of a runtime since the last look."""

    claims: int
    misses: int  # this gateway's only
    times: list[float]  # epoch seconds, rising; of the latest MAX_TIMES claims at most


class ClaimSignal:
    """This gateway's claims, and through the store those of all replicas."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self._unwritten: dict[RuntimeKey, Counter[int]] = defaultdict(Counter)
        self._written: dict[RuntimeKey, Counter[int]] = defaultdict(Counter)
        self._foreign: dict[RuntimeKey, Counter[int]] = defaultdict(Counter)
        self._fresh: Counter[RuntimeKey] = Counter()
        self._fresh_times: dict[RuntimeKey, deque[float]] = {}
        self._fresh_misses: Counter[RuntimeKey] = Counter()
        self._waiting: Counter[RuntimeKey] = Counter()  # claims without a sandbox so far
        self._counted: Counter[RuntimeKey] = Counter()  # of those, how many were taken as misses already

    def waiting(self, runtime: RuntimeKey, change: int, at: float) -> int:
        """Count a claim that begins (1), `at` in epoch seconds, or is over (-1). Returns the claims since `take`."""
        self._waiting[runtime] += change
        if change > 0:
            self._unwritten[runtime][math.floor(at)] += 1
            self._fresh[runtime] += 1
            self._times(runtime).append(at)
        elif self._waiting[runtime] <= 0:
            del self._waiting[runtime]
        return self._fresh[runtime]

    def claimed(self, runtime: RuntimeKey, start: StartKind) -> bool:
        """A claim has its sandbox. Returns True if it is a miss that `take` has not counted yet."""
        if start not in _MISSES:
            return False
        if self._counted[runtime] > 0:
            self._counted[runtime] -= 1
            return False
        self._fresh_misses[runtime] += 1
        return True

    def missing(self) -> list[RuntimeKey]:
        """Runtimes of which claims wait or have missed that `take` has not counted yet."""
        late = (key for key, waiting in self._waiting.items() if waiting > self._counted[key])
        return list({*late, *self._fresh_misses})

    def _times(self, runtime: RuntimeKey) -> deque[float]:
        times = self._fresh_times.get(runtime)
        if times is None:
            times = self._fresh_times[runtime] = deque(maxlen=MAX_TIMES)
        return times

    def discard(self) -> None:
        """Drop the claims of earlier ticks while another gateway leads, which reads them from the store."""
        self._fresh.clear()
        self._fresh_times.clear()
        self._fresh_misses.clear()

    def take(self, runtime: RuntimeKey) -> Taken:
        """What came since the last take.

        A claim that still waits counts as a miss: from a warm pool it would have had its sandbox in milliseconds.
        """
        late = self._waiting[runtime] - self._counted[runtime]
        self._counted[runtime] += late  # also down, where waiting claims failed
        misses = self._fresh_misses.pop(runtime, 0) + max(late, 0)
        return Taken(self._fresh.pop(runtime, 0), misses, sorted(self._fresh_times.pop(runtime, ())))

    async def flush(self, now: float) -> None:
        """Write unwritten counts to the store. After a failure they are kept for the next call.

        Raises StoreUnavailableError.
        """
        for runtime in [key for key, counts in self._unwritten.items() if counts]:
            counts = self._unwritten.pop(runtime)
            try:
                await self._store.record_claims(runtime, dict(counts))
            except StoreUnavailableError:
                merged = self._unwritten[runtime] + counts
                oldest = now - _MAX_BACKLOG_S
                self._unwritten[runtime] = Counter({second: n for second, n in merged.items() if second >= oldest})
                raise
            written = self._written[runtime]
            written.update(counts)
            for second in [s for s in written if s < now - _COUNTS_KEPT_S]:
                del written[second]

    async def sync(self, runtime: RuntimeKey, now: float) -> int:
        """Count what other replicas have written since; returns how many. Raises StoreUnavailableError."""
        since = now - _COUNTS_KEPT_S / 2.0
        stored = dict(await self._store.claim_history(runtime, since, bucket=1))
        own, known = self._written[runtime], self._foreign[runtime]
        news = 0
        for second, n in stored.items():
            foreign = n - own[second]
            if foreign > known[second]:
                news += foreign - known[second]
                self._times(runtime).extend(times_within(second, foreign - known[second]))
                known[second] = foreign
        self._fresh[runtime] += news
        for second in [s for s in known if s < now - _COUNTS_KEPT_S]:
            del known[second]
        return news

    async def skip(self, runtime: RuntimeKey, now: float) -> None:
        """Mark all stored claims as counted, after a restore from history. Raises StoreUnavailableError."""
        await self.sync(runtime, now)
        self.take(runtime)

    def forget(self, runtime: RuntimeKey) -> None:
        """Drop the counts of a runtime that was deleted."""
        for table in (
            self._written, self._foreign, self._fresh, self._fresh_times, self._fresh_misses, self._counted
        ):  # fmt: skip
            table.pop(runtime, None)
