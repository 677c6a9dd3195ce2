"""How many sandboxes start at a time. Starting one costs about 100 ms of CPU: more at once only makes each slower.

Claims go before refills and have a higher limit: a client waits for them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class StartLimiter:
    """At most `refills` starts run when a refill begins, and at most twice that when a claim does."""

    def __init__(self, refills: int) -> None:
        self._refill_limit, self._claim_limit = refills, 2 * refills
        self._running = 0
        self._claims: deque[asyncio.Future[None]] = deque()
        self._refills: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def slot(self, *, urgent: bool) -> AsyncIterator[None]:
        """Hold a slot while a sandbox starts; `urgent` is a claim, else a refill."""
        queue = self._claims if urgent else self._refills
        turn = asyncio.get_running_loop().create_future()
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
        try:
            yield
        finally:
            self._release()

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
