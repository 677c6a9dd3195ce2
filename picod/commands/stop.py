"""Ending a run early, on request or after its timeout."""

from __future__ import annotations

import asyncio
from typing import Any


class Stop:
    """Asks a run to end early; the first reason stands."""

    def __init__(self) -> None:
        self.reason = ""
        self.asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ask(self, reason: str) -> None:
        """Ask the run to end for `reason`: `interrupted`, `restarted` or `left`, after which its error is named."""
        if not self.asked.done():
            self.reason = reason
            self.asked.set_result(None)


async def first_of(running: asyncio.Future[Any], stop: Stop, timeout: float) -> str:
    """Wait for a run. Returns why to end it early: `timeout` or the stop's reason; empty when it ended by itself."""
    # wait and not wait_for, which would cancel the run at the timeout: the caller decides how to end it.
    await asyncio.wait({running, stop.asked}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    return "" if running.done() else stop.reason or "timeout"
