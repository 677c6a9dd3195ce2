"""A read cache in front of a shared store, for sessions that are read often and change rarely.

Implements gateway.core.interfaces.SessionStore. Only `get` is answered from memory. Another replica's write is visible
after `ttl` at the latest. Acting on an older record is safe: `put` compares versions in the store, and a rejected one
drops the cached copy. A caller that finds a record outdated (nothing listens at its endpoint) calls `invalidate` and
reads again. docs/adr/0008-hand-written-parts.md lists what aiocache lacks for this.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aiocache import SimpleMemoryCache

from gateway.core.documents import DocumentStore
from gateway.core.interfaces import SessionStore
from gateway.core.model import Lease, RuntimeKey, Session, SessionId, SessionState
from gateway.core.questions import PeerQuestions
from gateway.core.quota import QuotaLedger
from gateway.core.tasks import TaskStore
from gateway.core.usage import UsageStore


@dataclass(slots=True)
class _Copy:
    record: Session  # replaced in place by a touch, which must not restart the TTL


class CachedStore:
    """Caches up to `size` records of `inner` for `ttl` seconds each; the least recently used is evicted."""

    def __init__(self, inner: SessionStore, ttl: float = 5.0, *, size: int = 10_000) -> None:
        self.inner = inner
        self._size = size
        # timeout=None: aiocache's default wraps each lookup in a task with a timeout: 86 us instead of 14 us.
        self._records: Any = SimpleMemoryCache(ttl=ttl, timeout=None)
        self._order: OrderedDict[SessionId, None] = OrderedDict()  # least recently used first; may name expired records
        # Reads in progress. A write removes its session's entry, and the read then does not cache what it got:
        # otherwise a read that started before the write and ends after it would cache the old record for a whole TTL.
        self._loading: dict[SessionId, object] = {}

    def __repr__(self) -> str:
        return f"<CachedStore {self.inner!r} [{len(self._order)} of {self._size}]>"

    async def get(self, session_id: SessionId) -> Session | None:
        """The record as it was at most `ttl` ago. Absence is not cached: another replica may create it."""
        copy: _Copy | None = await self._records.get(session_id)
        if copy is not None:
            self._order.move_to_end(session_id)
            return copy.record
        self._order.pop(session_id, None)  # it has expired: SimpleMemoryCache drops it by a timer of its own
        load = self._loading[session_id] = object()
        try:
            record = await self.inner.get(session_id)
            if record is not None and self._loading.get(session_id) is load:
                await self._keep(record)
            return record
        finally:
            if self._loading.get(session_id) is load:
                del self._loading[session_id]

    async def put(self, session: Session, *, lease: Lease | None = None) -> Session:
        """Write to the inner store; `get` returns the new record from then on."""
        try:
            stored = await self.inner.put(session, lease=lease)
        except BaseException:
            # StaleWriteError: the caller may have acted on the cached copy. Any other error: the write may have been
            # applied although its answer was lost.
            await self.invalidate(session.id)
            raise
        self._loading.pop(session.id, None)
        # Two puts of this gateway may be answered in the other order: the later version stays.
        copy: _Copy | None = await self._records.get(session.id)
        if copy is None or copy.record.version < stored.version:
            await self._keep(stored)
        return stored

    async def delete(self, session_id: SessionId) -> None:
        """Delete the record in the inner store, and its copy even if that fails."""
        try:
            await self.inner.delete(session_id)
        finally:
            await self.invalidate(session_id)

    async def invalidate(self, session_id: SessionId) -> None:
        """Drop the cached copy, so that the next `get` reads from the store."""
        self._loading.pop(session_id, None)
        self._order.pop(session_id, None)
        await self._records.delete(session_id)

    async def touch_many(self, seen: Mapping[SessionId, float]) -> None:
        """Raise last_active_at of each to at least the given time, in the copies as well."""
        await self.inner.touch_many(seen)
        for session_id, at in seen.items():
            copy: _Copy | None = await self._records.get(session_id)
            if copy is not None and copy.record.last_active_at < at:
                # In place: a touch says nothing about the rest of the record, so it must not extend its TTL.
                copy.record = replace(copy.record, last_active_at=at)

    async def _keep(self, record: Session) -> None:
        self._order[record.id] = None
        self._order.move_to_end(record.id)
        await self._records.set(record.id, _Copy(record))
        while len(self._order) > self._size:
            oldest, _ = self._order.popitem(last=False)
            await self._records.delete(oldest)

    # Everything below is passed through to the inner store.

    @property
    def documents(self) -> DocumentStore:
        """The inner store's documents, which are not cached here."""
        return self.inner.documents

    @property
    def usage(self) -> UsageStore:
        """The inner store's usage, which is not cached here."""
        return self.inner.usage

    @property
    def questions(self) -> PeerQuestions:
        """The inner store's."""
        return self.inner.questions

    @property
    def quotas(self) -> QuotaLedger:
        """The inner store's ledger, which is not cached here."""
        return self.inner.quotas

    @property
    def tasks(self) -> TaskStore:
        """The inner store's tasks, which are not cached here."""
        return self.inner.tasks

    async def start(self) -> None:
        """Open the inner store. Raises StoreUnavailableError."""
        await self.inner.start()

    async def aclose(self) -> None:
        """Drop all copies and close the inner store."""
        for session_id in list(self._order):
            await self.invalidate(session_id)  # also cancels the copy's expiry timer
        await self.inner.aclose()

    async def ping(self) -> None:
        """Write to the inner store. Raises StoreUnavailableError."""
        await self.inner.ping()

    async def warnings(self) -> Sequence[str]:
        """The inner store's warnings about settings that can lose records."""
        return await self.inner.warnings()

    async def versions(self, session_ids: Sequence[SessionId]) -> Mapping[SessionId, int]:
        """The stored versions, never from the cache."""
        return await self.inner.versions(session_ids)

    def sessions(
        self,
        *,
        state: SessionState | None = None,
        runtime: RuntimeKey | None = None,
        after: SessionId | None = None,
        limit: int = 100,
    ) -> AsyncIterator[Session]:
        """Records by id, strictly after `after`, at most `limit`."""
        return self.inner.sessions(state=state, runtime=runtime, after=after, limit=limit)

    def by_age(
        self,
        *,
        tenant: str | None = None,
        ended: bool = True,
        newest_first: bool = True,
        after: tuple[float, SessionId] | None = None,
        limit: int = 100,
    ) -> AsyncIterator[Session]:
        """Records by time of creation, then id, at most `limit`."""
        return self.inner.by_age(tenant=tenant, ended=ended, newest_first=newest_first, after=after, limit=limit)

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
        return await self.inner.search(parts, tenant=tenant, ended=ended, after=after, limit=limit)

    def idle(self, now: float) -> AsyncIterator[Session]:
        """Active sessions with idle_at <= now, soonest first."""
        return self.inner.idle(now)

    def expired(self, now: float) -> AsyncIterator[Session]:
        """Sessions that are not terminated with expires_at <= now, soonest first."""
        return self.inner.expired(now)

    def terminated(self, before: float) -> AsyncIterator[Session]:
        """Terminated sessions with last_active_at <= before, oldest first."""
        return self.inner.terminated(before)

    async def acquire_lease(self, name: str, holder: str, ttl: float) -> Lease | None:
        """Take the lease if it is free, expired, or already `holder`'s. None: another holder has it."""
        return await self.inner.acquire_lease(name, holder, ttl)

    async def renew_lease(self, lease: Lease, ttl: float) -> Lease | None:
        """Extend the lease. None: another holder took it."""
        return await self.inner.renew_lease(lease, ttl)

    async def release_lease(self, lease: Lease) -> None:
        """Release the lease if it is still the caller's."""
        await self.inner.release_lease(lease)

    async def lease(self, name: str) -> Lease | None:
        """The current lease, never from the cache."""
        return await self.inner.lease(name)

    async def record_claims(self, runtime: RuntimeKey, counts: Mapping[int, int]) -> None:
        """Add claim counts, keyed by second since the epoch."""
        await self.inner.record_claims(runtime, counts)

    async def claim_history(self, runtime: RuntimeKey, since: float, *, bucket: int) -> Sequence[tuple[int, int]]:
        """(bucket start, claims) of the buckets that began at `since` or later, oldest first."""
        return await self.inner.claim_history(runtime, since, bucket=bucket)
