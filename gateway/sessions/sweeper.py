"""Periodic work on sessions: hibernate idle ones, end expired ones, checkpoints, and delete what was orphaned.

Every gateway sweeps what it alone reaches. The rest is swept by one of them, the holder of the lease `sweeper`.
Everything is found through an index of the store; a sweep acts on a bounded number of sessions, so a tick stays short.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from gateway.core.clock import Clock
from gateway.core.errors import (
    ConflictError,
    FencedOutError,
    SessionNotFoundError,
    SnapshotError,
    StaleWriteError,
    UpstreamBrokenError,
    UpstreamConnectError,
    UpstreamTimeoutError,
    WakegateError,
)
from gateway.core.interfaces import RuntimeCatalog, SessionStore, WorkspaceKeeper
from gateway.core.model import HibernationMode, Session, SessionId, SessionState
from gateway.sessions.activity import Activity
from gateway.sessions.bindings import Bindings
from gateway.sessions.bounded_tasks import BoundedTasks
from gateway.sessions.durations import Durations
from gateway.sessions.hibernation import Hibernator
from gateway.sessions.idleness import IdleTracker
from gateway.sessions.lifecycle import Lifecycle
from gateway.sessions.membership import ElsewhereError
from gateway.sessions.ownership import Ownership
from gateway.sessions.records import Records
from gateway.sessions.recovery import Recovery
from gateway.sessions.restorability import all_sessions
from gateway.sessions.strays import StrayCollector

logger = logging.getLogger(__name__)

CONCURRENCY = 32  # of each kind of action; copies into an object store hold up to 32 MB each
BATCH = 256  # sessions acted on in one sweep of each kind
LOOKED_AT = 1024  # sessions that one sweep of each kind reads: some are another gateway's, some cannot be hibernated
ORPHANS_INTERVAL_S = 3600.0
RETRY_S = 300.0  # until a session whose workspace could not be kept is tried again


class Sweeper:
    """`sweep` is called again and again."""

    def __init__(
        self,
        *,
        lifecycle: Lifecycle,
        hibernator: Hibernator,
        idleness: IdleTracker,
        recovery: Recovery,
        durations: Durations,
        bindings: Bindings,
        records: Records,
        ownership: Ownership,
        catalog: RuntimeCatalog,
        keeper: WorkspaceKeeper,
        strays: StrayCollector,
        activity: Activity,
        clock: Clock,
        interval: float = 5.0,
        terminated_retention: float = 3600.0,
        orphan_retention: float = 604_800.0,
    ) -> None:
        """Times in seconds. `orphan_retention`: how long a workspace is kept that no record names.

        As long as that of a sleeping session: after a store came back empty, or was another one by mistake, every
        workspace is such an orphan, until the operator brings the records back.
        """
        self._lifecycle = lifecycle
        self._hibernator = hibernator
        self._idleness = idleness
        self._recovery = recovery
        self._durations = durations
        self._bindings = bindings
        self._records = records
        self._ownership = ownership
        self._catalog = catalog
        self._clock = clock
        self._interval = interval
        self._terminated_retention = terminated_retention
        self._orphan_retention = orphan_retention
        self._not_before: dict[SessionId, float] = {}  # sessions that could not be hibernated
        self._checkpointed: dict[SessionId, float] = {}  # when each was last tried
        self._orphans_at = clock.now()
        self._keeper = keeper
        self._strays = strays
        self._activity = activity
        self._ending, self._hibernating = BoundedTasks(CONCURRENCY), BoundedTasks(CONCURRENCY)
        self._copying = BoundedTasks(CONCURRENCY)

    async def sweep(self) -> int:
        """Let idle sessions sleep (or end), end expired ones, forget records of long ended ones. Returns how many."""
        await self._durations.catch_up()
        await self._idleness.flush()
        await self._recovery.forget_ended()
        if self._records.shared:
            await self._strays.rebuild_missing()
        leads = await self._leads()
        if not leads and not self._ownership.me:
            return 0  # nothing is this gateway's alone
        now = self._clock.now()
        store = self._records.store
        # Idle ones first: one that was idle before its maximum duration ended is hibernated, and lives.
        acted = await self._each(store.idle(now), leads, self._hibernate_idle, self._hibernating)
        acted += await self._each(store.expired(now), leads, self._end_expired, self._ending)
        if leads:
            await self._forget(store)
        await self._strays.collect()
        await self._delete_orphans(leads)
        return acted

    async def aclose(self) -> None:
        """Cancel what a sweep began and did not wait for."""
        await asyncio.gather(
            *(tasks.aclose() for tasks in (self._strays, self._ending, self._hibernating, self._copying))
        )

    async def checkpoint(self) -> int:
        """Copy the workspaces of active sessions whose runtime asks for it and whose time has come. Returns how many.

        Only sessions in use since their last copy: the others' is as good as new.
        """
        now = self._clock.now()
        if all(runtime.checkpoint_interval is None for runtime in self._catalog.all()):
            return 0  # no runtime wants checkpoints: nothing is read
        bound = self._bindings.sessions
        self._checkpointed = {each: at for each, at in self._checkpointed.items() if each in bound}
        for session_id in bound:
            last = self._checkpointed.setdefault(session_id, now)
            used = self._activity.latest(session_id, now)
            if used is None or used <= last:
                continue
            session = await self._records.peek(session_id)
            runtime = None if session is None else self._catalog.get(session.runtime)
            interval = None if runtime is None else runtime.checkpoint_interval
            if interval is None or now - last < interval:
                continue
            if session_id not in self._copying:
                if not await self._copying.start(session_id, partial(self._checkpoint, session_id), self._interval):
                    break
                self._checkpointed[session_id] = now
        return await self._copying.settle(self._interval)

    async def _checkpoint(self, session_id: SessionId) -> bool:
        try:
            return await self._hibernator.checkpoint(session_id)
        except WakegateError as error:
            logger.warning("session %s has no new checkpoint: %s", session_id, error)
            return False

    async def _delete_orphans(self, leads: bool) -> None:
        """Snapshots and parked workspaces that no record names: what a crash between two steps left."""
        now = self._clock.now()
        if not (leads or self._ownership.me) or now - self._orphans_at < ORPHANS_INTERVAL_S:
            return
        self._orphans_at = now
        try:
            await self._keeper.delete_orphans(self.kept_references, self._orphan_retention)
        except WakegateError as error:
            logger.warning("orphaned snapshots could not be looked for: %s", error)

    async def kept_references(self) -> AsyncIterator[str]:
        """References to workspaces that records of sessions name which have not ended."""
        async for session in all_sessions(self._records.store):
            if session.snapshot is not None and session.state is not SessionState.TERMINATED:
                yield session.snapshot

    async def _leads(self) -> bool:
        if not self._records.shared:
            return True
        lease = await self._records.store.acquire_lease("sweeper", self._records.holder, 3 * self._interval)
        return lease is not None

    async def _each(
        self,
        sessions: AsyncIterator[Session],
        leads: bool,
        act: Callable[[Session], Awaitable[bool]],
        tasks: BoundedTasks,
    ) -> int:
        """Act on those that are this gateway's. Returns how many actions had an effect; slow ones run on."""
        looked = started = 0
        async for session in sessions:
            looked += 1
            if (self._ownership.is_named(session) or leads) and session.id not in tasks:
                if not await tasks.start(session.id, partial(_if_unchanged, act, session), self._interval):
                    break
                started += 1
            if started >= BATCH or looked >= LOOKED_AT:
                break
        return await tasks.settle(self._interval)

    async def _end_expired(self, session: Session) -> bool:
        failed = session.id in self._not_before  # its workspace cannot be kept: it goes on using up its duration
        return await self._lifecycle.terminate(
            session.id,
            "its maximum duration is over",
            only_if=lambda s: self._idleness.is_over(s) or (failed and s.expires_at <= self._clock.now()),
        )

    async def _hibernate_idle(self, session: Session) -> bool:
        if not self._ownership.is_mine(session):
            return False  # its gateway lets it sleep; if that is dead, the next request or its end comes first
        runtime = self._catalog.get(session.runtime)
        if runtime is None or runtime.hibernation is HibernationMode.OFF:
            if await self._idleness.at_work(session):
                return False
            reason = f"idle for {session.idle_timeout:g} s"
            return await self._lifecycle.terminate(session.id, reason, only_if=self._idleness.is_idle)
        if self._not_before.get(session.id, 0.0) > self._clock.now():
            return False
        self._not_before.pop(session.id, None)
        try:
            return await self._hibernator.hibernate(session.id, only_if=self._idleness.is_idle)
        except (SnapshotError, UpstreamConnectError, UpstreamBrokenError, UpstreamTimeoutError) as error:
            logger.warning("session %s stays awake: %s", session.id, error)
            self._not_before[session.id] = self._clock.now() + RETRY_S
            return False

    async def _forget(self, store: SessionStore) -> None:
        forgotten = 0
        async for session in store.terminated(self._clock.now() - self._terminated_retention):
            await store.delete(session.id)
            self._not_before.pop(session.id, None)
            forgotten += 1
            if forgotten >= BATCH:
                break


async def _if_unchanged(act: Callable[[Session], Awaitable[bool]], session: Session) -> bool:
    try:
        return await act(session)
    except (StaleWriteError, FencedOutError, ConflictError, SessionNotFoundError):
        return False  # it was used or ended meanwhile; the next sweep reads it again
    except ElsewhereError:
        return False  # its own gateway sweeps it
