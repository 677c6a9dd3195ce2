"""Claims as they happen: counted per second in memory, written to the store in batches, read back from all replicas.

The data path calls `claimed` once per new session or wake; that is a dictionary update. The leader takes what came
since its last look: its own claims from memory at once, the other replicas' from the store a second or two later.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict

from gateway.errors import StoreUnavailableError
from gateway.interfaces import SessionStore
from gateway.model import RuntimeKey, StartKind

_MISSES = frozenset({StartKind.COLD, StartKind.WAKE_COLD})
_KEPT = (
    120.0  # seconds of per-second counts kept to tell own from foreign claims; late flushes are later than this never
)
_BACKLOG = 7200  # seconds of unwritten counts kept while the store is away


class ClaimSignal:
    """This gateway's claims, and through the store everybody's."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self._unwritten: dict[RuntimeKey, Counter[int]] = defaultdict(Counter)
        self._written: dict[RuntimeKey, Counter[int]] = defaultdict(Counter)
        self._foreign: dict[RuntimeKey, Counter[int]] = defaultdict(Counter)
        self._fresh: Counter[RuntimeKey] = Counter()
        self._fresh_misses: Counter[RuntimeKey] = Counter()

    def claimed(self, runtime: RuntimeKey, start: StartKind, at: float) -> bool:
        """Count one claim, `at` in epoch seconds. True: it found the pool empty."""
        if start is StartKind.LIVE:
            return False
        self._unwritten[runtime][math.floor(at)] += 1
        self._fresh[runtime] += 1
        missed = start in _MISSES
        if missed:
            self._fresh_misses[runtime] += 1
        return missed

    def take(self, runtime: RuntimeKey) -> tuple[int, int]:
        """(claims, misses) since the last take; misses are this gateway's only."""
        return self._fresh.pop(runtime, 0), self._fresh_misses.pop(runtime, 0)

    async def flush(self, now: float) -> None:
        """Write what is unwritten. Counts that the store does not take are kept and written later.

        Raises StoreUnavailableError.
        """
        for runtime in [key for key, counts in self._unwritten.items() if counts]:
            counts = self._unwritten.pop(runtime)
            try:
                await self._store.record_claims(runtime, dict(counts))
            except StoreUnavailableError:
                merged = self._unwritten[runtime] + counts
                oldest = now - _BACKLOG
                self._unwritten[runtime] = Counter({second: n for second, n in merged.items() if second >= oldest})
                raise
            written = self._written[runtime]
            written.update(counts)
            for second in [s for s in written if s < now - _KEPT]:
                del written[second]

    async def sync(self, runtime: RuntimeKey, now: float) -> int:
        """Count what other replicas have written since; returns how many. Raises StoreUnavailableError."""
        since = now - _KEPT / 2.0
        stored = dict(await self._store.claim_history(runtime, since, bucket=1))
        own, known = self._written[runtime], self._foreign[runtime]
        news = 0
        for second, n in stored.items():
            foreign = n - own[second]
            if foreign > known[second]:
                news += foreign - known[second]
                known[second] = foreign
        self._fresh[runtime] += news
        for second in [s for s in known if s < now - _KEPT]:
            del known[second]
        return news

    async def skip(self, runtime: RuntimeKey, now: float) -> None:
        """Take all that is stored as known, as after a restore from history. Raises StoreUnavailableError."""
        await self.sync(runtime, now)
        self.take(runtime)

    def forget(self, runtime: RuntimeKey) -> None:
        """The runtime is gone."""
        for table in (self._written, self._foreign, self._fresh, self._fresh_misses):
            table.pop(runtime, None)
