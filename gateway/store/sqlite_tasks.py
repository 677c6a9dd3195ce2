"""Tasks (core/tasks.py) in the sqlite file of the sessions.

Bytes are in a table of their own: a running task is written every few seconds, and a row is written whole.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from gateway.core.tasks import Added, OpenTasks, QueuedTask
from gateway.store.codec import stale_task
from gateway.store.sqlite_thread import SqliteThread

PRUNED_PER_WRITE = 100  # each with up to some MB of bytes

_COLUMNS = "id, queue, tenant, created_at, value, due_at, is_open, expires_at, keys, held, version"
_INSERT = """
INSERT INTO tasks (id, queue, tenant, created_at, value, due_at, is_open, expires_at, keys, held, version, bytes)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, 1, ?11)
"""
_UPDATE = """
UPDATE tasks SET version = version + 1, value = ?, due_at = ?, is_open = ?, expires_at = ?, held = ?, keys = ?
WHERE id = ? AND version = ?
"""
_HOLD = "INSERT INTO task_holds VALUES (?1, ?2, ?3) ON CONFLICT (key, task) DO UPDATE SET until = ?3"
_DATA = "INSERT INTO task_data VALUES (?1, ?2, ?3) ON CONFLICT (task, part) DO UPDATE SET data = ?3"
_SIZE = """
UPDATE tasks SET bytes = (SELECT coalesce(sum(length(data)), 0) FROM task_data WHERE task = ?1) WHERE id = ?1
"""
# A step of a skip scan: each queue once, however many entries it has.
_NEXT_QUEUE = "SELECT queue FROM tasks WHERE queue > ? ORDER BY queue LIMIT 1"
_HAS_DUE = "SELECT 1 FROM tasks WHERE queue = ? AND due_at <= ? LIMIT 1"


class SqliteTasks:
    """Implements TaskStore on the thread of a SqliteStore."""

    def __init__(self, thread: SqliteThread) -> None:
        self._thread = thread

    async def add(self, task: QueuedTask, body: bytes, *, max_open: int, max_bytes: int) -> Added:
        """Store a new entry within its limits."""
        values = (
            task.id, task.queue, task.tenant, task.created_at, orjson.dumps(task.value), task.due_at, task.is_open,
            task.expires_at, orjson.dumps(task.keys).decode(), task.held, len(body),
        )  # fmt: skip

        # One function on the one thread that writes: nothing comes between what is compared and what is inserted.
        def add(db: sqlite3.Connection) -> Added:
            if db.execute("SELECT 1 FROM tasks WHERE id = ?", (task.id,)).fetchone():
                return Added.EXISTS
            (n,) = db.execute("SELECT count(*) FROM tasks WHERE queue = ? AND is_open", (task.queue,)).fetchone()
            if n >= max_open:
                return Added.QUEUE_FULL
            (used,) = db.execute("SELECT total(bytes) FROM tasks WHERE tenant = ?", (task.tenant,)).fetchone()
            if used + len(body) > max_bytes:
                return Added.TENANT_FULL
            db.execute(_INSERT, values)
            if body:
                db.execute(_DATA, (task.id, "body", body))
            return Added.ADDED

        return await self._thread.write(add)

    async def get(self, task_id: str) -> QueuedTask | None:
        """The entry, or None."""
        rows = await self._rows("WHERE id = ?", (task_id,))
        return rows[0] if rows else None

    async def write(
        self, task: QueuedTask, now: float, *, answer: bytes | None = None, limits: Mapping[str, int] | None = None
    ) -> QueuedTask | None:
        """Write it if version and limits allow it."""
        keys = orjson.dumps(task.keys).decode()
        values = (orjson.dumps(task.value), task.due_at, task.is_open, task.expires_at, task.held, keys)

        def write(db: sqlite3.Connection) -> bool:
            found = db.execute("SELECT version FROM tasks WHERE id = ?", (task.id,)).fetchone()
            if found is None or found[0] != task.version:
                raise stale_task(task)
            # A hold lasts until the lease of its gateway ends, so that of a gateway that died counts until then and no
            # longer. It is not swept: the next write of its task, or its deletion, replaces it.
            for key, limit in (limits or {}).items():
                statement = "SELECT count(*) FROM task_holds WHERE key = ? AND until > ? AND task <> ?"
                if db.execute(statement, (key, now, task.id)).fetchone()[0] >= limit:
                    return False
            db.execute(_UPDATE, (*values, task.id, task.version))
            for key in task.keys:
                if task.held:
                    db.execute(_HOLD, (key, task.id, task.due_at))
                else:
                    db.execute("DELETE FROM task_holds WHERE key = ? AND task = ?", (key, task.id))
            if answer is not None:
                db.execute(_DATA, (task.id, "answer", answer))
                db.execute(_SIZE, (task.id,))
            return True

        return replace(task, version=task.version + 1) if await self._thread.write(write) else None

    async def body(self, task_id: str) -> bytes:
        """The body that the entry was added with."""
        return await self._data(task_id, "body")

    async def answer(self, task_id: str) -> bytes:
        """What was last written as its answer."""
        return await self._data(task_id, "answer")

    async def delete(self, task_id: str) -> None:
        """Delete the entry, its body and its answer."""
        await self._thread.write(lambda db: _delete(db, [task_id]))

    async def queues(self, now: float) -> Sequence[str]:
        """The queues that have something due."""

        def queues(db: sqlite3.Connection) -> list[str]:
            found, row = [], db.execute(_NEXT_QUEUE, ("",)).fetchone()
            while row is not None:
                if db.execute(_HAS_DUE, (row[0], now)).fetchone():
                    found.append(row[0])
                row = db.execute(_NEXT_QUEUE, row).fetchone()
            return found

        return await self._thread.read(queues)

    async def due(
        self, queue: str, now: float, *, after: tuple[float, str] | None = None, limit: int = 100
    ) -> Sequence[QueuedTask]:
        """What is due, by (due_at, id)."""
        where = "WHERE queue = ? AND due_at <= ? AND (due_at, id) > (?, ?) ORDER BY due_at, id LIMIT ?"
        return await self._rows(where, (queue, now, *(after or (-1.0, "")), limit))

    async def newest(
        self, queue: str, *, before: tuple[float, str] | None = None, limit: int = 100
    ) -> Sequence[QueuedTask]:
        """Entries, the newest first."""
        where = "WHERE queue = ? AND (created_at, id) < (?, ?) ORDER BY created_at DESC, id DESC LIMIT ?"
        return await self._rows(where, (queue, *(before or (float("inf"), "")), limit))

    async def held(self, key: str, now: float) -> int:
        """How many entries hold a key."""
        statement = "SELECT count(*) FROM task_holds WHERE key = ? AND until > ?"
        return int((await self._thread.read(lambda db: db.execute(statement, (key, now)).fetchone()))[0])

    async def prune(self, now: float) -> int:
        """Delete some that have expired."""

        def prune(db: sqlite3.Connection) -> int:
            rows = db.execute("SELECT id FROM tasks WHERE expires_at <= ? LIMIT ?", (now, PRUNED_PER_WRITE)).fetchall()
            _delete(db, [row[0] for row in rows])
            names = "SELECT name FROM task_names WHERE until <= ? LIMIT ?"
            db.execute(f"DELETE FROM task_names WHERE name IN ({names})", (now, PRUNED_PER_WRITE))  # noqa: S608 — ours
            return len(rows)

        return await self._thread.write(prune)

    async def open(self) -> Mapping[str, OpenTasks]:
        """Counts of open entries, by queue."""
        statement = (
            "SELECT queue, count(*), min(created_at), min(created_at) FILTER (WHERE NOT held)"
            " FROM tasks WHERE is_open GROUP BY queue"
        )
        rows = await self._thread.read(lambda db: db.execute(statement).fetchall())
        return {queue: OpenTasks(count, oldest, waits) for queue, count, oldest, waits in rows}

    async def bind(self, key: str, value: str, until: float, now: float, *, instead_of: str = "") -> str:
        """Let a name stand for a value, unless it stands for another."""

        def bind(db: sqlite3.Connection) -> str:
            row = db.execute("SELECT value FROM task_names WHERE name = ? AND until > ?", (key, now)).fetchone()
            if row is not None and row[0] not in (value, instead_of):
                return str(row[0])
            db.execute("INSERT OR REPLACE INTO task_names VALUES (?, ?, ?)", (key, value, until))
            return value

        return await self._thread.write(bind)

    async def bound(self, key: str, now: float) -> str:
        """The value that a name stands for."""
        statement = "SELECT value FROM task_names WHERE name = ? AND until > ?"
        row = await self._thread.read(lambda db: db.execute(statement, (key, now)).fetchone())
        return "" if row is None else str(row[0])

    async def _rows(self, where: str, arguments: Sequence[Any]) -> list[QueuedTask]:
        statement = f"SELECT {_COLUMNS} FROM tasks {where}"  # noqa: S608 — fixed words
        return [_task(row) for row in await self._thread.read(lambda db: db.execute(statement, arguments).fetchall())]

    async def _data(self, task_id: str, part: str) -> bytes:
        statement = "SELECT data FROM task_data WHERE task = ? AND part = ?"
        row = await self._thread.read(lambda db: db.execute(statement, (task_id, part)).fetchone())
        return b"" if row is None else bytes(row[0])


def _task(row: Sequence[Any]) -> QueuedTask:
    task_id, queue, tenant, created_at, value, due_at, is_open, expires_at, keys, held, version = row
    return QueuedTask(
        task_id, queue, tenant, created_at, orjson.loads(value), due_at, bool(is_open), expires_at,
        tuple(orjson.loads(keys)), bool(held), version,
    )  # fmt: skip


def _delete(db: sqlite3.Connection, ids: Sequence[str]) -> None:
    for task_id in ids:
        row = db.execute("DELETE FROM tasks WHERE id = ? RETURNING keys", (task_id,)).fetchone()
        for key in orjson.loads(row[0]) if row is not None else ():
            db.execute("DELETE FROM task_holds WHERE key = ? AND task = ?", (key, task_id))
        db.execute("DELETE FROM task_data WHERE task = ?", (task_id,))
