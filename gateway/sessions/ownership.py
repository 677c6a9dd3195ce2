"""What a verb may act on: a session that there is, and that no other gateway has.

A record's `owner` is the gateway that alone reaches its sandbox or parked workspace (gateway/sessions/transitions.py);
where every gateway reaches every sandbox it names nobody.
"""

from __future__ import annotations

from gateway.core.clock import Clock
from gateway.core.errors import OwnerAwayError, SessionNotFoundError
from gateway.core.model import SandboxId, Session, SessionId, SessionState, is_snapshot
from gateway.sessions.membership import ElsewhereError, Peers, peer_sandbox
from gateway.sessions.records import Records
from gateway.sessions.transitions import Hibernation


class Reach:
    """Records looked at for a verb. `shared_provider`: whether other gateways reach the same sandboxes."""

    def __init__(self, records: Records, peers: Peers, hibernation: Hibernation, clock: Clock) -> None:
        self.shared_provider = records.shared and not peers.me
        self._records = records
        self._peers = peers
        self._hibernation = hibernation
        self._clock = clock

    def is_mine(self, session: Session) -> bool:
        """Whether this gateway may act on it without asking anybody."""
        return self._peers.is_mine(session.owner)

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
        while not self._peers.is_mine(session.owner):
            peer = await self._peers.find(session.owner)
            # Half a beat: the same announcement read twice differs by the time of the readings.
            spoke_again = first_seen is not None and peer.seen > first_seen + self._peers.beat / 2
            if peer.alive and (gone != peer_sandbox(peer) or spoke_again):
                raise ElsewhereError(peer)
            if not peer.alive:
                if is_snapshot(session.snapshot) or (session.sandbox is not None and self._hibernation.leaves_running):
                    return session
                raise OwnerAwayError(
                    f"the workspace of session {session.id} is kept by gateway {peer.id}, which does not run; start it "
                    "again, or keep snapshots where all gateways reach them (--snapshots)"
                )
            first_seen = peer.seen if first_seen is None else first_seen
            await self._peers.wait_beat()
            session = await self.require(session.id)
        return session
