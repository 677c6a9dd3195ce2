"""The steps of a record as a session hibernates, wakes, or loses its sandbox.

They are taken while the session is held (gateway/sessions/hibernation.py, activation.py, recovery.py). After each step
the record is true, so that a gateway that finds it after a crash knows what to do (`salvage`):

    active -> hibernating   the sandbox may still run; its workspace is at the sandbox or kept
           -> hibernated    kept: costs nothing; only then is the sandbox deleted
           -> waking        the named sandbox is getting the workspace; what is kept is still named
           -> active        the sandbox has it; the record names what is still kept besides, if the keeper copies

A record's `owner` is the gateway without which nothing can be done: it alone reaches the sandbox, or a parked
workspace. Every gateway reaches a snapshot, so a session that is only a snapshot has no owner.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from gateway.core.clock import Clock
from gateway.core.errors import SnapshotError, WakegateError
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
from gateway.sessions.records import Records

logger = logging.getLogger(__name__)


class RollbackError(SnapshotError):
    """A wake failed half-way and could not be undone. The next open tries again."""


class Transitions:
    """The steps, over records and a keeper of workspaces. `me` as in gateway.sessions.membership."""

    def __init__(
        self,
        records: Records,
        keeper: WorkspaceKeeper,
        executor: Executor,
        clock: Clock,
        retention: float,
        me: str = "",
    ) -> None:
        self._records = records
        self._keeper = keeper
        self._executor = executor
        self._clock = clock
        self._retention = retention
        self._me = me

    @property
    def leaves_running(self) -> bool:
        """Whether keeping leaves the sandbox as it is, so that it can be broken off."""
        return self._keeper.leaves_running

    async def begin(self, session: Session) -> Session:
        """Record that its workspace is about to be kept; nothing has happened yet. Raises StaleWriteError."""
        return await self._records.put(replace(session, state=SessionState.HIBERNATING))

    async def cancel(self, session: Session, reason: str = "") -> Session:
        """It stays active: a request came, or hibernation failed for `reason`. Raises StaleWriteError."""
        return await self._records.put(replace(session, state=SessionState.ACTIVE, reason=reason))

    async def suspend(self, session: Session) -> Session:
        """Save what is only in its sandbox's memory into the workspace. `hibernated` writes the record."""
        assert session.sandbox is not None
        try:
            report = await self._executor.suspend(session.sandbox, session.id)
        except WakegateError as error:
            # Files matter more: a sandbox whose memory cannot be saved is still hibernated with them.
            logger.warning("session %s: variables in memory are not saved: %s", session.id, error)
            return replace(session, suspended=False)
        return replace(session, suspended=report.saved > 0 or bool(report.unsaved))

    async def resume(self, session: Session) -> None:
        """Its workspace is there again: picod may look for what `suspend` wrote."""
        if session.suspended and session.sandbox is not None:
            try:
                await self._executor.resume(session.sandbox, session.id)
            except WakegateError as error:
                logger.warning("session %s: variables in memory are not restored: %s", session.id, error)

    async def keep_unrecorded(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Keep the workspace of a session that has no record. Raises as WorkspaceKeeper.keep does."""
        return await self._keeper.keep(sandbox_id, session_id)

    async def keep(self, session: Session) -> str | None:
        """Keep its workspace; None if nothing is left. Raises as WorkspaceKeeper.keep does."""
        assert session.sandbox is not None
        return await self._keeper.keep(session.sandbox.id, session.id)

    async def hibernated(
        self, session: Session, reference: str | None, reason: str = "", at: float | None = None
    ) -> Session:
        """Its workspace is kept as `reference`, of the moment `at`; the record says so, and an earlier copy may go.

        Without a reference it is `lost`, with what was kept before.
        """
        now = self._clock.now()
        if reference:
            after = replace(
                session,
                state=SessionState.HIBERNATED,
                sandbox=None,
                snapshot=reference,
                snapshot_at=now if at is None else at,
                reason=reason,
                owner=self._owner_of(session, reference),
            )
        else:
            after = self._lost(session, None, reason or "its sandbox ended while it was being hibernated")
        return await self._put_and_delete_replaced(session, self._retained(session, after))

    async def checkpoint(self, session: Session) -> Session:
        """Keep a copy of an active session, which goes on. Raises as WorkspaceKeeper.keep, and StaleWriteError."""
        assert session.sandbox is not None
        reference = await self._keeper.checkpoint(session.sandbox.id, session.id)
        if reference is None:
            return session
        try:
            return await self._put_and_delete_replaced(
                session, replace(session, snapshot=reference, snapshot_at=self._clock.now())
            )
        except BaseException:
            await self.delete_snapshot(reference)
            raise

    async def restore(self, session: Session, sandbox: Sandbox, runtime: Runtime) -> Session:
        """Give a hibernated session the claimed sandbox and its workspace. Raises SandboxStartError, StaleWriteError.

        If that fails the session is hibernated again, and whole. RollbackError: that failed too, and the sandbox, which
        the record still names, may have some of the workspace. It is not to be released.
        """
        assert session.snapshot is not None
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
            # Also where only the record failed: a workspace that was moved would be released with the sandbox.
            await self._roll_back(session, f"could not be woken: {error}")
            raise

    def activated(self, session: Session, runtime: Runtime) -> Session:
        """The record of a session that starts in its sandbox now: its maximum duration counts from here."""
        now = self._clock.now()
        end = now + runtime.max_session_duration
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
        """Its sandbox ended on its own: keep the workspace if it is still there, and record what happened.

        `reachable` False: the sandbox was another gateway's, and what is left there cannot be had.
        """
        assert session.sandbox is not None
        # It was waking and no request has reached it: what it was hibernated from is still all there is.
        if session.state is SessionState.WAKING and (reachable or is_snapshot(session.snapshot)):
            return await self._roll_back(session, reason)
        reference = None
        if reachable:
            try:
                reference = await self.keep(session)
            except WakegateError as error:
                # picod does not export it: an unusable sandbox counts as ended, and its last snapshot stands.
                logger.warning("session %s: nothing newer than its last snapshot can be kept: %s", session.id, error)
        if session.state is SessionState.HIBERNATING and reference:
            return await self.hibernated(session, reference, reason)
        lost = self._lost(session, reference, reason)
        return await self._put_and_delete_replaced(session, self._retained(session, lost))

    async def delete_kept(self, session: Session) -> None:
        """Delete what is kept of a session whose record is terminated."""
        if session.snapshot is not None:
            await self.delete_snapshot(session.snapshot)

    async def retain_abandoned(self) -> None:
        """Set aside workspaces of ended sandboxes that no record names; called once all records are true."""
        await self._keeper.retain_abandoned()

    async def delete_snapshot(self, reference: str) -> None:
        """Delete what no record names. If that fails now it is an orphan, which the sweeper finds."""
        try:
            await self._keeper.delete(reference)
        except WakegateError as error:
            logger.warning("snapshot %s could not be deleted: %s", reference, error)

    async def _roll_back(self, session: Session, reason: str) -> Session:
        """It did not wake: hibernated again, as of the same moment as before, and kept no longer than before."""
        assert session.sandbox is not None
        assert session.snapshot is not None
        try:
            reference = await self._keeper.rollback(session.snapshot, session.sandbox.id, session.id)
        except Exception as error:
            raise RollbackError(f"session {session.id} {reason}; to undo that failed as well: {error}") from error
        return await self.hibernated(session, reference, reason, at=session.snapshot_at)

    async def _put_and_delete_replaced(self, before: Session, after: Session) -> Session:
        """Write the record, then delete the snapshot that only the earlier record named: it has a durable successor."""
        written = await self._records.put(after)
        if before.snapshot not in (None, written.snapshot):
            await self.delete_snapshot(before.snapshot)
        return written

    def _lost(self, session: Session, reference: str | None, reason: str) -> Session:
        """Without a sandbox: what is left is what could be kept of it, else what was kept before."""
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
        """Without a sandbox: it uses up none of its maximum duration, and is kept for the retention from now on.

        One that was waking has the end of its retention already: wakes that fail again and again do not put it off.
        """
        if before.state is SessionState.WAKING:
            return after
        end = self._clock.now() + self._retention
        return replace(after, limit_at=end, expires_at=bounded(end, after.ends_at))

    def _owner_of(self, session: Session, reference: str | None) -> str:
        """The owner of a session without a sandbox: none where it is a snapshot, or where nothing is left."""
        return "" if reference is None or is_snapshot(reference) else session.owner


def bounded(end: float, asked: float | None) -> float:
    """The earlier of two ends."""
    return end if asked is None else min(end, asked)
