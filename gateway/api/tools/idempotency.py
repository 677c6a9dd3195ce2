"""What came of recent calls, so that a retried request does not run them twice.

Whoever asks for what is under way waits for the same run. Results are kept in this gateway's memory, for a while and
within bounds; a run outlives the client that asked for it. What another gateway ran, or this one in an earlier life,
picod remembers: the same key goes with the request to it (actions.py).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import orjson

from gateway.api.tools.calls import Call
from gateway.core.clock import Clock
from gateway.core.model import SessionId

KEEP_S = 600.0
MAX_ENTRIES = 4096
MAX_BYTES = 64 << 20

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Kept(Generic[V]):
    value: V
    size: int
    until: float  # monotonic


class IdempotencyCache(Generic[V]):
    """Runs under way and values of late, the oldest first, by key. `size_of` tells the bytes that a value takes."""

    def __init__(
        self,
        clock: Clock,
        size_of: Callable[[V], int],
        *,
        keep: float = KEEP_S,
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_BYTES,
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
        """The key's value, and whether it was there already or is another's run. Raises what `work` raises.

        A run that raises is forgotten: nothing came of it that could be told again.
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
        # Shielded: the one who leaves first must not end it for the others, nor for its own retry.
        return await asyncio.shield(task), replayed

    async def aclose(self) -> None:
        """Cancel the runs under way and wait for their end."""
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


def key_of(session_id: SessionId, call: Call) -> str:
    """What makes two calls the same: session, id and content, as a text of 32 characters.

    The content, as some local models number their calls from 0 in every message, and a call with other arguments is
    another call.
    """
    content = orjson.dumps([session_id, call.id, call.name, dict(call.arguments)], option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(content, digest_size=16).hexdigest()


async def _as_coroutine(work: Callable[[], Awaitable[V]]) -> V:
    return await work()
