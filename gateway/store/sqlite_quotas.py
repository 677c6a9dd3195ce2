"""The quota ledger (core/quota.py) in the sqlite file of the sessions. Each change is one transaction."""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Sequence

from gateway.core.clock import Clock
from gateway.core.model import SessionId
from gateway.core.quota import Amounts, Entry, Excess, Part, Parted, Wish, excess_of, next_token
from gateway.store.codec import pack_amounts, unpack_amounts
from gateway.store.sqlite_thread import SqliteThread

_ENTRY = "SELECT amounts, mark FROM quota_entries WHERE tenant = ? AND session = ?"
_ADD = "INSERT INTO quota_used VALUES (?1, ?2, ?3) ON CONFLICT (tenant, resource) DO UPDATE SET n = n + ?3"
_MARK = "SELECT n FROM quota_used WHERE tenant = ? AND resource = ''"  # the latest mark, kept beside the sums


_MAX_PARTED = 10_000


class SqliteQuotas:
    """Implements QuotaLedger on the thread of a SqliteStore."""

    def __init__(self, thread: SqliteThread, clock: Clock) -> None:
        self._thread = thread
        self._clock = clock
        self._parted: OrderedDict[str, Parted] = OrderedDict()

    async def reserve(
        self, tenant: str, session_id: SessionId, amounts: Amounts, limits: Amounts, until: float
    ) -> Excess | None:
        """Let a session hold `amounts`, unless that exceeds a limit."""

        def reserve(db: sqlite3.Connection) -> Excess | None:
            held, _ = _held(db, tenant, session_id)
            excess = excess_of(held, amounts, _used(db, tenant), limits)
            if excess is None:
                _write(db, tenant, session_id, held, amounts, until)
            return excess

        return await self._thread.write(reserve)

    async def settle(self, tenant: str, session_id: SessionId, amounts: Amounts, *, mark: int | None = None) -> bool:
        """Let a session hold `amounts`, if its entry still has that mark."""

        def settle(db: sqlite3.Connection) -> bool:
            held, found = _held(db, tenant, session_id)
            if mark not in (None, found):
                return False
            _write(db, tenant, session_id, held, amounts, 0.0)
            return True

        return await self._thread.write(settle)

    async def used(self, tenant: str) -> Amounts:
        """The sum of a tenant's entries."""
        return await self._thread.read(lambda db: _used(db, tenant))

    async def entries(self, tenant: str) -> Sequence[Entry]:
        """All entries of a tenant."""
        statement = "SELECT session, amounts, mark, until FROM quota_entries WHERE tenant = ?"
        rows = await self._thread.read(lambda db: db.execute(statement, (tenant,)).fetchall())
        return [Entry(SessionId(session), unpack_amounts(text), mark, until) for session, text, mark, until in rows]

    async def tenants(self) -> Sequence[str]:
        """The tenants that have entries, by name."""
        statement = "SELECT DISTINCT tenant FROM quota_entries ORDER BY tenant"
        return [tenant for (tenant,) in await self._thread.read(lambda db: db.execute(statement).fetchall())]

    async def take(self, tenant: str, interval: float, burst: int) -> float:
        """Take one token, or say how long there is none."""
        now = self._clock.now()

        def take(db: sqlite3.Connection) -> float:
            row = db.execute("SELECT full_at FROM quota_rates WHERE tenant = ?", (tenant,)).fetchone()
            full_at, wait = next_token(row[0] if row else 0.0, now, interval, burst)
            if not wait:
                db.execute("INSERT OR REPLACE INTO quota_rates VALUES (?, ?)", (tenant, full_at))
            return wait

        return await self._thread.write(take)

    async def part(self, name: str, holder: str, wish: Wish, ttl: float) -> Part:
        """Give a gateway a part of the limits of that name."""
        # In memory: a file is one gateway's, so that nobody shares, and what is counted elsewhere in memory begins anew
        # with the process, too.
        parted = self._parted.setdefault(name, Parted())
        self._parted.move_to_end(name)
        while len(self._parted) > _MAX_PARTED:
            self._parted.popitem(last=False)
        return parted.give(holder, wish, self._clock.now(), ttl)

    async def gateways(self, holder: str, ttl: float) -> frozenset[str]:
        """Note that this gateway is alive, and name those that are."""
        now = self._clock.now()

        def note(db: sqlite3.Connection) -> frozenset[str]:
            # Beyond any heartbeat's end: the clock was set back since.
            db.execute("DELETE FROM quota_gateways WHERE until <= ? OR until > ?", (now, now + 2 * ttl))
            db.execute("INSERT OR REPLACE INTO quota_gateways VALUES (?, ?)", (holder, now + ttl))
            return frozenset(row[0] for row in db.execute("SELECT holder FROM quota_gateways"))

        return await self._thread.write(note)


def _held(db: sqlite3.Connection, tenant: str, session_id: SessionId) -> tuple[Amounts, int]:
    row = db.execute(_ENTRY, (tenant, session_id)).fetchone()
    return ({}, 0) if row is None else (unpack_amounts(row[0]), row[1])


def _used(db: sqlite3.Connection, tenant: str) -> Amounts:
    statement = "SELECT resource, n FROM quota_used WHERE tenant = ? AND resource <> ''"
    return unpack_amounts(" ".join(f"{name}={n}" for name, n in db.execute(statement, (tenant,))))


def _write(
    db: sqlite3.Connection, tenant: str, session_id: SessionId, held: Amounts, amounts: Amounts, until: float
) -> None:
    # The sums are kept and not computed: a tenant may have 10,000 entries, and each reservation needs them.
    for resource in {**held, **amounts}:
        if change := amounts.get(resource, 0) - held.get(resource, 0):
            db.execute(_ADD, (tenant, resource.value, change))
    db.execute(_ADD, (tenant, "", 1))
    if not amounts:
        db.execute("DELETE FROM quota_entries WHERE tenant = ? AND session = ?", (tenant, session_id))
        return
    (mark,) = db.execute(_MARK, (tenant,)).fetchone()
    db.execute(
        "INSERT OR REPLACE INTO quota_entries VALUES (?, ?, ?, ?, ?)",
        (tenant, session_id, pack_amounts(amounts), mark, until),
    )
