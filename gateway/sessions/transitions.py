"""The states of a session's record, and the steps between them when it hibernates, wakes or loses its sandbox.

Callers hold the session (gateway/sessions/hibernation.py, activation.py, recovery.py). The record is true after every
step, so a gateway that finds it after a crash can continue from it (`salvage`):

    active -> hibernating   the sandbox may still run; the workspace is in the sandbox, or kept
           -> hibernated    the workspace is kept; only now is the sandbox deleted
           -> waking        the named sandbox is receiving the workspace; the kept one is still named
           -> active        the sandbox has the workspace; a keeper that copies also leaves the snapshot named

The steps and what a crash leaves after each are in docs/adr/0003-snapshots-and-parking.md.

A record's `owner` is the only gateway that reaches the sandbox or the parked workspace. Every gateway reaches a
snapshot, so a session that is only a snapshot has no owner.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from gateway.core.clock import Clock
from gateway.core.errors import (
    FencedOutError,
    SnapshotError,
    SnapshotStoreFullError,
    SnapshotStoreUnavailableError,
    StaleWriteError,
    StoreUnavailableError,
    WakegateError,
)
from gateway.core.interfaces import Executor, WorkspaceKeeper
from gateway.core.model import (
    Runtime,
    Sandbox,
    SandboxId,
    Session,
    SessionId,
    SessionState,
    StartKind,
    is_snapshot,
)
from gateway.sessions.quotas import Quotas
from gateway.sessions.records import Records

logger = logging.getLogger(__name__)

_MAX_UNRECORDED = 10_000  # sessions; the snapshots of further ones are orphans, which the sweeper deletes later


class RollbackError(SnapshotError):
    """A restore failed and could not be undone either. The record stays `waking`; the next open tries to undo it.

    Its answer is that of what stopped the undoing: 507 for a full disk.
    """

    def __init__(self, message: str, cause: Exception) -> None:
        super().__init__(message)
        if isinstance(cause, WakegateError):
            self.status, self.code, self.retry_after = cause.status, cause.code, cause.retry_after


class Transitions:
    """Writes records and moves workspaces, in the order above. `me` as in gateway.sessions.membership.

    `retention`: seconds that a session without a sandbox is kept.
    """

    def __init__(
        self,
        records: Records,
        keeper: WorkspaceKeeper,
        executor: Executor,
        clock: Clock,
        retention: float,
        quotas: Quotas,
        me: str = "",
    ) -> None:
        self._records = records
        self._keeper = keeper
        self._executor = executor
        self._clock = clock
        self._retention = retention
        self._quotas = quotas
        self._me = me
        # Snapshots that a record names or not: the store went away as it was written.
        self._unrecorded: dict[SessionId, set[str]] = {}

    @property
    def leaves_running(self) -> bool:
        """Whether `keep` copies and leaves the sandbox running, so that it can be cancelled."""
        return self._keeper.leaves_running

    async def begin(self, session: Session) -> Session:
        """Record that the session is about to be hibernated, before anything is done. Raises StaleWriteError."""
        return await self._records.put(replace(session, state=SessionState.HIBERNATING))

    async def cancel(self, session: Session, reason: str = "") -> Session:
        """Set it back to active: a request came, or hibernation failed for `reason`. Raises StaleWriteError."""
        return await self._put(replace(session, state=SessionState.ACTIVE, reason=reason))

    async def suspend(self, session: Session) -> Session:
        """Have picod save the memory of code contexts into the workspace. The result is written by `hibernated`."""
        assert session.sandbox is not None
        try:
            report = await self._executor.suspend(session.sandbox, session.id)
        except WakegateError as error:
            # Not an error: the files are worth more, and a session that stayed awake would cost a sandbox.
            logger.warning("session %s: variables in memory are not saved: %s", session.id, error)
            return replace(session, suspended=False)
        return replace(session, suspended=report.saved > 0 or bool(report.unsaved))

    async def resume(self, session: Session) -> None:
        """Have picod load what `suspend` saved, once the workspace is restored."""
        if session.suspended and session.sandbox is not None:
            try:
                await self._executor.resume(session.sandbox, session.id)
            except WakegateError as error:
                logger.warning("session %s: variables in memory are not restored: %s", session.id, error)

    async def keep_unrecorded(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Keep the workspace of a session that has no record. Raises as WorkspaceKeeper.keep does."""
        return await self._keeper.keep(sandbox_id, session_id)

    async def keep(self, session: Session) -> str | None:
        """Keep its workspace and return the reference; None if nothing is left. Raises as WorkspaceKeeper.keep does."""
        assert session.sandbox is not None
        return await self._keeper.keep(session.sandbox.id, session.id)

    async def hibernated(
        self, session: Session, reference: str | None, reason: str = "", at: float | None = None
    ) -> Session:
        """Record that its workspace is kept as `reference`, as of `at` (now), then delete the snapshot it replaces.

        Without a reference the session is recorded as lost, with the snapshot that it had before.
        """
        if reference:
            after = self._hibernated(session, reference, reason, self._clock.now() if at is None else at)
        else:
            after = self._lost(session, None, reason or "its sandbox ended while it was being hibernated")
        return await self._put_and_delete_replaced(session, self._retained(session, after))

    async def park(self, session: Session, reason: str) -> Session | None:
        """Hibernate it here, where only this gateway wakes it; None where the engine cannot park. Raises SnapshotError.

        Its last snapshot stays in the store until it counts as an orphan: if this machine never comes back, that is
        all there is.
        """
        assert session.sandbox is not None
        reference = await self._keeper.park(session.sandbox.id, session.id)
        if reference is None:
            return None
        after = self._hibernated(session, reference, reason, self._clock.now())
        return await self._records.put(self._retained(session, after))

    async def checkpoint(self, session: Session) -> Session:
        """Copy the workspace of a session that stays active. Raises as WorkspaceKeeper.keep, and StaleWriteError."""
        assert session.sandbox is not None
        reference = await self._keeper.checkpoint(session.sandbox.id, session.id, last=session.snapshot)
        if reference is None:
            return session
        try:
            return await self._put_and_delete_replaced(
                session, replace(session, snapshot=reference, snapshot_at=self._clock.now())
            )
        except (StaleWriteError, FencedOutError):
            if reference != session.snapshot:
                await self.delete_snapshot(reference)
            raise

    async def restore(self, session: Session, sandbox: Sandbox, runtime: Runtime) -> Session:
        """Give a hibernated session the claimed sandbox and its workspace. Raises SandboxStartError, StaleWriteError.

        If that fails, the session is hibernated again with its whole workspace. RollbackError: undoing failed as well,
        and the sandbox must not be released: the record still names it, and a part of the workspace may be in it.
        """
        assert session.snapshot is not None
        # Before the workspace moves: a gateway that finds this after a crash knows where both halves of it may be.
        session = await self._records.put(replace(session, state=SessionState.WAKING, sandbox=sandbox, owner=self._me))
        try:
            remains = await self._keeper.restore(session.snapshot or "", sandbox.id, session.id)
            await self.resume(session)
            wake = StartKind.WAKE if sandbox.start is StartKind.WARM else StartKind.WAKE_COLD
            active = replace(
                self.activated(session, runtime),
                start=wake,
                snapshot=remains,
                snapshot_at=session.snapshot_at if remains else None,
            )
            return await self._records.put(active)
        except Exception as error:
            # Also when only the record failed: a parked workspace is in the sandbox by now, and would end with it.
            await self._roll_back(session, f"cannot be woken: {error}")
            raise

    def activated(self, session: Session, runtime: Runtime) -> Session:
        """The record of a session that becomes active now; its maximum duration counts from here."""
        now = self._clock.now()
        end = now + self._quotas.longest(session.tenant, runtime)
        return replace(
            session,
            state=SessionState.ACTIVE,
            owner=self._me,
            reason="",
            last_active_at=now,
            limit_at=end,
            expires_at=bounded(end, session.ends_at),
        )

    async def salvage(self, session: Session, reason: str, *, reachable: bool = True) -> Session:
        """Keep the workspace after the sandbox ended on its own, if it is still there, and record what happened.

        `reachable` False: the sandbox was another gateway's, which is dead, and so are the files there. By state:

            waking        rolled back to hibernated: no request reached the sandbox, so the kept workspace is complete
            hibernating   hibernated if the workspace can be kept, else lost
            active        lost, with the workspace that could be kept, else with the last snapshot

        Raises SnapshotStoreFullError or SnapshotStoreUnavailableError, with the record as it was, when the workspace
        may be kept later: an older snapshot in its place would lose what was written since.
        """
        assert session.sandbox is not None
        if session.state is SessionState.WAKING and (reachable or is_snapshot(session.snapshot)):
            return await self._roll_back(session, reason)
        reference = None
        if reachable:
            try:
                reference = await self.keep(session)
            except (SnapshotStoreFullError, SnapshotStoreUnavailableError):
                raise
            except WakegateError as error:
                # Its picod cannot export it. Raised, this would leave a session that can neither be used nor recovered.
                logger.warning("session %s: falls back to its last snapshot: %s", session.id, error)
        if session.state is SessionState.HIBERNATING and reference:
            return await self.hibernated(session, reference, reason)
        lost = self._lost(session, reference, reason)
        return await self._put_and_delete_replaced(session, self._retained(session, lost))

    async def delete_kept(self, session: Session) -> None:
        """Delete the kept workspace of a session whose record is terminated."""
        if session.snapshot is not None:
            await self.delete_snapshot(session.snapshot)

    async def retain_abandoned(self) -> None:
        """Set aside workspaces of ended sandboxes that no record names; called after all records are corrected."""
        await self._keeper.retain_abandoned()

    async def delete_snapshot(self, reference: str) -> None:
        """Delete a workspace that no record names. If that fails it is an orphan, which the sweeper deletes later."""
        try:
            await self._keeper.delete(reference)
        except WakegateError as error:
            logger.warning("snapshot %s could not be deleted: %s", reference, error)

    async def _roll_back(self, session: Session, reason: str) -> Session:
        """Undo a restore that failed: hibernated again, with the time and the retention of its workspace unchanged."""
        assert session.sandbox is not None
        assert session.snapshot is not None
        try:
            reference = await self._keeper.rollback(session.snapshot, session.sandbox.id, session.id)
        except Exception as error:
            text = f"session {session.id} {reason}; undoing that failed as well: {error}"
            raise RollbackError(text, error) from error
        return await self.hibernated(session, reference, reason, at=session.snapshot_at)

    async def _put_and_delete_replaced(self, before: Session, after: Session) -> Session:
        """Write the record, then delete the snapshot that only the earlier record named.

        In the other order a crash between the two would leave a record that names a deleted snapshot.
        """
        try:
            written = await self._put(after)
        except (StoreUnavailableError, asyncio.CancelledError):
            if after.snapshot is not None and is_snapshot(after.snapshot) and after.snapshot != before.snapshot:
                self._note_unrecorded(after.id, after.snapshot)
            raise
        if before.snapshot not in (None, written.snapshot):
            await self.delete_snapshot(before.snapshot)
        return written

    async def _put(self, session: Session) -> Session:
        """Write the record, then delete the snapshots that it might have named and does not.

        Only now: a write whose answer was lost may still arrive, until the store has a newer version.
        """
        written = await self._records.put(session)
        for reference in self._unrecorded.pop(session.id, set()) - {written.snapshot}:
            await self.delete_snapshot(reference)
        return written

    def _note_unrecorded(self, session_id: SessionId, reference: str) -> None:
        if session_id in self._unrecorded or len(self._unrecorded) < _MAX_UNRECORDED:
            self._unrecorded.setdefault(session_id, set()).add(reference)

    def _hibernated(self, session: Session, reference: str, reason: str, at: float) -> Session:
        """Without a sandbox: it is what is kept as `reference`, of the moment `at`."""
        return replace(
            session,
            state=SessionState.HIBERNATED,
            sandbox=None,
            snapshot=reference,
            snapshot_at=at,
            reason=reason,
            owner=self._owner_of(session, reference),
        )

    def _lost(self, session: Session, reference: str | None, reason: str) -> Session:
        """The record of a session that lost its sandbox, with `reference` or else with its earlier snapshot."""
        at = self._clock.now() if reference else session.snapshot_at if session.snapshot else None
        left = reference or session.snapshot
        return replace(
            session,
            state=SessionState.LOST,
            sandbox=None,
            reason=reason,
            snapshot=left,
            snapshot_at=at,
            owner=self._owner_of(session, left),
        )

    def _retained(self, before: Session, after: Session) -> Session:
        """Restart the deadline: without a sandbox, time counts towards the retention, not the maximum duration.

        Not when it was waking: its retention runs already, and wakes that fail repeatedly must not extend it.
        """
        if before.state is SessionState.WAKING:
            return after
        end = self._clock.now() + self._retention
        return replace(after, limit_at=end, expires_at=bounded(end, after.ends_at))

    def _owner_of(self, session: Session, reference: str | None) -> str:
        """The owner of a session without a sandbox: none if it is a snapshot, or if nothing is left."""
        return "" if reference is None or is_snapshot(reference) else session.owner


def bounded(end: float, asked: float | None) -> float:
    """The earlier of a session's end and the end that its user asked for, if any."""
    return end if asked is None else min(end, asked)
