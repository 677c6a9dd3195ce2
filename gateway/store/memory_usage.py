"""Usage (core/usage.py) in dictionaries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable

from gateway.core.clock import Clock
from gateway.core.usage import ORDINARY_RETENTION, Amounts, Retention, Rows, UsageKey


class MemoryUsage:
    """Implements UsageStore for a MemoryStore. `turn` is awaited in each call, and raises once the store is closed."""

    def __init__(self, turn: Callable[[], Awaitable[None]], clock: Clock) -> None:
        self._turn = turn
        self._clock = clock
        self._written: dict[str, int] = {}
        self._kept: dict[UsageKey, defaultdict[str, float]] = {}

    async def add(self, writer: str, sequence: int, rows: Rows, retention: Retention = ORDINARY_RETENTION) -> bool:
        """Add the amounts unless the writer has already written that batch."""
        await self._turn()
        if sequence <= self._written.get(writer, 0):
            return False
        self._written[writer] = sequence
        for key, amounts in rows.items():
            kept = self._kept.setdefault(key, defaultdict(float))
            for quantity, amount in amounts.items():
                kept[quantity] += amount
        now = self._clock.now()
        for key in [key for key in self._kept if key.hour + retention.of(key) <= now]:
            del self._kept[key]
        return True

    async def read(
        self, since: int, until: int, *, sessions: bool, tenant: str | None = None
    ) -> AsyncIterator[tuple[UsageKey, Amounts]]:
        """Rows of these hours, by key."""
        await self._turn()
        for key in sorted(self._kept):
            if since <= key.hour < until and bool(key.session) is sessions and tenant in (None, key.tenant):
                yield key, dict(self._kept[key])
