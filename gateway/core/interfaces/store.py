"""What a session store does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from gateway.core.documents import DocumentStore
from gateway.core.model import Lease, RuntimeKey, Session, SessionId, SessionState
from gateway.core.questions import PeerQuestions
from gateway.core.quota import QuotaLedger
from gateway.core.tasks import TaskStore
from gateway.core.usage import UsageStore


class SessionStore(Protocol):
    """Session records, leases and the history of claims."""

    @property
    def documents(self) -> DocumentStore:
        """The small named records that are kept beside sessions. Open while the store is."""
        ...

    @property
    def usage(self) -> UsageStore:
        """What tenants have used, kept beside sessions. Open while the store is."""
        ...

    @property
    def quotas(self) -> QuotaLedger:
        """What the sessions of each tenant hold. Open while the store is."""
        ...

    @property
    def tasks(self) -> TaskStore:
        """Background work and its results, kept beside sessions. Open while the store is."""
        ...

    @property
    def questions(self) -> PeerQuestions:
        """What the gateways that share the store ask each other. Open while the store is."""
        ...

    async def start(self) -> None:
        """Open the store. Raises StoreUnavailableError with the reason."""
        ...

    async def aclose(self) -> None:
        """Finish pending writes and close."""
        ...

    async def ping(self) -> None:
        """Make a write that changes no record. Raises StoreUnavailableError if it fails.

        A read would not do: a store that cannot be written to (full disk, a replica, over its memory limit) can serve
        no session.
        """
        ...

    async def warnings(self) -> Sequence[str]:
        """Settings of the store's server that can lose records, one sentence each. Raises StoreUnavailableError."""
        ...

    async def get(self, session_id: SessionId) -> Session | None:
        """The record as last written, or None if there is none."""
        ...

    async def versions(self, session_ids: Sequence[SessionId]) -> Mapping[SessionId, int]:
        """The versions of the records that exist, of any number, without reading the records themselves."""
        ...

    async def put(self, session: Session, *, lease: Lease | None = None) -> Session:
        """Durably write the record if the stored version equals `session.version` (0: it must not exist yet).

        Returns the record with its new version. With `lease`, also refuses when that lease is no longer the newest.
        Raises StaleWriteError, FencedOutError.
        """
        ...

    async def delete(self, session_id: SessionId) -> None:
        """Delete a record. An absent one is not an error."""
        ...

    async def touch_many(self, seen: Mapping[SessionId, float]) -> None:
        """Raise last_active_at of each to at least the given time. Unknown ids are ignored.

        Versions stay: if touches changed them, every second of use would make a concurrent `put` stale.
        """
        ...

    def sessions(
        self,
        *,
        state: SessionState | None = None,
        runtime: RuntimeKey | None = None,
        after: SessionId | None = None,
        limit: int = 100,
    ) -> AsyncIterator[Session]:
        """Records by id, strictly after `after`, at most `limit`."""
        ...

    def by_age(
        self,
        *,
        tenant: str | None = None,
        ended: bool = True,
        newest_first: bool = True,
        after: tuple[float, SessionId] | None = None,
        limit: int = 100,
    ) -> AsyncIterator[Session]:
        """Records by time of creation, then id, at most `limit`. Indexed, never a scan.

        `tenant` None: of all tenants. `ended` False: without those that have ended. `after` is the position
        (created_at, id) of the last record of the page before, which need not exist any more.
        """
        ...

    async def search(
        self,
        parts: Sequence[str],
        *,
        tenant: str | None,
        ended: bool,
        after: tuple[float, SessionId] | None,
        limit: int,
    ) -> Sequence[tuple[tuple[float, SessionId], Session | None]]:
        """The next `limit` places of the list `by_age`, newest first; fewer at its end.

        A record comes with its place where all the parts are in its texts, A to Z in either case. It may also come
        where they are not, for example in the name of a field, so the caller looks again. Others are not even decoded,
        which is most of what reading them costs: 3 us a record instead of 33.
        """
        ...

    def idle(self, now: float) -> AsyncIterator[Session]:
        """Active sessions with idle_at <= now, soonest first. Indexed, never a scan."""
        ...

    def expired(self, now: float) -> AsyncIterator[Session]:
        """Sessions that are not terminated with expires_at <= now, soonest first. Indexed, never a scan."""
        ...

    def terminated(self, before: float) -> AsyncIterator[Session]:
        """Terminated sessions with last_active_at <= before, oldest first; their records may be deleted."""
        ...

    async def acquire_lease(self, name: str, holder: str, ttl: float) -> Lease | None:
        """Take the lease if it is free, expired, or already `holder`'s. None: another holder has it.

        The fence grows with every change of holder, and never repeats for a name.
        """
        ...

    async def renew_lease(self, lease: Lease, ttl: float) -> Lease | None:
        """Extend the lease. None: another holder took it."""
        ...

    async def release_lease(self, lease: Lease) -> None:
        """Release the lease if it is still the caller's; otherwise do nothing."""
        ...

    async def lease(self, name: str) -> Lease | None:
        """The current lease, which may have expired (compare `expires_at`). None: released, or deleted since.

        `expires_at` is in the caller's clock, even where the store's server decides when the lease ends.
        """
        ...

    async def record_claims(self, runtime: RuntimeKey, counts: Mapping[int, int]) -> None:
        """Add claim counts, keyed by second since the epoch."""
        ...

    async def claim_history(self, runtime: RuntimeKey, since: float, *, bucket: int) -> Sequence[tuple[int, int]]:
        """(bucket start, claims) with claims > 0, oldest first; `bucket` is 1 or 60 seconds."""
        ...
