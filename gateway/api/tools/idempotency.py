"""A cache of runs by key: requests share a run under way, and its result is kept for a while.

A run continues when the client that started it leaves: its retry finds the run, or its result. Results are kept in this
gateway's memory, bounded by time, count and bytes. For runs of other gateways, or from before a restart, picod keeps
answers by the same key, which is sent with each request to it (sandbox.py). turns.py decides which requests have the
same key.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from gateway.core.clock import Clock

KEEP_S = 600.0  # how long an Idempotency-Key is remembered (turns.py)
MAX_ENTRIES = 4096
MAX_KEPT_BYTES = 64 << 20

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Kept(Generic[V]):
    value: V
    size: int
    until: float  # monotonic


class IdempotencyCache(Generic[V]):
    """Runs under way and recent values by key, the oldest evicted first. `size_of` is a value's size in bytes."""

    def __init__(
        self,
        clock: Clock,
        size_of: Callable[[V], int],
        *,
        keep: float = KEEP_S,
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_KEPT_BYTES,
    ) -> None:
        self._clock = clock
        self._size_of = size_of
        self._keep = keep
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._running: dict[Hashable, asyncio.Task[V]] = {}
        self._kept: OrderedDict[Hashable, _Kept[V]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._running) + len(self._kept)

    async def run(self, key: Hashable, work: Callable[[], Awaitable[V]]) -> tuple[V, bool]:
        """Return the key's value, and whether an earlier or a concurrent run made it. Raises what `work` raises.

        A run that raises is not kept, so the next attempt runs again.
        """
        self._forget_old()
        kept = self._kept.get(key)
        if kept is not None:
            return kept.value, True
        task = self._running.get(key)
        replayed = task is not None
        if task is None:
            task = self._running[key] = asyncio.ensure_future(_as_coroutine(work))
            task.add_done_callback(lambda done: self._ended(key, done))
        # Shielded: a client that disconnects must not cancel the run for others that wait, nor for its own retry.
        return await asyncio.shield(task), replayed

    async def aclose(self) -> None:
        """Cancel the runs under way and wait until they have ended."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, key: Hashable, task: asyncio.Task[V]) -> None:
        self._running.pop(key, None)
        if not task.cancelled() and task.exception() is None:
            value = task.result()
            kept = self._kept[key] = _Kept(value, self._size_of(value), self._clock.monotonic() + self._keep)
            self._bytes += kept.size
            self._forget_old()

    def _forget_old(self) -> None:
        now = self._clock.monotonic()
        while self._kept:
            key, kept = next(iter(self._kept.items()))
            if kept.until > now and len(self._kept) <= self._max_entries and self._bytes <= self._max_bytes:
                return
            self._bytes -= kept.size
            del self._kept[key]


async def _as_coroutine(work: Callable[[], Awaitable[V]]) -> V:
    return await work()
