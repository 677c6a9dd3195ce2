"""Puts into the audit trail what no request asked for: starts and ends, and what becomes of sessions."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.audit.event import Actor, AuditEvent
from gateway.audit.log import AuditLog
from gateway.core.clock import Clock
from gateway.core.identity import SYSTEM, current
from gateway.core.model import DEFAULT_TENANT, Session


class EventRecorder:
    """Records events. Without a trail it records none."""

    def __init__(self, audit: AuditLog | None, clock: Clock) -> None:
        self._audit = audit
        self._clock = clock

    def of_gateway(self, action: str, session: str = "", **detail: str) -> None:
        """What the gateway did or saw by itself."""
        if self._audit is not None:
            actor = Actor(subject=SYSTEM.subject, role=SYSTEM.role)
            self._audit.record(AuditEvent(self._clock.now(), action, actor, 0, session=session, detail=detail))

    def of_session(self, event: str, session: Session, details: Mapping[str, str]) -> None:
        """What became of a session, with whoever it was done for."""
        if self._audit is None:
            return
        caller = current()
        actor = Actor(caller.subject, caller.tenant, caller.role, caller.key_id)
        if caller is SYSTEM:  # it has no tenant: the session's own is in the detail
            actor = Actor(SYSTEM.subject, role=SYSTEM.role)
        self._audit.record(
            AuditEvent(
                self._clock.now(), event, actor, 0, session=session.id, runtime=str(session.runtime),
                detail={"tenant": session.tenant or DEFAULT_TENANT, **details},
            )
        )  # fmt: skip
