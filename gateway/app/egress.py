"""Joins egress to sessions: which policy a sandbox has from when it is bound, and where what it reached is counted."""

from __future__ import annotations

from collections.abc import Callable

from gateway.audit.event import Actor, AuditEvent
from gateway.audit.log import AuditLog
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import SandboxId, Session, StartKind
from gateway.egress.gate import EgressGate
from gateway.egress.grants import of_session
from gateway.egress.log import Access, Outcome


class SessionEgress:
    """`bound` follows the bindings, before any code of the session runs."""

    def __init__(self, gate: EgressGate, catalog: RuntimeCatalog) -> None:
        self._gate, self._catalog = gate, catalog

    def bound(self, session: Session, sandbox: SandboxId, _: StartKind | None) -> None:
        """A session has a sandbox."""
        runtime = self._catalog.get(session.runtime)
        if runtime is not None and runtime.egress:
            self._gate.bind(sandbox, of_session(runtime, session))


def audit_line(audit: AuditLog) -> Callable[[Access], None]:
    """What puts lines of the access log into the audit trail: each connection once, when it has ended."""

    def record(line: Access) -> None:
        if line.outcome is not Outcome.OPEN:
            actor = Actor(subject="sandbox", tenant=line.tenant, role="sandbox")
            audit.record(AuditEvent(line.at, f"egress.{line.outcome}", actor, 0, session=line.session, detail={
                "host": line.host, "port": line.port, "address": line.address, "protocol": line.protocol,
                "rule": line.rule, "reason": line.reason, "up": line.up, "down": line.down,
                "seconds": line.seconds, "sandbox": line.sandbox,
            }))  # fmt: skip

    return record
