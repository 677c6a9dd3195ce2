"""Decides whether this gateway may act on a session: it exists, and no other gateway owns it.

A record's `owner` is the only gateway that reaches the session's sandbox or parked workspace
(gateway/sessions/transitions.py). It is empty where every gateway reaches every sandbox.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.core.errors import DrainingError, OwnerAwayError, SessionNotFoundError
from gateway.core.model import SandboxId, Session, SessionId, SessionState, is_snapshot
from gateway.sessions.admission import Admission
from gateway.sessions.idleness import IdleTracker
from gateway.sessions.membership import ElsewhereError, Membership, Peer, peer_sandbox
from gateway.sessions.records import Records
from gateway.sessions.transitions import Transitions


class Ownership:
    """The only code that decides whether this gateway may act on a session.

    `me`: this gateway's id in records; empty where all gateways reach the same sandboxes, or where there is only one.
    `shared_provider`: whether other gateways reach the same sandboxes.
    """

    def __init__(
        self,
        *,
        records: Records,
        membership: Membership,
        admission: Admission,
        idleness: IdleTracker,
        transitions: Transitions,
    ) -> None:
        self.me = membership.me
        self.shared_provider = records.shared and not membership.me
        self._records = records
        self._membership = membership
        self._admission = admission
        self._transitions = transitions
        self._idleness = idleness
        self._closed = False

    def is_mine(self, session: Session) -> bool:
        """Whether no other gateway owns the session, so that this one may act on it without asking."""
        return session.owner in ("", self.me)

    def owns(self, session: Session) -> bool:
        """Whether the record names this gateway as the owner.

        A session without an owner is owned by the gateways that have no id themselves: those of a shared engine.
        """
        return session.owner == self.me

    async def require(self, session_id: SessionId) -> Session:
        """The record of a session that has not ended. Raises SessionNotFoundError, with the reason if it ended.

        StoreUnavailableError while the store may have lost its record.
        """
        session = await self._records.get(session_id)
        if session is None:
            await self._records.require_complete()
        if session is None or session.state is SessionState.TERMINATED:
            ended = f": it ended ({session.reason})" if session is not None and session.reason else ""
            raise SessionNotFoundError(f'sessions.agentcube.volcano.sh "{session_id}" not found{ended}')
        # Although its record is still there: the sweep that ends it may be 5 s away.
        if self._idleness.is_expired(session):
            raise SessionNotFoundError(
                f'sessions.agentcube.volcano.sh "{session_id}" not found: it reached its maximum duration'
            )
        return session

    async def require_no_live_owner(self, session: Session) -> None:
        """Raise ElsewhereError while another gateway, which is alive, has the session."""
        if not self.is_mine(session):
            peer = await self._membership.find(session.owner)
            if peer.alive:
                raise ElsewhereError(peer)
            if peer.doubted:
                raise OwnerAwayError(
                    f"gateway {peer.id} has session {session.id} and is silent; this gateway did not run for a "
                    "while either, and waits for the other to come back",
                    retry_after=1,
                )

    def close(self) -> None:
        """Stop waiting for other gateways: two that shut down at once must not wait for each other."""
        self._closed = True

    @asynccontextmanager
    async def holding(self, session_id: SessionId, unreachable: SandboxId | None = None) -> AsyncIterator[Session]:
        """Hold a session that this gateway may act on, and yield its record.

        Raises SessionNotFoundError, ElsewhereError while its owner is alive, OwnerAwayError when the owner is dead and
        has the only copy of the workspace.
        """
        # Repeated because `settle` runs without the lease: between the two another gateway may have taken the session.
        while True:
            await self.settle(session_id, unreachable)
            async with self._records.holding(session_id):
                session = await self.require(session_id)
                if await self._may_act(session):
                    yield session
                    return

    async def settle(self, session_id: SessionId, unreachable: SandboxId | None = None) -> None:
        """Wait while the session's owner shuts down, or, when it refused a connection (`unreachable`), restarts; and
        while it may have been stopped together with this gateway.

        Call it without holding the session. The owner needs the session's lease to hibernate it, so waiting under that
        lease would block both gateways until the owner counts as dead (`takeover_after`, 8 s by default). Requests
        that are held for the session get more time meanwhile. Raises ElsewhereError when the owner is alive and stays.
        """
        if not self.me:
            return
        first: Peer | None = None
        while True:
            session = await self._records.get(session_id)
            if session is None or session.state is SessionState.TERMINATED or self.is_mine(session):
                return
            peer = await self._membership.find(session.owner)
            if not peer.alive and not peer.doubted:
                self._admission.extend_holds(session_id)  # it may be one of many that all start here now
                return
            if peer.alive:
                if first is None or first.id != peer.id:
                    first = peer
                # Stores compute an expiry from a remaining time, so one announcement read twice differs by a little. A
                # later announcement differs by a heartbeat interval; half of it tells the two apart.
                announced_again = peer.seen > first.seen + self._membership.heartbeat_interval / 2
                if not peer.leaving and (unreachable != peer_sandbox(peer) or announced_again):
                    raise ElsewhereError(peer)
            if self._closed:
                raise DrainingError("this gateway is shutting down; connect again", retry_after=1)
            self._admission.extend_holds(session_id)
            await self._membership.wait_poll_interval()

    async def _may_act(self, session: Session) -> bool:
        """Whether no other gateway owns it, or its owner is dead. Called while the session is held.

        False: another gateway has taken it since `settle`.
        """
        if self.is_mine(session):
            return True
        peer = await self._membership.find(session.owner)
        if peer.alive or peer.doubted:
            return False
        # A keeper that copies may have a snapshot of it in the shared store; a parked workspace only its owner reaches.
        if is_snapshot(session.snapshot) or (session.sandbox is not None and self._transitions.leaves_running):
            return True
        reason = f" ({session.reason})" if session.reason else ""
        raise OwnerAwayError(
            f"the workspace of session {session.id} is kept by gateway {peer.id}, which is not running{reason}; start "
            "it again, or keep snapshots where all gateways reach them (--snapshots)"
        )
