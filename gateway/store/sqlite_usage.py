"""Usage (core/usage.py) in the sqlite file of the sessions.

A row has all amounts of a key, as JSON: a row per quantity would be ten times as many. Adding to one reads it first,
which the store's one writing thread, and the transaction, make safe.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import orjson

from gateway.core.clock import Clock
from gateway.core.usage import ORDINARY_RETENTION, WRITER_RETENTION_S, Amounts, Retention, Rows, UsageKey
from gateway.store.sqlite_thread import SqliteThread

PAGE = 1000  # rows per read: about 3 ms of the thread, after which other jobs run
PRUNED_PER_WRITE = 500  # expired rows that one write deletes at most; a batch adds about as many

_KEY = "by_session = ?1 AND hour = ?2 AND tenant = ?3 AND runtime = ?4 AND size = ?5 AND session = ?6"
_GET = f"SELECT amounts FROM usage WHERE {_KEY}"  # noqa: S608 — fixed words
_PUT = "INSERT OR REPLACE INTO usage VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"
_PRUNE = """
DELETE FROM usage WHERE (by_session, hour, tenant, runtime, size, session) IN (
  SELECT by_session, hour, tenant, runtime, size, session FROM usage WHERE by_session = ? AND hour <= ? LIMIT ?)
"""
_PAGE = """
SELECT hour, tenant, runtime, size, session, amounts FROM usage
WHERE by_session = ? AND hour < ? AND (hour, tenant, runtime, size, session) > (?, ?, ?, ?, ?)
  AND (? IS NULL OR tenant = ?)
ORDER BY hour, tenant, runtime, size, session LIMIT ?
"""
_WRITTEN = """
INSERT INTO usage_writers VALUES (?1, ?2, ?3)
ON CONFLICT (writer) DO UPDATE SET sequence = ?2, at = ?3 WHERE sequence < ?2
"""


class SqliteUsage:
    """Implements UsageStore on the thread of a SqliteStore."""

    def __init__(self, thread: SqliteThread, clock: Clock) -> None:
        self._thread = thread
        self._clock = clock

    async def add(self, writer: str, sequence: int, rows: Rows, retention: Retention = ORDINARY_RETENTION) -> bool:
        """Add the amounts unless the writer has already written that batch, in one transaction."""
        now = self._clock.now()

        def add(db: sqlite3.Connection) -> bool:
            if db.execute(_WRITTEN, (writer, sequence, now)).rowcount == 0:
                return False
            for key, amounts in rows.items():
                columns = (bool(key.session), key.hour, key.tenant, key.runtime, key.size, key.session)
                found = db.execute(_GET, columns).fetchone()
                total = _sum(orjson.loads(found[0]) if found else {}, amounts)
                db.execute(_PUT, (*columns, orjson.dumps(total)))
            for by_session, kept in ((1, retention.sessions), (0, retention.totals)):
                db.execute(_PRUNE, (by_session, now - kept, PRUNED_PER_WRITE))
            db.execute("DELETE FROM usage_writers WHERE at < ?", (now - WRITER_RETENTION_S,))
            return True

        return await self._thread.write(add)

    async def read(
        self, since: int, until: int, *, sessions: bool, tenant: str | None = None
    ) -> AsyncIterator[tuple[UsageKey, Amounts]]:
        """Rows of these hours, by key."""
        last: tuple[Any, ...] = (since, "", "", "", "")  # before any key of that hour, as runtimes are not empty
        while True:
            page = await self._thread.read(_rows((sessions, until, *last, tenant, tenant, PAGE)))
            for *columns, amounts in page:
                yield UsageKey(*columns), orjson.loads(amounts)
            if len(page) < PAGE:
                return
            last = tuple(page[-1][:5])


def _rows(arguments: Sequence[Any]) -> Callable[[sqlite3.Connection], list[Sequence[Any]]]:
    return lambda db: db.execute(_PAGE, arguments).fetchall()


def _sum(kept: Mapping[str, float], amounts: Amounts) -> dict[str, float]:
    # str(): orjson takes no key of a subclass of it, as Quantity is one.
    names = (*kept, *(amounts.keys() - kept.keys()))
    return {str(name): kept.get(name, 0.0) + amounts.get(name, 0.0) for name in names}
