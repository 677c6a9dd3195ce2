"""Runs actions on sessions concurrently, up to a limit, so that a slow one delays neither the others nor the caller.

An action may wait for an answer of a sandbox, and the code inside it decides how slowly that comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gateway.core.model import SessionId


class BoundedTasks:
    """At most `limit` tasks, one per session. An action returns a number; `settle` adds them up."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running: dict[SessionId, asyncio.Task[int]] = {}
        self._finished: list[asyncio.Task[int]] = []

    def __contains__(self, session_id: SessionId) -> bool:
        return session_id in self._running

    async def start(self, session_id: SessionId, action: Callable[[], Awaitable[int]], timeout: float) -> bool:
        """Start `action` once fewer than `limit` run. False: not started, as none ended within `timeout` seconds."""
        if len(self._running) >= self._limit:
            await asyncio.wait(self._running.values(), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)  # let its done callback run, which takes it out of `_running`
            if len(self._running) >= self._limit:
                return False

        async def run() -> int:
            return await action()

        task = self._running[session_id] = asyncio.create_task(run(), name=f"session {session_id}")
        task.add_done_callback(lambda _: self._ended(session_id, task))
        return True

    async def settle(self, timeout: float) -> int:
        """Wait up to `timeout` seconds for running actions. Returns the sum of the results since the last call.

        Raises the error of one of them; the others are counted in the next call.
        """
        if self._running:
            await asyncio.wait(self._running.values(), timeout=timeout)
            await asyncio.sleep(0)  # let their done callbacks run
        done = 0
        while self._finished:
            done += self._finished.pop().result()
        return done

    async def aclose(self) -> None:
        """Cancel running actions and wait until they have ended."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _ended(self, session_id: SessionId, task: asyncio.Task[int]) -> None:
        del self._running[session_id]
        if not task.cancelled():
            self._finished.append(task)
