"""Tasks that run beside the provider's answers, and end with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Tasks:
    """Holds each task until it is done: the event loop alone would not."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin it now; nobody waits for what comes of it."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        forget: Callable[[asyncio.Task[None]], None] = self._running.discard
        task.add_done_callback(forget)

    async def cancel(self) -> None:
        """Cancel all, and wait until each has taken its leave."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
