"""How many sandboxes start at a time. Starting one costs about 100 ms of CPU: more at once only makes each slower.

Claims go before refills and have a higher limit: a client waits for them. A start that takes long no longer counts: it
waits for something, such as an agent that listens nowhere, and eight of those would keep all others from starting.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_COUNTS_S = 5.0  # for which a start counts: 50 times what one takes


class StartLimiter:
    """At most `refills` starts run when a refill begins, and at most twice that when a claim does."""

    def __init__(self, refills: int, counts_s: float = _COUNTS_S) -> None:
        self._refill_limit, self._claim_limit = refills, 2 * refills
        self._counts_s = counts_s
        self._running = 0
        self._claims: deque[asyncio.Future[None]] = deque()
        self._refills: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def slot(self, *, urgent: bool) -> AsyncIterator[None]:
        """Hold a slot while a sandbox starts; `urgent` is a claim, else a refill."""
        queue, loop = self._claims if urgent else self._refills, asyncio.get_running_loop()
        turn = loop.create_future()
        queue.append(turn)
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                queue.remove(turn)
            else:
                self._release()  # the slot was granted in the step of the cancellation
            raise
        released = False

        def release() -> None:
            nonlocal released
            if not released:
                released = True
                self._release()

        timer = loop.call_later(self._counts_s, release)
        try:
            yield
        finally:
            timer.cancel()
            release()

    def _release(self) -> None:
        self._running -= 1
        self._grant()

    def _grant(self) -> None:
        for queue, limit in ((self._claims, self._claim_limit), (self._refills, self._refill_limit)):
            waiting = [turn for turn in queue if not turn.done()]
            for turn in waiting[: max(0, limit - self._running)]:
                queue.remove(turn)
                self._running += 1
                turn.set_result(None)
            if len(waiting) and self._running >= limit:
                return
