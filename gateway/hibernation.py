"""How a session goes to sleep, wakes, and is saved from a sandbox that ended: the steps of the record, in their order.

Lifecycle calls these with the session's lock held. After each step the record is true, so whoever finds it after a
crash knows what to do (`salvage`):

    active -> hibernating   the sandbox may still run; its workspace is at the sandbox or parked
           -> hibernated    kept: costs nothing; its sandbox is not needed any more
           -> waking        the named sandbox is getting the workspace; what is kept is still named
           -> active        the sandbox has it; the record names what is still kept besides, if the keeper copies
"""

from __future__ import annotations

from dataclasses import replace

from gateway.clock import Clock
from gateway.interfaces import SessionStore, WorkspaceKeeper
from gateway.model import Runtime, Sandbox, Session, SessionState, StartKind


class Hibernation:
    """The steps, over a store and a keeper of workspaces."""

    def __init__(self, store: SessionStore, keeper: WorkspaceKeeper, clock: Clock, retention: float) -> None:
        self._store = store
        self._keeper = keeper
        self._clock = clock
        self._retention = retention

    async def begin(self, session: Session) -> Session:
        """Say that it is going to sleep; nothing has happened yet. Raises StaleWriteError."""
        return await self._store.put(replace(session, state=SessionState.HIBERNATING))

    async def cancel(self, session: Session, reason: str = "") -> Session:
        """Somebody needs it, or it cannot sleep for that reason: it stays awake. Raises StaleWriteError."""
        return await self._store.put(replace(session, state=SessionState.ACTIVE, reason=reason))

    async def park(self, session: Session) -> Session:
        """Keep its workspace; the record then says so, and its sandbox may be released.

        `lost` if nothing is left to keep.
        """
        assert session.sandbox is not None
        return await self._asleep(session, await self._keeper.keep(session.sandbox.id, session.id), "")

    async def unpark(self, session: Session, sandbox: Sandbox, runtime: Runtime) -> Session:
        """Give a sleeping session the claimed sandbox and its workspace. Raises SandboxStartError, StaleWriteError.

        If the workspace cannot be put there the session is asleep again, and whole.
        """
        assert session.snapshot is not None
        reference, start = session.snapshot, StartKind.WAKE if sandbox.start is StartKind.WARM else StartKind.WAKE_COLD
        session = await self._store.put(replace(session, state=SessionState.WAKING, sandbox=sandbox))
        try:
            remains = await self._keeper.unpark(reference, sandbox.id, session.id)
        except Exception:
            await self._put_back(session, "")
            raise
        now = self._clock.now()
        awake = replace(
            session,
            state=SessionState.ACTIVE,
            start=start,
            snapshot=remains,
            snapshot_at=session.snapshot_at if remains else None,
            reason="",
            last_active_at=now,
            expires_at=bounded(now + runtime.max_session_duration, session.ends_at),
        )
        return await self._store.put(awake)

    async def salvage(self, session: Session, reason: str) -> Session:
        """Its sandbox ended on its own: keep the workspace if it is still there, and record what happened."""
        assert session.sandbox is not None
        # On its way between two states, with no request in it, asleep is all there is to say of it.
        if session.state is SessionState.WAKING:
            return await self._put_back(session, reason)
        reference = await self._keeper.keep(session.sandbox.id, session.id)
        if session.state is SessionState.HIBERNATING:
            return await self._asleep(session, reference, reason)
        return await self._store.put(self._lost(session, reference, reason))

    async def forget(self, session: Session) -> None:
        """Delete what is kept of a session whose record says that it ended."""
        if session.snapshot is not None:
            await self._keeper.drop_parked(session.snapshot)

    async def settled(self) -> None:
        """All records are true: what ended sandboxes left besides may go."""
        await self._keeper.drop_leftovers()

    async def _put_back(self, session: Session, reason: str) -> Session:
        """It did not wake: asleep again, of the same moment as before."""
        assert session.sandbox is not None
        assert session.snapshot is not None
        reference = await self._keeper.put_back(session.snapshot, session.sandbox.id, session.id)
        return await self._asleep(session, reference, reason, at=session.snapshot_at)

    async def _asleep(self, session: Session, reference: str | None, reason: str, at: float | None = None) -> Session:
        now = self._clock.now()
        if reference:
            asleep = replace(
                session,
                state=SessionState.HIBERNATED,
                sandbox=None,
                snapshot=reference,
                snapshot_at=now if at is None else at,
                reason=reason,
            )
        else:
            asleep = self._lost(session, None, reason or "its sandbox ended as it was going to sleep")
        written = await self._store.put(replace(asleep, expires_at=bounded(now + self._retention, session.ends_at)))
        if session.snapshot not in (None, written.snapshot):
            await self._keeper.drop_parked(session.snapshot)  # its successor is durable, and the record names that
        return written

    def _lost(self, session: Session, reference: str | None, reason: str) -> Session:
        """Without a sandbox: what is left is what could be kept of it, else what was kept before."""
        at = self._clock.now() if reference else session.snapshot_at if session.snapshot else None
        return replace(
            session,
            state=SessionState.LOST,
            sandbox=None,
            reason=reason,
            snapshot=reference or session.snapshot,
            snapshot_at=at,
        )


def bounded(end: float, asked: float | None) -> float:
    """The earlier of two ends."""
    return end if asked is None else min(end, asked)
