"""A task that this gateway runs: each change of it is written with the version compared, while the lease holds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gateway.core.clock import Clock
from gateway.core.errors import StaleWriteError
from gateway.core.tasks import TaskStore
from gateway.tasks.attempt import Try
from gateway.tasks.model import Task, from_queued, to_queued, with_version

logger = logging.getLogger(__name__)

_WRITE_ATTEMPTS = 8


class HeldTask:
    """A task as last written. `is_lost`: another gateway has it, or it was deleted."""

    def __init__(self, task: Task, store: TaskStore, clock: Clock) -> None:
        self.task = task
        self.seen = Try()
        self.is_lost = False
        self._store = store
        self._clock = clock
        self._writing = asyncio.Lock()

    async def change(self, decide: Callable[[Task], Task], answer: bytes | None = None) -> bool:
        """Write what `decide` makes of it. False: this gateway holds it no more. Raises StoreUnavailableError."""
        async with self._writing:
            for _ in range(_WRITE_ATTEMPTS):
                if self.is_lost:
                    return False
                changed = decide(self.task)
                try:
                    written = await self._store.write(to_queued(changed), self._clock.now(), answer=answer)
                except StaleWriteError:
                    await self._read_again()
                    continue
                assert written is not None  # no limits were given
                self.task = with_version(changed, written)
                return True
        return False

    async def _read_again(self) -> None:
        entry = await self._store.get(self.task.id)
        found = None if entry is None else from_queued(entry)
        if found is None or found.holder != self.task.holder or found.attempts != self.task.attempts:
            self.is_lost = True
            logger.warning("task %s: its lease has ended, and another gateway runs it", self.task.id)
        else:
            self.task = found
