"""An in-memory session store for tests in virtual time, which a real store's threads and sockets do not follow.

Implements gateway.core.interfaces.SessionStore and passes its contract suite. Several gateways may share one, as they
would a Redis; `pause` is awaited in each call, so that their steps interleave as they do over a network.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from gateway.core.clock import Clock
from gateway.core.documents import Document, DocumentStore
from gateway.core.errors import FencedOutError, StaleWriteError, StoreUnavailableError
from gateway.core.model import DEFAULT_TENANT, Lease, RuntimeKey, Session, SessionId, SessionState
from gateway.core.questions import NoQuestions, PeerQuestions
from gateway.core.quota import QuotaLedger
from gateway.core.tasks import TaskStore
from gateway.core.usage import UsageStore
from gateway.store import claims, codec
from gateway.store.codec import stale_document
from gateway.store.memory_quotas import MemoryQuotas
from gateway.store.memory_tasks import MemoryTasks
from gateway.store.memory_usage import MemoryUsage


async def _at_once() -> None:
    await asyncio.sleep(0)


class MemoryStore:
    """Session records, leases and claims in dictionaries."""

    def __init__(self, clock: Clock, pause: Callable[[], Awaitable[None]] = _at_once) -> None:
        self._clock = clock
        self._pause = pause
        self._open = False
        self._records: dict[SessionId, Session] = {}
        self._leases: dict[str, Lease] = {}
        self._claims: dict[RuntimeKey, Counter[tuple[int, int]]] = {}
        self.documents: DocumentStore = MemoryDocuments(self._turn)
        self.usage: UsageStore = MemoryUsage(self._turn, clock)
        self.quotas: QuotaLedger = MemoryQuotas(self._turn, clock)
        self.tasks: TaskStore = MemoryTasks(self._turn)
        self.questions: PeerQuestions = NoQuestions()

    async def start(self) -> None:
        """Allow calls, which raise StoreUnavailableError before."""
        self._open = True

    async def aclose(self) -> None:
        """Reject further calls; the records stay, as they would in a server."""
        self._open = False

    async def ping(self) -> None:
        """Raise StoreUnavailableError unless it is open."""
        await self._turn()

    async def warnings(self) -> Sequence[str]:
        """No warnings: nothing here can lose a record while the process runs."""
        return ()

    async def _turn(self) -> None:
        await self._pause()
        if not self._open:
            raise StoreUnavailableError("the session store is not open")

    async def get(self, session_id: SessionId) -> Session | None:
        """The record as last written, or None if there is none."""
        await self._turn()
        return self._records.get(session_id)

    async def versions(self, session_ids: Sequence[SessionId]) -> Mapping[SessionId, int]:
        """The versions of the records that exist."""
        await self._turn()
        return {each: self._records[each].version for each in session_ids if each in self._records}

    async def put(self, session: Session, *, lease: Lease | None = None) -> Session:
        """Write the record if versions and fence allow it. Raises StaleWriteError, FencedOutError, BadRequestError."""
        record = codec.encode(session)
        await self._turn()
        if lease is not None and not self._holds(lease):
            held = self._leases.get(lease.name)
            newest = "it was given back" if held is None or not held.holder else f"{held.holder} has it"
            raise FencedOutError(
                f"lease {lease.name} of {lease.holder} (fence {lease.fence}) is no longer valid: {newest}"
            )
        old = self._records.get(session.id)
        if (0 if old is None else old.version) != session.version:
            raise StaleWriteError(f"session {session.id}: the record changed since version {session.version} was read")
        latest = session.last_active_at
        if old is not None and old.last_active_at <= self._clock.now() + codec.MAX_AHEAD_S:
            latest = max(latest, old.last_active_at)
        # Decode what was encoded: a record that another store could not represent must fail here as well.
        stored = codec.decode(record, version=session.version + 1, last_active_at=latest)
        self._records[session.id] = stored
        return stored

    async def delete(self, session_id: SessionId) -> None:
        """Delete a record. An absent one is not an error."""
        await self._turn()
        self._records.pop(session_id, None)

    async def touch_many(self, seen: Mapping[SessionId, float]) -> None:
        """Raise last_active_at of each to at least the given time."""
        await self._turn()
        for session_id, at in seen.items():
            old = self._records.get(session_id)
            if old is not None and old.last_active_at < at:
                self._records[session_id] = replace(old, last_active_at=at)

    async def sessions(
        self,
        *,
        state: SessionState | None = None,
        runtime: RuntimeKey | None = None,
        after: SessionId | None = None,
        limit: int = 100,
    ) -> AsyncIterator[Session]:
        """Records by id, strictly after `after`, at most `limit`."""
        await self._turn()
        for session_id in sorted(self._records, key=str.encode):
            session = self._records.get(session_id)
            if session is None or (after is not None and session_id.encode() <= after.encode()):
                continue
            if state in (None, session.state) and runtime in (None, session.runtime):
                if limit <= 0:
                    return
                limit -= 1
                yield session

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
        await self._turn()
        places = sorted(((each.created_at, each.id) for each in self._records.values()), reverse=newest_first)
        for place in places:
            session = self._records.get(place[1])
            if session is None or (after is not None and (place >= after if newest_first else place <= after)):
                continue
            if tenant in (None, session.tenant or DEFAULT_TENANT) and (
                ended or session.state is not SessionState.TERMINATED
            ):
                if limit <= 0:
                    return
                limit -= 1
                yield session

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
        wanted = list(map(codec.as_stored, parts))
        return [
            ((each.created_at, each.id), each if all(part in codec.encode(each).lower() for part in wanted) else None)
            async for each in self.by_age(tenant=tenant, ended=ended, after=after, limit=limit)
        ]

    def idle(self, now: float) -> AsyncIterator[Session]:
        """Active sessions with idle_at <= now, soonest first."""
        return self._until(now, lambda s: s.idle_at if s.state is SessionState.ACTIVE else None)

    def expired(self, now: float) -> AsyncIterator[Session]:
        """Sessions that are not terminated with expires_at <= now, soonest first."""
        return self._until(now, lambda s: s.expires_at if s.state is not SessionState.TERMINATED else None)

    def terminated(self, before: float) -> AsyncIterator[Session]:
        """Terminated sessions with last_active_at <= before, oldest first."""
        return self._until(before, lambda s: s.last_active_at if s.state is SessionState.TERMINATED else None)

    async def _until(self, bound: float, at: Callable[[Session], float | None]) -> AsyncIterator[Session]:
        await self._turn()
        found = [(when, each.id) for each in self._records.values() if (when := at(each)) is not None and when <= bound]
        for _, session_id in sorted(found):
            session = self._records.get(session_id)
            if session is not None and (when := at(session)) is not None and when <= bound:
                yield session

    def _holds(self, lease: Lease) -> bool:
        held = self._leases.get(lease.name)
        return held is not None and (held.fence, held.holder) == (lease.fence, lease.holder)

    async def acquire_lease(self, name: str, holder: str, ttl: float) -> Lease | None:
        """Take the lease if it is free, expired, or already `holder`'s."""
        await self._turn()
        now = self._clock.now()
        held = self._leases.get(name)
        free = held is None or held.holder == "" or held.expires_at <= now
        if not free and held is not None and held.holder != holder:
            return None
        fence = 0 if held is None else held.fence
        lease = self._leases[name] = Lease(name, holder, fence + 1 if free else fence, now + ttl)
        return lease

    async def renew_lease(self, lease: Lease, ttl: float) -> Lease | None:
        """Extend the lease. None: another holder took it."""
        await self._turn()
        if not self._holds(lease):
            return None
        renewed = self._leases[lease.name] = replace(lease, expires_at=self._clock.now() + ttl)
        return renewed

    async def release_lease(self, lease: Lease) -> None:
        """Release the lease if it is still the caller's."""
        await self._turn()
        if self._holds(lease):
            self._leases[lease.name] = replace(lease, holder="", expires_at=self._clock.now())

    async def lease(self, name: str) -> Lease | None:
        """The current lease. None: free."""
        await self._turn()
        held = self._leases.get(name)
        return None if held is None or held.holder == "" else held

    async def record_claims(self, runtime: RuntimeKey, counts: Mapping[int, int]) -> None:
        """Add claim counts, keyed by second since the epoch."""
        await self._turn()
        self._claims.setdefault(runtime, Counter()).update(claims.fold(counts))

    async def claim_history(self, runtime: RuntimeKey, since: float, *, bucket: int) -> Sequence[tuple[int, int]]:
        """(bucket start, claims) of the buckets that began at `since` or later, oldest first."""
        oldest = claims.oldest_start(bucket, since, self._clock.now())
        await self._turn()
        kept = self._claims.get(runtime, Counter())
        return sorted((start, n) for (width, start), n in kept.items() if width == bucket and start >= oldest)


class MemoryDocuments:
    """Documents in a dictionary. `turn` is awaited in each call, and raises once the store is closed."""

    def __init__(self, turn: Callable[[], Awaitable[None]]) -> None:
        self._turn = turn
        self._kept: dict[tuple[str, str], Document] = {}
        self._revisions: Counter[str] = Counter()

    async def get(self, kind: str, name: str) -> Document | None:
        """The document, or None."""
        await self._turn()
        return self._kept.get((kind, name))

    async def put(self, document: Document) -> Document:
        """Write it if the version allows it. Raises StaleWriteError."""
        await self._turn()
        key = (document.kind, document.name)
        old = self._kept.get(key)
        if (0 if old is None else old.version) != document.version:
            raise stale_document(document)
        self._kept[key] = written = replace(document, version=document.version + 1)
        self._revisions[document.kind] += 1
        return written

    async def delete(self, kind: str, name: str) -> bool:
        """Forget it. Returns whether it was there."""
        await self._turn()
        if self._kept.pop((kind, name), None) is None:
            return False
        self._revisions[kind] += 1
        return True

    async def list(self, kind: str) -> Sequence[Document]:
        """All documents of a kind, by name."""
        await self._turn()
        return [self._kept[key] for key in sorted(self._kept) if key[0] == kind]

    async def revision(self, kind: str) -> int:
        """A number that grows with each change of a kind."""
        await self._turn()
        return self._revisions[kind]
