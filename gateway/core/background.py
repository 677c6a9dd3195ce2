"""Background loops of a gateway: a verb run again and again, for as long as the gateway runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.core.errors import WakegateError

logger = logging.getLogger(__name__)


async def every(interval: float, verb: Callable[[], Awaitable[Any]]) -> None:
    """Run a verb again and again. A part that is away is said once per change, and tried again at the next turn."""
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
