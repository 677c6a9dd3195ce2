"""What a verb may act on: a session that there is, and that no other gateway has.

A record's `owner` is the gateway that alone reaches its sandbox or parked workspace (gateway/sessions/transitions.py);
where every gateway reaches every sandbox it names none.
"""

from __future__ import annotations

from gateway.core.clock import Clock
from gateway.core.errors import OwnerAwayError, SessionNotFoundError
from gateway.core.model import SandboxId, Session, SessionId, SessionState, is_snapshot
from gateway.sessions.membership import ElsewhereError, Membership, peer_sandbox
from gateway.sessions.records import Records
from gateway.sessions.transitions import Transitions


class Ownership:
    """The one place that says whether this gateway may act on a session.

    `me`: this gateway's id in records; empty where all gateways reach the same sandboxes, or where there is only one.
    `shared_provider`: whether other gateways reach the same sandboxes.
    """

    def __init__(self, records: Records, membership: Membership, transitions: Transitions, clock: Clock) -> None:
        self.me = membership.me
        self.shared_provider = records.shared and not membership.me
        self._records = records
        self._membership = membership
        self._transitions = transitions
        self._clock = clock

    def is_mine(self, session: Session) -> bool:
        """Whether this gateway may act on it without asking anybody."""
        return session.owner in ("", self.me)

    def is_named(self, session: Session) -> bool:
        """Whether the record names this gateway as the owner. Where records name none, every gateway is."""
        return session.owner == self.me

    async def require_no_live_owner(self, session: Session) -> None:
        """Raise ElsewhereError while another gateway, which is alive, has the session."""
        if not self.is_mine(session):
            peer = await self._membership.find(session.owner)
            if peer.alive:
                raise ElsewhereError(peer)

    async def require(self, session_id: SessionId) -> Session:
        """The record of a session that has not ended. Raises SessionNotFoundError, which says what came of it."""
        session = await self._records.get(session_id)
        if session is None or session.state is SessionState.TERMINATED:
            ended = f": it ended ({session.reason})" if session is not None and session.reason else ""
            raise SessionNotFoundError(f'sessions.agentcube.volcano.sh "{session_id}" not found{ended}')
        if session.expires_at <= self._clock.now():
            raise SessionNotFoundError(
                f'sessions.agentcube.volcano.sh "{session_id}" not found: its maximum duration is over'
            )
        return session

    async def require_owned(self, session: Session, gone: SandboxId | None) -> Session:
        """The session, once this gateway may act on it. Its holder waits for an owner that may be coming back.

        Raises ElsewhereError while the owner is alive, OwnerAwayError when it is gone with the only workspace.
        """
        first_seen: float | None = None
        while not self.is_mine(session):
            peer = await self._membership.find(session.owner)
            # Half a beat: the same announcement read twice differs by the time of the readings.
            spoke_again = first_seen is not None and peer.seen > first_seen + self._membership.beat / 2
            if peer.alive and (gone != peer_sandbox(peer) or spoke_again):
                raise ElsewhereError(peer)
            if not peer.alive:
                if is_snapshot(session.snapshot) or (session.sandbox is not None and self._transitions.leaves_running):
                    return session
                raise OwnerAwayError(
                    f"the workspace of session {session.id} is kept by gateway {peer.id}, which does not run; start it "
                    "again, or keep snapshots where all gateways reach them (--snapshots)"
                )
            first_seen = peer.seen if first_seen is None else first_seen
            await self._membership.wait_beat()
            session = await self.require(session.id)
        return session
