"""Requests and bytes by session, for usage metering: plain numbers on an object that each route already has."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.core.model import RuntimeKey, Session, SessionId


class SessionTraffic:
    """What went through this gateway to one session since the last `Traffic.take`."""

    __slots__ = ("egress_bytes", "requests", "routes", "runtime", "session_id", "tenant")

    def __init__(self, session: Session) -> None:
        self.session_id: SessionId = session.id
        self.tenant: str = session.tenant
        self.runtime: RuntimeKey = session.runtime
        self.requests = 0
        self.egress_bytes = 0  # bodies and messages sent to clients
        self.routes = 0  # that may still count here


class Traffic:
    """Traffic of the sessions with routes."""

    def __init__(self) -> None:
        self._sessions: dict[SessionId, SessionTraffic] = {}

    def of(self, session: Session) -> SessionTraffic:
        """The session's entry, created if absent."""
        entry = self._sessions.get(session.id)
        if entry is None:
            entry = self._sessions[session.id] = SessionTraffic(session)
        return entry

    def take(self) -> Sequence[tuple[SessionTraffic, int, int]]:
        """(entry, requests, bytes) since the last call. Entries without a route that could count on are dropped."""
        taken = []
        for entry in list(self._sessions.values()):
            if entry.requests or entry.egress_bytes:
                taken.append((entry, entry.requests, entry.egress_bytes))
                entry.requests = entry.egress_bytes = 0
            if not entry.routes:
                del self._sessions[entry.session_id]
        return taken
