"""Periodic work on sessions: hibernates idle ones, ends expired ones, deletes orphans.

Every gateway sweeps the sessions that it owns. Those without an owner are swept by the holder of the lease `sweeper`.
Sessions are found through indexes of the store, and one sweep acts on a bounded number of them, so it stays short.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial

from gateway.core.clock import Clock
from gateway.core.errors import (
    ConflictError,
    FencedOutError,
    LimitError,
    OwnerAwayError,
    SessionNotFoundError,
    SnapshotError,
    StaleWriteError,
    UpstreamBrokenError,
    UpstreamConnectError,
    UpstreamTimeoutError,
    WakegateError,
)
from gateway.core.interfaces import RuntimeCatalog, SessionStore, WorkspaceKeeper
from gateway.core.model import (
    REUSABLE_UNTIL,
    HibernationMode,
    Session,
    SessionId,
    SessionState,
)
from gateway.sessions.bounded_tasks import BoundedTasks
from gateway.sessions.durations import Durations
from gateway.sessions.hibernation import Hibernator
from gateway.sessions.idleness import IdleTracker
from gateway.sessions.lifecycle import Lifecycle
from gateway.sessions.membership import ElsewhereError
from gateway.sessions.orphans import OrphanCollector
from gateway.sessions.ownership import Ownership
from gateway.sessions.quota_audit import QuotaAudit
from gateway.sessions.quotas import Quotas
from gateway.sessions.records import Records
from gateway.sessions.recovery import Recovery
from gateway.sessions.restorability import all_sessions
from gateway.sessions.transitions import Transitions

logger = logging.getLogger(__name__)

CONCURRENCY = 32  # of each kind of action; a copy into an object store takes up to 32 MB, so 1 GB at most
BATCH_SIZE = 256  # sessions that one sweep hibernates, ends or forgets
# Sessions that one sweep reads to find a batch: some belong to other gateways, some cannot be hibernated now.
SCAN_LIMIT = 1024
ORPHAN_SCAN_INTERVAL_S = 3600.0
_ASLEEP = (SessionState.HIBERNATED, SessionState.LOST)
RETRY_S = 300.0  # before hibernation is tried again, after a workspace could not be kept


class Sweeper:
    """One pass is `sweep`, which a background task calls every `interval` seconds."""

    def __init__(
        self,
        *,
        lifecycle: Lifecycle,
        hibernator: Hibernator,
        idleness: IdleTracker,
        recovery: Recovery,
        durations: Durations,
        records: Records,
        ownership: Ownership,
        catalog: RuntimeCatalog,
        transitions: Transitions,
        keeper: WorkspaceKeeper,
        orphans: OrphanCollector,
        audit: QuotaAudit,
        quotas: Quotas,
        clock: Clock,
        interval: float = 5.0,
        terminated_retention: float = 3600.0,
        orphan_retention: float = 604_800.0,
    ) -> None:
        """Times in seconds. `orphan_retention`: how long a workspace that no record names is kept.

        It equals the retention of hibernated sessions: when the store comes back empty, or is the wrong one, every
        workspace is an orphan until the operator restores the records.
        """
        self._lifecycle = lifecycle
        self._hibernator = hibernator
        self._idleness = idleness
        self._recovery = recovery
        self._durations = durations
        self._records = records
        self._ownership = ownership
        self._catalog = catalog
        self._clock = clock
        self._interval = interval
        self._terminated_retention = terminated_retention
        self._orphan_retention = orphan_retention
        # When to try again, for sessions that could not be hibernated. Of the clock that is never set, as is the next.
        self._not_before: dict[SessionId, float] = {}
        self._orphan_scan_at = clock.monotonic()
        self._transitions = transitions
        self._keeper = keeper
        self._orphans = orphans
        self._audit = audit
        self._quotas = quotas
        self._ending, self._hibernating = BoundedTasks(CONCURRENCY), BoundedTasks(CONCURRENCY)
        self._finishing = BoundedTasks(CONCURRENCY)

    async def sweep(self) -> int:
        """Hibernate or end idle sessions, end expired ones, delete old records of ended ones.

        Returns how many sessions were hibernated or ended. What is slow runs on and is counted by a later sweep.
        """
        await self._durations.catch_up()
        await self._idleness.flush()
        await self._recovery.forget_ended()
        if self._records.shared:
            await self._orphans.rebuild_missing()
        is_leader = await self._is_leader()
        if not is_leader and not self._ownership.me:
            return 0  # without an id this gateway owns no session, and another one has the sweeper's lease
        now = self._clock.now()
        store = self._records.store
        await self._lifecycle.end_unclaimed_again()
        await self._finish_all()
        # Idle sessions first: one that was idle before it reached its maximum duration is hibernated and not ended.
        acted = await self._each(store.idle(now), is_leader, self._hibernate_idle, self._hibernating)
        acted += await self._each(store.expired(now), is_leader, self._end_expired, self._ending)
        await self._quotas.settle_again()
        if is_leader:
            await self._audit.run_if_due()
            await self._forget(store)
        await self._orphans.collect()
        await self._delete_orphans(is_leader)
        return acted

    async def aclose(self) -> None:
        """Cancel actions that a sweep started and that still run."""
        await asyncio.gather(
            *(tasks.aclose() for tasks in (self._orphans, self._ending, self._hibernating, self._finishing))
        )

    async def _delete_orphans(self, is_leader: bool) -> None:
        """Delete snapshots and parked workspaces that no record names, as a crash between two steps leaves them."""
        now = self._clock.monotonic()
        if not (is_leader or self._ownership.me) or now - self._orphan_scan_at < ORPHAN_SCAN_INTERVAL_S:
            return
        if not self._durations.is_settled:
            return  # what is old by a clock that is wrong
        self._orphan_scan_at = now
        try:
            await self._keeper.delete_orphans(self.kept_references, self._orphan_retention)
        except WakegateError as error:
            logger.warning("orphaned snapshots could not be looked for: %s", error)

    async def _finish_all(self) -> None:
        for session_id in list(self._records.unfinished)[:BATCH_SIZE]:
            if session_id in self._finishing or self._records.is_held(session_id):
                continue
            if not await self._finishing.start(session_id, partial(self._finish, session_id), self._interval):
                break
        await self._finishing.settle(self._interval)

    async def _finish(self, session_id: SessionId) -> bool:
        """Finish what an operation left half done; where that fails, the next sweep tries again."""
        self._records.unfinished.discard(session_id)
        try:
            await self._recovery.finish(session_id)
        except (StaleWriteError, FencedOutError, SessionNotFoundError, ElsewhereError):
            return False  # others have written it meanwhile
        except WakegateError as error:
            self._records.note_unfinished(session_id)
            logger.debug("session %s is still between two states: %s", session_id, error)
        return True

    async def kept_references(self) -> AsyncIterator[str]:
        """References to workspaces named by the records of sessions that have not ended."""
        async for session in all_sessions(self._records.store):
            if session.snapshot is not None and session.state is not SessionState.TERMINATED:
                yield session.snapshot

    async def _is_leader(self) -> bool:
        if not self._records.shared:
            return True
        lease = await self._records.store.acquire_lease("sweeper", self._records.holder, 3 * self._interval)
        return lease is not None

    async def _each(
        self,
        sessions: AsyncIterator[Session],
        is_leader: bool,
        act: Callable[[Session], Awaitable[bool]],
        tasks: BoundedTasks,
    ) -> int:
        """Act on the sessions that this gateway sweeps. Returns how many actions had an effect; slow ones run on."""
        scanned = started = 0
        async for session in sessions:
            scanned += 1
            if (self._ownership.owns(session) or is_leader) and session.id not in tasks:
                if not await tasks.start(session.id, partial(_if_unchanged, act, session), self._interval):
                    break
                started += 1
            if started >= BATCH_SIZE or scanned >= SCAN_LIMIT:
                break
        return await tasks.settle(self._interval)

    async def _end_expired(self, session: Session) -> bool:
        # An idle session is exempt from its maximum duration because it is about to be hibernated. One that cannot be
        # is not exempt: it would occupy a sandbox for the whole retention of hibernated sessions (7 days).
        failed = session.id in self._not_before
        if session.state in _ASLEEP and not self._durations.is_settled:
            return False
        return await self._lifecycle.terminate(
            session.id,
            "it reached its maximum duration",
            only_if=lambda s: self._idleness.is_expired(s) or (failed and s.expires_at <= self._clock.now()),
        )

    async def _hibernate_idle(self, session: Session) -> bool:
        if not self._ownership.is_mine(session):
            return False  # its owner hibernates it; if the owner is dead, the next request or expiry handles it
        runtime = self._catalog.get(session.runtime)
        if runtime is None or runtime.hibernation is HibernationMode.OFF:
            if await self._idleness.has_background_work(session):
                return False
            reason = f"idle for {session.idle_timeout:g} s"
            return await self._lifecycle.terminate(session.id, reason, only_if=self._idleness.is_idle)
        if self._not_before.get(session.id, float("-inf")) > self._clock.monotonic():
            return False
        self._not_before.pop(session.id, None)
        try:
            return await self._hibernator.hibernate(
                session.id, only_if=self._idleness.is_idle, why=f"idle for {session.idle_timeout:g} s"
            )
        except (LimitError, SnapshotError, UpstreamConnectError, UpstreamBrokenError, UpstreamTimeoutError) as error:
            logger.warning("session %s could not be hibernated and stays awake: %s", session.id, error)
            self._not_before[session.id] = self._clock.monotonic() + RETRY_S
            self._records.tell("session.stays_awake", session, reason=str(error))
            return False

    async def _forget(self, store: SessionStore) -> None:
        forgotten = 0
        now = self._clock.now()
        async for session in store.terminated(now - self._terminated_retention):
            if float(session.metadata.get(REUSABLE_UNTIL, 0.0)) > now:
                # Kept for another retention. To skip it would have each sweep read all such records again.
                await _if_unchanged(self._keep_ended, session)
            else:
                # Again: a gateway that was killed after it had written the end has left the snapshot, and without the
                # record it would count as that of a lost record, and be kept for the whole retention.
                await self._transitions.delete_kept(session)
                await store.delete(session.id)
                self._not_before.pop(session.id, None)
            forgotten += 1
            if forgotten >= BATCH_SIZE:
                break

    async def _keep_ended(self, session: Session) -> bool:
        await self._records.put(replace(session, last_active_at=self._clock.now()))
        return True


async def _if_unchanged(act: Callable[[Session], Awaitable[bool]], session: Session) -> bool:
    try:
        return await act(session)
    except (StaleWriteError, FencedOutError, ConflictError, SessionNotFoundError):
        return False  # it was used or ended since it was read; the next sweep reads it again
    except (ElsewhereError, OwnerAwayError):
        return False  # its owner sweeps it
