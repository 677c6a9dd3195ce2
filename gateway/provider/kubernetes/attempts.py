"""One attempt at a time to change an object, shared by all who wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from gateway.core.background import Tasks


class Attempts:
    """The attempts under way, by the object's UID."""

    def __init__(self) -> None:
        self._tasks = Tasks()
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def join(self, uid: str, begin: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """The attempt that is under way, or a new one. It goes on if those who wait for it leave."""
        task = self._under_way.get(uid)
        if task is None:
            task = self._under_way[uid] = self._tasks.spawn(begin(), name=f"change {uid}")
            task.add_done_callback(lambda done: self._ended(uid, done))
        return task

    async def aclose(self) -> None:
        """Cancel all."""
        await self._tasks.aclose()

    def _ended(self, uid: str, attempt: asyncio.Task[None]) -> None:
        self._under_way.pop(uid, None)
        if not attempt.cancelled():
            attempt.exception()  # marks it as seen: all who waited for it may have left
