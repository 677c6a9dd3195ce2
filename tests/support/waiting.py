"""Waiting in tests: until a condition holds, never for a fixed time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable

LIMIT_S = 20.0  # a wait that takes longer has failed; nothing that is waited for takes a second


def _pause_s(waited_s: float) -> float:
    """How long to sleep before the next look, 10 to 50 ms: later than needed by a tenth of what was waited.

    A look is often a request, or reads /proc of all processes (10 ms of CPU): one each 10 ms keeps a core busy, on
    which what is waited for would run.
    """
    return min(0.05, max(0.01, waited_s / 10))


async def eventually(holds: Callable[[], object], what: str, within: float = LIMIT_S) -> None:
    """Wait on the event loop until `holds()`, plain or awaitable, is true; fail with `what` after `within` seconds."""
    began = time.monotonic()
    while True:
        answer = holds()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return
        waited = time.monotonic() - began
        assert waited < within, f"never happened: {what}"
        await asyncio.sleep(_pause_s(waited) / 2)  # most of these look at objects of the same process


def wait_until(holds: Callable[[], object], what: str, within: float = LIMIT_S) -> None:
    """`eventually` for tests without an event loop."""
    began = time.monotonic()
    while not holds():
        waited = time.monotonic() - began
        assert waited < within, f"never happened: {what}"
        time.sleep(_pause_s(waited))
