"""Who watches an engine for sandboxes that end by themselves, and hears of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from gateway.core.model import SandboxEvent


class Watches:
    """Any number of watches, each of which gets every event from its beginning on."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[SandboxEvent | None]] = set()

    def begin(self) -> AsyncIterator[SandboxEvent]:
        """What is told from this call on, up to `end`."""
        queue: asyncio.Queue[SandboxEvent | None] = asyncio.Queue()
        self._queues.add(queue)
        return self._events(queue)

    def tell(self, event: SandboxEvent) -> None:
        """Hand it to all."""
        for queue in self._queues:
            queue.put_nowait(event)

    def end(self) -> None:
        """There will be no more events."""
        for queue in self._queues:
            queue.put_nowait(None)

    async def _events(self, queue: asyncio.Queue[SandboxEvent | None]) -> AsyncIterator[SandboxEvent]:
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._queues.discard(queue)
