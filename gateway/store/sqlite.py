"""The embedded session store: one sqlite file, durable, without a server.

Implements gateway.core.interfaces.SessionStore. Intended for one gateway on one machine. A second process on the same
file is safe too: versions and fences are compared inside the transaction that writes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gateway.core.clock import Clock
from gateway.core.documents import DocumentStore
from gateway.core.errors import FencedOutError, StaleWriteError, StoreUnavailableError
from gateway.core.model import Lease, RuntimeKey, Session, SessionId, SessionState
from gateway.core.questions import NoQuestions, PeerQuestions
from gateway.core.quota import QuotaLedger
from gateway.core.tasks import TaskStore
from gateway.core.usage import UsageStore
from gateway.store import claims, codec, sqlite_file, sqlite_pages
from gateway.store.sqlite_documents import SqliteDocuments
from gateway.store.sqlite_quotas import SqliteQuotas
from gateway.store.sqlite_sweeps import EXPIRED, IDLE, TERMINATED, listing
from gateway.store.sqlite_tasks import SqliteTasks
from gateway.store.sqlite_thread import SqliteThread
from gateway.store.sqlite_usage import SqliteUsage

PAGE = 100  # records per read while iterating: about 3 ms of the thread, after which other jobs run
VERSIONS_PER_READ = 500  # below the number of parameters that any sqlite takes
PRUNED_PER_WRITE = 500  # old claim rows or leases that one write deletes at most, which bounds its transaction
LEASE_RETENTION_S = 86400.0  # from a lease's expiry until it is deleted

_GET = "SELECT version, last_active_at, record FROM sessions WHERE id = ?"
_INSERT = """
INSERT INTO sessions
  (version, state, runtime, last_active_at, idle_timeout, expires_at, record, id, tenant, created_at)
VALUES (1, :state, :runtime, :last_active_at, :idle_timeout, :expires_at, :record, :id, :tenant, :created_at)
ON CONFLICT (id) DO NOTHING RETURNING last_active_at
"""
# A touch does not change the version, so a writer may hold an older last_active_at: max() keeps the later one. Not one
# that is still to come: the clock was set back since.
_UPDATE = """
UPDATE sessions SET version = version + 1, state = :state, runtime = :runtime,
  last_active_at = max(iif(last_active_at > :latest, 0, last_active_at), :last_active_at),
  idle_timeout = :idle_timeout, expires_at = :expires_at,
  record = :record
WHERE id = :id AND version = :version RETURNING last_active_at
"""
_TOUCH = "UPDATE sessions SET last_active_at = ?1 WHERE id = ?2 AND last_active_at < ?1"


class SqliteStore:
    """Session records, leases and claims in the file `path`.

    Leases expire by `clock`: all processes that use the file run on one machine and share its clock.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._thread = SqliteThread(partial(sqlite_file.connect, path), partial(sqlite_file.translate, path))
        self._file: tuple[int, int] | None = None  # what was opened
        self.documents: DocumentStore = SqliteDocuments(self._thread)
        self.usage: UsageStore = SqliteUsage(self._thread, clock)
        self.quotas: QuotaLedger = SqliteQuotas(self._thread, clock)
        self.tasks: TaskStore = SqliteTasks(self._thread)
        self.questions: PeerQuestions = NoQuestions()

    def __repr__(self) -> str:
        return f"<SqliteStore {self._path}>"

    async def start(self) -> None:
        """Open or create the file.

        Raises StoreUnavailableError when it is damaged, not ours, newer than this program, or out of reach.
        """
        await self._thread.start()
        self._file = sqlite_file.identity(self._path)

    async def aclose(self) -> None:
        """Finish pending calls and close the file. Safe to call twice."""
        await self._thread.aclose()

    async def ping(self) -> None:
        """Write to the file without changing a record. Raises StoreUnavailableError."""

        # An UPDATE to the same value goes through the write-ahead log like any other, so it fails on a full or
        # read-only disk.
        def ping(db: sqlite3.Connection) -> None:
            self._require_file()
            db.execute("UPDATE fences SET floor = floor")

        await self._thread.write(ping)

    def _require_file(self) -> None:
        """Raise StoreUnavailableError where the file was removed: what goes into it now ends with this process."""
        if (found := sqlite_file.identity(self._path)) != self._file:
            raise StoreUnavailableError(
                f"session store {self._path} was {'replaced' if found else 'removed'} while this gateway ran; put it"
                " back, or restart the gateway"
            )

    async def warnings(self) -> Sequence[str]:
        """No warnings: sqlite needs no configuration to be durable."""
        return ()

    async def get(self, session_id: SessionId) -> Session | None:
        """The record as last written, or None. Raises StoreUnavailableError."""

        def get(db: sqlite3.Connection) -> Session | None:
            row = db.execute(_GET, (session_id,)).fetchone()
            return None if row is None else _session(row)

        return await self._thread.read(get)

    async def versions(self, session_ids: Sequence[SessionId]) -> Mapping[SessionId, int]:
        """The versions of the records that exist."""
        found: dict[SessionId, int] = {}
        for start in range(0, len(session_ids), VERSIONS_PER_READ):
            ids = session_ids[start : start + VERSIONS_PER_READ]
            marks = ", ".join("?" * len(ids))
            statement = f"SELECT id, version FROM sessions WHERE id IN ({marks})"  # noqa: S608 — question marks
            found.update(await self._thread.read(partial(_fetch_all, statement, ids)))
        return found

    async def put(self, session: Session, *, lease: Lease | None = None) -> Session:
        """Write the record if the stored version is still `session.version`.

        If a touch raised last_active_at since the record was read, the later time is kept. Raises StaleWriteError,
        FencedOutError, StoreUnavailableError, and BadRequestError for a record without a JSON form.
        """
        values = {
            "id": session.id,
            "version": session.version,
            "state": session.state.value,
            "runtime": str(session.runtime),
            "last_active_at": session.last_active_at,
            "latest": self._clock.now() + codec.MAX_AHEAD_S,
            "idle_timeout": session.idle_timeout,
            "expires_at": session.expires_at,
            "record": codec.encode(session),
            **sqlite_pages.place(session),
        }

        def put(db: sqlite3.Connection) -> float:
            self._require_file()  # 2 us
            if lease is not None:
                _check_fence(db, lease)
            rows = db.execute(_UPDATE if session.version else _INSERT, values).fetchall()
            if not rows:
                raise StaleWriteError(
                    f"session {session.id}: the record changed since version {session.version} was read"
                )
            return float(rows[0][0])

        last_active_at = await self._thread.write(put)
        return replace(session, version=session.version + 1, last_active_at=last_active_at)

    async def delete(self, session_id: SessionId) -> None:
        """Delete a record. An absent one is not an error."""
        await self._thread.write(lambda db: db.execute("DELETE FROM sessions WHERE id = ?", (session_id,)).rowcount)

    async def touch_many(self, seen: Mapping[SessionId, float]) -> None:
        """Raise last_active_at of each to at least the given time, in one transaction."""
        rows = [(at, session_id) for session_id, at in seen.items()]
        if rows:
            await self._thread.write(lambda db: db.executemany(_TOUCH, rows).rowcount)

    async def sessions(
        self,
        *,
        state: SessionState | None = None,
        runtime: RuntimeKey | None = None,
        after: SessionId | None = None,
        limit: int = 100,
    ) -> AsyncIterator[Session]:
        """Records by id (in the order of their UTF-8 bytes), strictly after `after`, at most `limit`."""
        statement, arguments = listing(state=state, runtime=runtime)
        last: str = after or ""
        while limit > 0:
            rows = await self._thread.read(_rows(statement, (*arguments, last, min(limit, PAGE))))
            for session, (session_id,) in rows:
                yield session
                last = session_id
            if len(rows) < min(limit, PAGE):
                return
            limit -= len(rows)

    async def by_age(
        self,
        *,
        tenant: str | None = None,
        ended: bool = True,
        newest_first: bool = True,
        after: tuple[float, SessionId] | None = None,
        limit: int = 100,
    ) -> AsyncIterator[Session]:
        """Records by time of creation, then id, at most `limit`."""
        statement, arguments = sqlite_pages.statement(tenant=tenant, ended=ended, newest_first=newest_first)
        last: tuple[Any, ...] = after or sqlite_pages.start_of(newest_first=newest_first)
        while limit > 0:
            rows = await self._thread.read(_rows(statement, (*arguments, *last, min(limit, PAGE))))
            for session, place in rows:
                yield session
                last = place
            if len(rows) < min(limit, PAGE):
                return
            limit -= len(rows)

    async def search(
        self,
        parts: Sequence[str],
        *,
        tenant: str | None,
        ended: bool,
        after: tuple[float, SessionId] | None,
        limit: int,
    ) -> Sequence[tuple[tuple[float, SessionId], Session | None]]:
        """Places of the list by age, with the records that have all the parts."""
        wanted = [codec.as_stored(part).decode() for part in parts]
        statement, arguments = sqlite_pages.statement(tenant=tenant, ended=ended, newest_first=True, parts=len(wanted))
        last = after or sqlite_pages.start_of(newest_first=True)
        rows = await self._thread.read(partial(_fetch_all, statement, (*wanted, *arguments, *last, limit)))
        return [((row[3], row[4]), None if row[2] is None else _session(row)) for row in rows]

    def idle(self, now: float) -> AsyncIterator[Session]:
        """Active sessions with idle_at <= now, soonest first."""
        return self._until(IDLE, now)

    def expired(self, now: float) -> AsyncIterator[Session]:
        """Sessions that are not terminated with expires_at <= now, soonest first."""
        return self._until(EXPIRED, now)

    def terminated(self, before: float) -> AsyncIterator[Session]:
        """Terminated sessions with last_active_at <= before, oldest first."""
        return self._until(TERMINATED, before)

    async def _until(self, statement: str, bound: float) -> AsyncIterator[Session]:
        last: tuple[Any, ...] = (float("-inf"), "")
        while True:
            rows = await self._thread.read(_rows(statement, (bound, *last, PAGE)))
            for session, key in rows:
                yield session
                last = key
            if len(rows) < PAGE:
                return

    async def acquire_lease(self, name: str, holder: str, ttl: float) -> Lease | None:
        """Take the lease if it is free, expired, or already `holder`'s. None: another holder has it."""
        now = self._clock.now()
        return await self._thread.write(lambda db: _acquire(db, Lease(name, holder, 0, now + ttl), now))

    async def renew_lease(self, lease: Lease, ttl: float) -> Lease | None:
        """Extend the lease, even an expired one if nobody has taken it since. None: another holder took it."""
        renewed = replace(lease, expires_at=self._clock.now() + ttl)
        return renewed if await self._set_lease(lease, renewed.holder, renewed.expires_at) else None

    async def release_lease(self, lease: Lease) -> None:
        """Release the lease if it is still the caller's."""
        await self._set_lease(lease, "", self._clock.now())

    async def lease(self, name: str) -> Lease | None:
        """The current lease. None: released, or deleted since."""
        statement = "SELECT name, holder, fence, expires_at FROM leases WHERE name = ? AND holder <> ''"
        row = await self._thread.read(lambda db: db.execute(statement, (name,)).fetchone())
        return None if row is None else Lease(*row)

    async def _set_lease(self, lease: Lease, holder: str, expires_at: float) -> bool:
        statement = "UPDATE leases SET holder = ?, expires_at = ? WHERE name = ? AND fence = ? AND holder = ?"
        arguments = (holder, expires_at, lease.name, lease.fence, lease.holder)
        return await self._thread.write(lambda db: db.execute(statement, arguments).rowcount) > 0

    async def record_claims(self, runtime: RuntimeKey, counts: Mapping[int, int]) -> None:
        """Add claim counts, keyed by second since the epoch."""
        now = self._clock.now()
        rows = [(str(runtime), bucket, start, n) for (bucket, start), n in claims.fold(counts).items()]

        def record(db: sqlite3.Connection) -> None:
            db.executemany(
                "INSERT INTO claims VALUES (?, ?, ?, ?) "
                "ON CONFLICT (runtime, bucket, start) DO UPDATE SET n = n + excluded.n",
                rows,
            )
            for bucket, kept in claims.HORIZON_S.items():
                db.execute(
                    "DELETE FROM claims WHERE rowid IN "
                    "(SELECT rowid FROM claims WHERE bucket = ? AND start < ? ORDER BY start LIMIT ?)",
                    (bucket, now - kept, PRUNED_PER_WRITE),
                )

        await self._thread.write(record)

    async def claim_history(self, runtime: RuntimeKey, since: float, *, bucket: int) -> Sequence[tuple[int, int]]:
        """(bucket start, claims) of the buckets that began at `since` or later, oldest first."""
        oldest = claims.oldest_start(bucket, since, self._clock.now())
        statement = (
            "SELECT start, n FROM claims WHERE runtime = ? AND bucket = ? AND start >= ? AND n > 0 ORDER BY start"
        )
        return await self._thread.read(lambda db: db.execute(statement, (str(runtime), bucket, oldest)).fetchall())


def _fetch_all(statement: str, arguments: Sequence[Any], db: sqlite3.Connection) -> list[Any]:
    return db.execute(statement, arguments).fetchall()


def _session(row: Sequence[Any]) -> Session:
    return codec.decode(row[2], version=row[0], last_active_at=row[1])


def _rows(
    statement: str, arguments: Sequence[Any]
) -> Callable[[sqlite3.Connection], list[tuple[Session, tuple[Any, ...]]]]:
    """A read that returns each session with its position for keyset paging: the columns after the record."""
    return lambda db: [(_session(row), tuple(row[3:])) for row in db.execute(statement, arguments)]


def _check_fence(db: sqlite3.Connection, lease: Lease) -> None:
    row = db.execute("SELECT fence, holder FROM leases WHERE name = ?", (lease.name,)).fetchone()
    if row != (lease.fence, lease.holder):
        newest = "it was given back" if row is None or not row[1] else f"{row[1]} has it with fence {row[0]}"
        raise FencedOutError(f"lease {lease.name} of {lease.holder} (fence {lease.fence}) is no longer valid: {newest}")


def _acquire(db: sqlite3.Connection, wanted: Lease, now: float) -> Lease | None:
    row = db.execute("SELECT holder, fence, expires_at FROM leases WHERE name = ?", (wanted.name,)).fetchone()
    if row is None:
        _clear_leases(db, now - LEASE_RETENTION_S)
        (floor,) = db.execute("SELECT floor FROM fences").fetchone()
        lease = replace(wanted, fence=floor + 1)
    else:
        holder, fence, expires_at = row
        free = holder == "" or expires_at <= now
        if not free and holder != wanted.holder:
            return None
        # After expiry even the same holder gets a new fence, so that writes it still has queued with the old one fail.
        lease = replace(wanted, fence=fence + 1 if free else fence)
    db.execute(
        "INSERT INTO leases VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
        "holder = excluded.holder, fence = excluded.fence, expires_at = excluded.expires_at",
        (lease.name, lease.holder, lease.fence, lease.expires_at),
    )
    return lease


def _clear_leases(db: sqlite3.Connection, before: float) -> None:
    """Delete leases that expired before `before`: each session has had one, so they would accumulate.

    A fence must not repeat, so the floor that fences of new names start above is raised to the highest deleted one.
    """
    gone = db.execute(
        "DELETE FROM leases WHERE name IN (SELECT name FROM leases WHERE expires_at <= ? ORDER BY expires_at LIMIT ?) "
        "RETURNING fence",
        (before, PRUNED_PER_WRITE),
    ).fetchall()
    if gone:
        db.execute("UPDATE fences SET floor = max(floor, ?)", (max(fence for (fence,) in gone),))
