"""What came of recent calls, so that a retried request does not run them twice.

Keyed by session, call id and the call's content: some local models number their calls from 0 in every message, and a
call with other arguments is another call. Whoever asks for a call that is under way waits for the same run. Kept in
this gateway's memory, for a while and within bounds; a call outlives the client that asked for it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson

from gateway.api.tools.calls import Call
from gateway.api.tools.results import ToolResult
from gateway.clock import Clock
from gateway.model import SessionId

KEEP_S = 600.0
MAX_ENTRIES = 4096
MAX_BYTES = 64 << 20

Key = tuple[SessionId, str, bytes]


@dataclass(frozen=True, slots=True)
class _Kept:
    result: ToolResult
    until: float  # monotonic


class CallMemory:
    """Runs under way and results of late, the oldest first."""

    def __init__(
        self, clock: Clock, *, keep: float = KEEP_S, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES
    ) -> None:
        self._clock = clock
        self._keep = keep
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._running: dict[Key, asyncio.Task[ToolResult]] = {}
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._running) + len(self._kept)

    async def run(
        self, session_id: SessionId, call: Call, work: Callable[[], Awaitable[ToolResult]]
    ) -> tuple[ToolResult, bool]:
        """The call's result, and whether it was there already or is another's run. Raises what `work` raises.

        A run that raises is forgotten: nothing came of it that could be told again.
        """
        key = (session_id, call.id, _digest(call))
        self._forget_old()
        kept = self._kept.get(key)
        if kept is not None:
            return kept.result, True
        task = self._running.get(key)
        replayed = task is not None
        if task is None:
            task = self._running[key] = asyncio.ensure_future(_as_coroutine(work))
            task.add_done_callback(lambda done: self._ended(key, done))
        # Shielded: the one who leaves first must not end it for the others, nor for its own retry.
        return await asyncio.shield(task), replayed

    async def aclose(self) -> None:
        """End the runs under way."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, key: Key, task: asyncio.Task[ToolResult]) -> None:
        self._running.pop(key, None)
        if not task.cancelled() and task.exception() is None:
            self._kept[key] = _Kept(task.result(), self._clock.monotonic() + self._keep)
            self._bytes += task.result().size
            self._forget_old()

    def _forget_old(self) -> None:
        now = self._clock.monotonic()
        while self._kept:
            key, kept = next(iter(self._kept.items()))
            if kept.until > now and len(self._kept) <= self._max_entries and self._bytes <= self._max_bytes:
                return
            self._bytes -= kept.result.size
            del self._kept[key]


async def _as_coroutine(work: Callable[[], Awaitable[ToolResult]]) -> ToolResult:
    return await work()


def _digest(call: Call) -> bytes:
    content = orjson.dumps([call.name, dict(call.arguments)], option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(content, digest_size=16).digest()
