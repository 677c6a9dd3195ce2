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
        """`interrupted`, `restarted`, `left`: what the run's error will be named after."""
        if not self.asked.done():
            self.reason = reason
            self.asked.set_result(None)


async def first_of(running: asyncio.Future[Any], stop: Stop, timeout: float) -> str:
    """Wait for a run. Why it should end early: `timeout`, the stop's reason, or empty when it ended by itself."""
    await asyncio.wait({running, stop.asked}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    return "" if running.done() else stop.reason or "timeout"
