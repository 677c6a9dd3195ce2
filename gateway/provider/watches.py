"""Watches on an engine: every subscriber is notified of each sandbox that ends unasked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from gateway.core.model import SandboxEvent


class Watches:
    """Fans events out to any number of subscribers, each of which gets all events from its `begin` on."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[SandboxEvent | None]] = set()

    def begin(self) -> AsyncIterator[SandboxEvent]:
        """The events published from this call on, up to `end`."""
        queue: asyncio.Queue[SandboxEvent | None] = asyncio.Queue()
        self._queues.add(queue)
        return self._events(queue)

    def publish(self, event: SandboxEvent) -> None:
        """Hand an event to every subscriber. Never blocks."""
        for queue in self._queues:
            queue.put_nowait(event)

    def end(self) -> None:
        """End every subscription; no events follow."""
        for queue in self._queues:
            queue.put_nowait(None)

    async def _events(self, queue: asyncio.Queue[SandboxEvent | None]) -> AsyncIterator[SandboxEvent]:
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._queues.discard(queue)
