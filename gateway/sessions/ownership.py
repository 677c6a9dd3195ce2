"""What a verb may act on: a session that there is, and that no other gateway has.

A record's `owner` is the gateway that alone reaches its sandbox or parked workspace (gateway/sessions/transitions.py);
where every gateway reaches every sandbox it names none.
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
    """The one place that says whether this gateway may act on a session.

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
        """Whether this gateway may act on it without asking anybody."""
        return session.owner in ("", self.me)

    def is_named(self, session: Session) -> bool:
        """Whether the record names this gateway as the owner. Where records name none, every gateway is."""
        return session.owner == self.me

    async def require(self, session_id: SessionId) -> Session:
        """The record of a session that has not ended. Raises SessionNotFoundError, which says what came of it."""
        session = await self._records.get(session_id)
        if session is None or session.state is SessionState.TERMINATED:
            ended = f": it ended ({session.reason})" if session is not None and session.reason else ""
            raise SessionNotFoundError(f'sessions.agentcube.volcano.sh "{session_id}" not found{ended}')
        if self._idleness.is_over(session):
            raise SessionNotFoundError(
                f'sessions.agentcube.volcano.sh "{session_id}" not found: its maximum duration is over'
            )
        return session

    async def require_no_live_owner(self, session: Session) -> None:
        """Raise ElsewhereError while another gateway, which is alive, has the session."""
        if not self.is_mine(session):
            peer = await self._membership.find(session.owner)
            if peer.alive:
                raise ElsewhereError(peer)

    def close(self) -> None:
        """Wait for no other gateway any more: two that end at once must not wait for each other."""
        self._closed = True

    @asynccontextmanager
    async def holding(self, session_id: SessionId, gone: SandboxId | None = None) -> AsyncIterator[Session]:
        """Hold a session that this gateway may act on, and yield its record.

        Raises SessionNotFoundError, ElsewhereError while its owner is alive, OwnerAwayError when that is dead and has
        the only workspace.
        """
        while True:
            await self.settle(session_id, gone)
            async with self._records.holding(session_id):
                session = await self.require(session_id)
                if await self._may_act(session):
                    yield session
                    return

    async def settle(self, session_id: SessionId, gone: SandboxId | None = None) -> None:
        """Wait while the session's owner ends in order, or (it is `gone`: refuses connections) may be restarting.

        To be called without holding the session: the owner that is waited for has to hold it to hibernate it, so to
        wait under its lease blocked both until the owner was taken for dead. Requests held for the session meanwhile
        are held for longer. Raises ElsewhereError when the owner is alive and stays.
        """
        if not self.me:
            return
        first: Peer | None = None
        while True:
            session = await self._records.get(session_id)
            if session is None or session.state is SessionState.TERMINATED or self.is_mine(session):
                return
            peer = await self._membership.find(session.owner)
            if not peer.alive:
                self._admission.prolong(session_id)  # perhaps one of many that it had, which are all started here now
                return
            if first is None or first.id != peer.id:
                first = peer
            # Half a beat: the same announcement read twice differs by the time of the readings.
            announced_again = peer.seen > first.seen + self._membership.beat / 2
            if not peer.leaving and (gone != peer_sandbox(peer) or announced_again):
                raise ElsewhereError(peer)
            if self._closed:
                raise DrainingError("this gateway is shutting down; connect again", retry_after=1)
            self._admission.prolong(session_id)
            await self._membership.wait_beat()

    async def _may_act(self, session: Session) -> bool:
        """Whether it is this gateway's, or its owner is dead. False: another took it since `settle`. Session held."""
        if self.is_mine(session):
            return True
        peer = await self._membership.find(session.owner)
        if peer.alive:
            return False
        if is_snapshot(session.snapshot) or (session.sandbox is not None and self._transitions.leaves_running):
            return True
        raise OwnerAwayError(
            f"the workspace of session {session.id} is kept by gateway {peer.id}, which does not run; start it "
            "again, or keep snapshots where all gateways reach them (--snapshots)"
        )
