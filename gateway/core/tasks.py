"""Background work in the store: entries of queues, each looked at when it is due. The seam to the stores.

A store knows of a task only what it has to index; what the task is, and what becomes of it, is in `value`, which
gateway/tasks decides. One number carries the whole protocol: `due_at` is when some gateway has to look at a task again.
For one that waits that is now, or after a pause; for one that runs it is the end of the lease of the gateway that runs
it; for one that is over it is never. To take a task is to write it, with its version compared, so one gateway gets it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class QueuedTask:
    """One entry of a queue. Times are epoch seconds; `version` counts writes, 0: it was never stored.

    `keys`: what it occupies while it is `held` and its `due_at` has not come (its agent, its session). A write may add
    some; it may leave out those that it does not hold by then. `is_open`: it is not over. `expires_at`: it is deleted
    then; NEVER: not while it is open.
    """

    id: str
    queue: str
    tenant: str
    created_at: float
    value: Mapping[str, Any]
    due_at: float
    is_open: bool = True
    expires_at: float = NEVER
    keys: tuple[str, ...] = ()
    held: bool = False
    version: int = 0


class Added(StrEnum):
    """What became of a new entry."""

    ADDED = "added"
    EXISTS = "exists"  # one of that id is there already
    QUEUE_FULL = "queue full"  # too many open ones in its queue
    TENANT_FULL = "tenant full"  # its tenant's entries hold too many bytes


@dataclass(frozen=True, slots=True)
class OpenTasks:
    """The entries of a queue that are not over: how many, and when the oldest was made.

    `waits_since`: when the oldest was made that is not held; None: all are. Only the hundred oldest are looked at.
    """

    count: int
    oldest: float
    waits_since: float | None = None


class TaskStore(Protocol):
    """Entries of queues, with the bytes that go in and come out. Every call raises StoreUnavailableError."""

    async def add(self, task: QueuedTask, body: bytes, *, max_open: int, max_bytes: int) -> Added:
        """Durably store a new entry, unless its queue has `max_open` open ones or its tenant holds `max_bytes`."""
        ...

    async def get(self, task_id: str) -> QueuedTask | None:
        """The entry as last written. None: there is none."""
        ...

    async def write(
        self, task: QueuedTask, now: float, *, answer: bytes | None = None, limits: Mapping[str, int] | None = None
    ) -> QueuedTask | None:
        """Durably write it if the stored version equals `task.version`; `answer`, if given, replaces the one before.

        With `limits`, None is returned and nothing written if as many other entries hold a key of it already.
        Returns it with its new version. Raises StaleWriteError, also if it was deleted.
        """
        ...

    async def body(self, task_id: str) -> bytes:
        """What was added with it; empty if it is not there."""
        ...

    async def answer(self, task_id: str) -> bytes:
        """What was last written as its answer; empty if there is none."""
        ...

    async def delete(self, task_id: str) -> None:
        """Forget it. An absent one is not an error."""
        ...

    async def queues(self, now: float) -> Sequence[str]:
        """The queues that have an entry with due_at <= now, by name."""
        ...

    async def due(
        self, queue: str, now: float, *, after: tuple[float, str] | None = None, limit: int = 100
    ) -> Sequence[QueuedTask]:
        """Entries with due_at <= now, by (due_at, id). `after`: that of the last one of the page before."""
        ...

    async def newest(
        self, queue: str, *, before: tuple[float, str] | None = None, limit: int = 100
    ) -> Sequence[QueuedTask]:
        """Entries of a queue, the newest first, by (created_at, id); `before`: that of the last one of a page."""
        ...

    async def held(self, key: str, now: float) -> int:
        """How many entries hold a key."""
        ...

    async def prune(self, now: float) -> int:
        """Delete some of those with expires_at <= now. Returns how many."""
        ...

    async def open(self) -> Mapping[str, OpenTasks]:
        """What is open in each queue that has any."""
        ...

    async def bind(self, key: str, value: str, until: float, now: float, *, instead_of: str = "") -> str:
        """Let a name stand for a value until then. Returns the value that it stands for.

        It is another one if one is there that has not ended and is not `instead_of`: whoever was first is right.
        """
        ...

    async def bound(self, key: str, now: float) -> str:
        """The value that a name stands for; empty if it stands for none."""
        ...
