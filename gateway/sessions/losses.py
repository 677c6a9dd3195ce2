"""Sandboxes that ended on their own, until the records of their sessions say so.

The store may be away just then: a disk that the sandbox itself has filled, a Redis that starts again. So each is tried
until it is settled. What the end of the gateway leaves is found by the next start (gateway/sessions/recovery.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from gateway.core.background import Tasks
from gateway.core.backoff import backoff, jittered
from gateway.core.errors import WakegateError
from gateway.core.model import SandboxEvent
from gateway.sessions.recovery import Loss, Recovery

logger = logging.getLogger(__name__)

CONCURRENCY = 8  # tries at a time: of a node with hundreds of sandboxes, all end at once
MAX_PENDING = 10_000  # of about 4 KB each, 40 MB; the next request on the session of a further one finds it lost
FIRST_RETRY_S = 0.2
LAST_RETRY_S = 10.0
_TRIES_PER_S = 50.0  # of all that wait: 10,000 are each tried every 200 s, and not 1000 a second


class Losses:
    """Follows the engine's events. `follow` runs for as long as the gateway does."""

    def __init__(self, recovery: Recovery, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._recovery = recovery
        self._sleep = sleep
        self._tasks = Tasks()
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._pending: dict[str, Loss] = {}
        self._problem = ""  # the last one that was logged

    def __len__(self) -> int:
        return len(self._pending)

    async def follow(
        self, events: AsyncIterator[SandboxEvent], on_event: Callable[[SandboxEvent], None] = lambda event: None
    ) -> None:
        """Settle each event, until there are no more or this is cancelled. `on_event` is called once for each."""
        try:
            async for event in events:
                on_event(event)
                self.add(event)
            await self._tasks.wait()
        finally:
            await self._tasks.aclose()

    def add(self, event: SandboxEvent) -> None:
        """Close the session's routes now, and write its record as soon as the store takes it."""
        loss = self._recovery.unbind(event)
        if loss is None or event.sandbox_id in self._pending:
            return
        if len(self._pending) >= MAX_PENDING:
            logger.error(
                "sandbox %s ended (%s), and %d others wait for their records; the next request on session %s finds it",
                event.sandbox_id,
                event.reason,
                len(self._pending),
                loss.session_id,
            )
            return
        self._pending[event.sandbox_id] = loss
        self._tasks.spawn(self._settle(loss), name=f"loss of sandbox {event.sandbox_id}")

    async def _settle(self, loss: Loss) -> None:
        failures = 0
        try:
            while True:
                async with self._slots:
                    if await self._try(loss):
                        return
                failures += 1
                longest = max(LAST_RETRY_S, len(self._pending) / _TRIES_PER_S)
                await self._sleep(jittered(backoff(failures, first=FIRST_RETRY_S, longest=longest)))
        finally:
            del self._pending[loss.event.sandbox_id]

    async def _try(self, loss: Loss) -> bool:
        try:
            await self._recovery.settle(loss)
        except WakegateError as error:
            problem = str(error)
            if problem != self._problem:
                logger.warning(
                    "sandbox %s ended (%s); its session's record is written later, %d of them wait: %s",
                    loss.event.sandbox_id,
                    loss.event.reason,
                    len(self._pending),
                    error,
                )
        except Exception as error:
            # A bug; let through, it would end this loss alone, unseen, and its files would stay for ever.
            problem = repr(error)
            if problem != self._problem:
                logger.exception("the end of sandbox %s cannot be recorded", loss.event.sandbox_id)
        else:
            self._problem = ""
            return True
        self._problem = problem
        return False
