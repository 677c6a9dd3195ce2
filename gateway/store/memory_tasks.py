"""Tasks (core/tasks.py) in dictionaries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

import orjson

from gateway.core.tasks import Added, OpenTasks, QueuedTask
from gateway.store.codec import stale_task


class MemoryTasks:
    """Implements TaskStore for a MemoryStore. `turn` is awaited in each call, and raises once the store is closed."""

    def __init__(self, turn: Callable[[], Awaitable[None]]) -> None:
        self._turn = turn
        self._tasks: dict[str, QueuedTask] = {}
        self._bodies: dict[str, bytes] = {}
        self._answers: dict[str, bytes] = {}
        self._names: dict[str, tuple[str, float]] = {}

    async def add(self, task: QueuedTask, body: bytes, *, max_open: int, max_bytes: int) -> Added:
        """Store a new entry within its limits."""
        await self._turn()
        if task.id in self._tasks:
            return Added.EXISTS
        if sum(each.is_open for each in self._tasks.values() if each.queue == task.queue) >= max_open:
            return Added.QUEUE_FULL
        mine = [each.id for each in self._tasks.values() if each.tenant == task.tenant]
        used = sum(len(self._bodies.get(each, b"")) + len(self._answers.get(each, b"")) for each in mine)
        if used + len(body) > max_bytes:
            return Added.TENANT_FULL
        self._tasks[task.id] = replace(task, value=orjson.loads(orjson.dumps(task.value)), version=1)
        self._bodies[task.id] = body
        return Added.ADDED

    async def get(self, task_id: str) -> QueuedTask | None:
        """The entry, or None."""
        await self._turn()
        return self._tasks.get(task_id)

    async def write(
        self, task: QueuedTask, now: float, *, answer: bytes | None = None, limits: Mapping[str, int] | None = None
    ) -> QueuedTask | None:
        """Write it if version and limits allow it."""
        await self._turn()
        old = self._tasks.get(task.id)
        if old is None or old.version != task.version:
            raise stale_task(task)
        for key, limit in (limits or {}).items():
            others = [each for each in self._tasks.values() if key in each.keys and each.id != task.id]
            if sum(each.held and each.due_at > now for each in others) >= limit:
                return None
        stored = replace(task, value=orjson.loads(orjson.dumps(task.value)), version=task.version + 1)
        self._tasks[task.id] = stored
        if answer is not None:
            self._answers[task.id] = answer
        return stored

    async def body(self, task_id: str) -> bytes:
        """The body that the entry was added with."""
        await self._turn()
        return self._bodies.get(task_id, b"")

    async def answer(self, task_id: str) -> bytes:
        """What was last written as its answer."""
        await self._turn()
        return self._answers.get(task_id, b"")

    async def delete(self, task_id: str) -> None:
        """Delete the entry, its body and its answer."""
        await self._turn()
        for kept in (self._tasks, self._bodies, self._answers):
            kept.pop(task_id, None)

    async def queues(self, now: float) -> Sequence[str]:
        """The queues that have something due."""
        await self._turn()
        return sorted({each.queue for each in self._tasks.values() if each.due_at <= now})

    async def due(
        self, queue: str, now: float, *, after: tuple[float, str] | None = None, limit: int = 100
    ) -> Sequence[QueuedTask]:
        """What is due, by (due_at, id)."""
        await self._turn()
        found = [each for each in self._tasks.values() if each.queue == queue and each.due_at <= now]
        found.sort(key=lambda each: (each.due_at, each.id))
        return [each for each in found if after is None or (each.due_at, each.id) > after][:limit]

    async def newest(
        self, queue: str, *, before: tuple[float, str] | None = None, limit: int = 100
    ) -> Sequence[QueuedTask]:
        """Entries, the newest first."""
        await self._turn()
        found = [each for each in self._tasks.values() if each.queue == queue]
        found.sort(key=lambda each: (each.created_at, each.id), reverse=True)
        return [each for each in found if before is None or (each.created_at, each.id) < before][:limit]

    async def held(self, key: str, now: float) -> int:
        """How many entries hold a key."""
        await self._turn()
        return sum(key in each.keys and each.held and each.due_at > now for each in self._tasks.values())

    async def prune(self, now: float) -> int:
        """Delete those that have expired."""
        await self._turn()
        over = [each.id for each in self._tasks.values() if each.expires_at <= now]
        for task_id in over:
            await self.delete(task_id)
        self._names = {name: kept for name, kept in self._names.items() if kept[1] > now}
        return len(over)

    async def open(self) -> Mapping[str, OpenTasks]:
        """Counts of open entries, by queue."""
        await self._turn()
        opened: dict[str, list[QueuedTask]] = {}
        for each in self._tasks.values():
            if each.is_open:
                opened.setdefault(each.queue, []).append(each)
        return {
            queue: OpenTasks(
                len(tasks),
                min(each.created_at for each in tasks),
                min((each.created_at for each in tasks if not each.held), default=None),
            )
            for queue, tasks in opened.items()
        }

    async def bind(self, key: str, value: str, until: float, now: float, *, instead_of: str = "") -> str:
        """Let a name stand for a value, unless it stands for another."""
        await self._turn()
        found = self._names.get(key)
        if found is not None and found[1] > now and found[0] not in (value, instead_of):
            return found[0]
        self._names[key] = (value, until)
        return value

    async def bound(self, key: str, now: float) -> str:
        """The value that a name stands for."""
        await self._turn()
        value, until = self._names.get(key, ("", 0.0))
        return value if until > now else ""
