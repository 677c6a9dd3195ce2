"""A cache in front of a shared store: the same session is asked for many times and changes seldom.

Implements gateway.core.interfaces.SessionStore. Only `get` is answered from memory. Another replica's write is seen
after `ttl` at the latest; acting on an older record is safe, because `put` compares versions in the store, and a
refused one drops the copy here. A caller that finds a record wrong (nothing listens at its endpoint) calls `invalidate`
and reads again. What aiocache lacks for this: docs/adr/0008-hand-written-parts.md.
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


@dataclass(slots=True)
class _Copy:
    record: Session


class CachedStore:
    """Keeps up to `size` records of `inner` for `ttl` seconds each; the least recently used is evicted."""

    def __init__(self, inner: SessionStore, ttl: float = 5.0, *, size: int = 10_000) -> None:
        self.inner = inner
        self._size = size
        # timeout=None: aiocache's default starts a task per look-up to time a dict: 86 us instead of 14 us.
        self._records: Any = SimpleMemoryCache(ttl=ttl, timeout=None)
        self._order: OrderedDict[SessionId, None] = OrderedDict()  # least recently used first; may name expired records
        self._loading: dict[SessionId, object] = {}  # reads under way that no write has outdated

    def __repr__(self) -> str:
        return f"<CachedStore {self.inner!r} [{len(self._order)} of {self._size}]>"

    async def get(self, session_id: SessionId) -> Session | None:
        """The record, as it was at most `ttl` ago; absence is not remembered."""
        copy: _Copy | None = await self._records.get(session_id)
        if copy is not None:
            self._order.move_to_end(session_id)
            return copy.record
        self._order.pop(session_id, None)  # expired
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
        """As the inner store's; what it answers is what `get` answers from now on."""
        try:
            stored = await self.inner.put(session, lease=lease)
        except BaseException:
            # Stale: the copy here may be what the caller acted on. Any other failure: the write may have landed.
            await self.invalidate(session.id)
            raise
        self._loading.pop(session.id, None)
        copy: _Copy | None = await self._records.get(session.id)
        if copy is None or copy.record.version < stored.version:
            await self._keep(stored)
        return stored

    async def delete(self, session_id: SessionId) -> None:
        """Forget a record; absent is success."""
        try:
            await self.inner.delete(session_id)
        finally:
            await self.invalidate(session_id)

    async def invalidate(self, session_id: SessionId) -> None:
        """Drop the copy: the next `get` asks the store."""
        self._loading.pop(session_id, None)
        self._order.pop(session_id, None)
        await self._records.delete(session_id)

    async def touch_many(self, seen: Mapping[SessionId, float]) -> None:
        """Raise last_active_at of each to at least the given time, in the copies as well."""
        await self.inner.touch_many(seen)
        for session_id, at in seen.items():
            copy: _Copy | None = await self._records.get(session_id)
            if copy is not None and copy.record.last_active_at < at:
                # In place: a touch does not confirm the rest of the record, so it must not extend its TTL.
                copy.record = replace(copy.record, last_active_at=at)

    async def _keep(self, record: Session) -> None:
        self._order[record.id] = None
        self._order.move_to_end(record.id)
        await self._records.set(record.id, _Copy(record))
        while len(self._order) > self._size:
            oldest, _ = self._order.popitem(last=False)
            await self._records.delete(oldest)

    # The rest is the inner store's.

    @property
    def documents(self) -> DocumentStore:
        """The inner store's, never from memory."""
        return self.inner.documents

    async def start(self) -> None:
        """Open the inner store."""
        await self.inner.start()

    async def aclose(self) -> None:
        """Close the inner store."""
        for session_id in list(self._order):
            await self.invalidate(session_id)  # cancels its timer, too
        await self.inner.aclose()

    async def ping(self) -> None:
        """Write to the inner store. Raises StoreUnavailableError."""
        await self.inner.ping()

    async def warnings(self) -> Sequence[str]:
        """What about the inner store's settings may lose records."""
        return await self.inner.warnings()

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
        """Extend it. None: it was lost."""
        return await self.inner.renew_lease(lease, ttl)

    async def release_lease(self, lease: Lease) -> None:
        """Give it back if it is still ours; anything else is success."""
        await self.inner.release_lease(lease)

    async def lease(self, name: str) -> Lease | None:
        """The lease as it stands, never from memory."""
        return await self.inner.lease(name)

    async def record_claims(self, runtime: RuntimeKey, counts: Mapping[int, int]) -> None:
        """Add claim counts, keyed by second since the epoch."""
        await self.inner.record_claims(runtime, counts)

    async def claim_history(self, runtime: RuntimeKey, since: float, *, bucket: int) -> Sequence[tuple[int, int]]:
        """(bucket start, claims) of the buckets that began at `since` or later, oldest first."""
        return await self.inner.claim_history(runtime, since, bucket=bucket)
