"""Background work: loops that run as long as the gateway does, and tasks that outlive the call that began them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from gateway.core.errors import WakegateError

logger = logging.getLogger(__name__)


async def every(interval: float, verb: Callable[[], Awaitable[Any]]) -> None:
    """Run a verb every `interval` seconds. A failure is logged once, until it changes, and tried again next time."""
    trouble = ""
    while True:
        await asyncio.sleep(interval)
        try:
            await verb()
            trouble = ""
        except WakegateError as error:
            if str(error) != trouble:
                logger.warning("%s: %s", verb.__name__, error)
            trouble = str(error)


async def cancel(task: asyncio.Task[None]) -> None:
    """End a loop and wait for its end; one that had failed says so now."""
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass
    except Exception:
        logger.exception("background task %s had failed", task.get_name())


class Tasks:
    """Tasks of one owner, all of which end with it. Each is held until it is done: the event loop itself would not."""

    def __init__(self) -> None:
        self.running = False  # for owners that start and stop: set by them once they have started
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any], *, name: str | None = None) -> asyncio.Task[Any]:
        """Run it beside the caller. A failure that is never awaited is the caller's to look for."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def wait(self) -> None:
        """Until those that run now are done, however they end."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def aclose(self) -> None:
        """Cancel them, and wait for their end."""
        self.running = False
        for task in list(self._tasks):
            task.cancel()
        await self.wait()
