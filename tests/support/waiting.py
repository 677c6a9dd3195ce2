"""Waiting in tests: until a condition holds, never for a fixed time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable

LIMIT_S = 20.0  # a wait that takes longer has failed; nothing that is waited for takes a second


async def eventually(holds: Callable[[], object], what: str, within: float = LIMIT_S) -> None:
    """Wait on the event loop until `holds()`, plain or awaitable, is true; fail with `what` after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        answer = holds()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.005)


def wait_until(holds: Callable[[], object], what: str, within: float = LIMIT_S) -> None:
    """`eventually` for tests without an event loop."""
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)
