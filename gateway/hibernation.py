"""How a session goes to sleep, wakes, and is saved from a sandbox that ended: the steps of the record, in their order.

Lifecycle calls these with the session's lock held. After each step the record is true, so whoever finds it after a
crash knows what to do (`salvage`):

    active -> hibernating   the sandbox may still run; its workspace is at the sandbox or parked
           -> hibernated    parked: costs nothing
           -> waking        the named sandbox is getting the workspace, which is in one place, the other, or both
           -> active        the sandbox has it
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

    async def cancel(self, session: Session) -> Session:
        """Somebody needs it: it stays awake. Raises StaleWriteError."""
        return await self._store.put(replace(session, state=SessionState.ACTIVE))

    async def park(self, session: Session) -> Session:
        """End its sandbox and keep its workspace; the record then says so. `lost` if nothing is left to keep."""
        assert session.sandbox is not None
        return await self._asleep(session, await self._keeper.park(session.sandbox.id, session.id), "")

    async def unpark(self, session: Session, sandbox: Sandbox, runtime: Runtime) -> Session:
        """Give a sleeping session the claimed sandbox and its workspace. Raises SandboxStartError, StaleWriteError.

        If the workspace cannot be put there the session is asleep again, and whole.
        """
        assert session.snapshot is not None
        reference, start = session.snapshot, StartKind.WAKE if sandbox.start is StartKind.WARM else StartKind.WAKE_COLD
        session = await self._store.put(replace(session, state=SessionState.WAKING, sandbox=sandbox))
        try:
            await self._keeper.unpark(reference, sandbox.id)
        except Exception:
            await self.park(session)
            raise
        now = self._clock.now()
        awake = replace(
            session,
            state=SessionState.ACTIVE,
            start=start,
            snapshot=None,
            snapshot_at=None,
            reason="",
            last_active_at=now,
            expires_at=bounded(now + runtime.max_session_duration, session.ends_at),
        )
        return await self._store.put(awake)

    async def salvage(self, session: Session, reason: str) -> Session:
        """Its sandbox ended on its own: keep the workspace if it is still there, and record what happened."""
        assert session.sandbox is not None
        reference = await self._keeper.park(session.sandbox.id, session.id)
        if session.state in (SessionState.HIBERNATING, SessionState.WAKING):
            # It was on its way between two states, with no request in it: asleep is all there is to say.
            return await self._asleep(session, reference or session.snapshot, reason)
        lost = replace(
            session,
            state=SessionState.LOST,
            sandbox=None,
            reason=reason,
            snapshot=reference,
            snapshot_at=self._clock.now() if reference else None,
        )
        return await self._store.put(lost)

    async def forget(self, session: Session) -> None:
        """Delete what is kept of a session whose record says that it ended."""
        if session.snapshot is not None:
            await self._keeper.drop_parked(session.snapshot)

    async def settled(self) -> None:
        """All records are true: what ended sandboxes left besides may go."""
        await self._keeper.drop_leftovers()

    async def _asleep(self, session: Session, reference: str | None, reason: str) -> Session:
        now = self._clock.now()
        state = SessionState.HIBERNATED if reference else SessionState.LOST
        asleep = replace(
            session,
            state=state,
            sandbox=None,
            snapshot=reference,
            snapshot_at=now if reference else None,
            reason=reason if reference else reason or "its sandbox ended as it was going to sleep",
            expires_at=bounded(now + self._retention, session.ends_at),
        )
        return await self._store.put(asleep)


def bounded(end: float, asked: float | None) -> float:
    """The earlier of two ends."""
    return end if asked is None else min(end, asked)
