"""Joins egress to sessions: which policy a sandbox has from when it is bound, and where what it reached is counted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from gateway.audit.event import Actor, AuditEvent
from gateway.audit.log import AuditLog
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import Runtime, SandboxId, Session, StartKind
from gateway.egress.gate import EgressGate
from gateway.egress.grants import of_session
from gateway.egress.log import Access, Outcome
from gateway.egress.notation import Grant
from gateway.identity.tenants import TenantDirectory
from gateway.observability.counters import Counters
from gateway.sessions.bindings import Bindings
from gateway.usage.recorder import Moved

_MAX_VISITORS = 4096


class SessionEgress:
    """`bound` and `removed` follow the bindings: a policy is in force before any code of its session runs."""

    def __init__(self, gate: EgressGate, catalog: RuntimeCatalog, tenants: TenantDirectory, counters: Counters) -> None:
        self._gate, self._catalog, self._tenants, self._counters = gate, catalog, tenants, counters
        self._revision = tenants.revision
        self._sessions: dict[SandboxId, Session] = {}
        self._visitors: OrderedDict[str, Session] = OrderedDict()  # by id; see `visits`
        self._moved: dict[str, Moved] = {}  # by session, since the last take_moved
        gate.on_bytes(self._count)
        gate.on_line(self._count_line)
        gate.on_restart(self._count_restart)
        gate.on_cache(self._count_cache)

    def follow(self, bindings: Bindings) -> None:
        """Learn from now on which sandbox is whose."""
        bindings.on_bound(self.bound)
        bindings.on_removed(self.removed)

    def bound(self, session: Session, sandbox: SandboxId, _: StartKind | None) -> None:
        """A sandbox was bound to a session: grant it what the session may reach."""
        self._sessions[sandbox] = session
        self._grant(sandbox, session)

    def visits(self, session: Session) -> None:
        """A session that another gateway has bound reaches out through this one: its bytes are counted here."""
        self._visitors[session.id] = session
        self._visitors.move_to_end(session.id)
        while len(self._visitors) > _MAX_VISITORS:
            self._visitors.popitem(last=False)

    def grant(self, runtime: Runtime, session: Session) -> Grant:
        """What a session may reach now."""
        return of_session(runtime, session, self._tenants.limits(session.tenant).egress)

    def removed(self, sandbox: SandboxId) -> None:
        """It no longer has it. The engine ends the sandbox, and with it what its connections could still do."""
        session = self._sessions.pop(sandbox, None)
        if session is not None:
            self._moved.setdefault(session.id, Moved(session.id, session.tenant, session.runtime))  # last counts follow

    def refresh(self) -> None:
        """Where limits of tenants have changed, so may have what their sessions reach. Open connections stay.

        Revisions are compared: the directory takes changes of this gateway's API and, from the store, of others.
        """
        if self._revision == self._tenants.revision:
            return
        self._revision = self._tenants.revision
        for sandbox, session in self._sessions.items():
            self._grant(sandbox, session)

    def take_moved(self) -> Iterator[Moved]:
        """What each session has moved since the last call."""
        moved, self._moved = self._moved, {}
        return (each for each in moved.values() if each.sent or each.received)

    def _grant(self, sandbox: SandboxId, session: Session) -> None:
        runtime = self._catalog.get(session.runtime)
        if runtime is not None and runtime.egress:
            self._gate.bind(sandbox, self.grant(runtime, session))

    def _count_line(self, line: Access) -> None:
        if line.outcome is not Outcome.OPEN:
            self._counters.egress_connections[line.outcome.value] += 1 + line.left_out

    def _count_cache(self, hits: int, misses: int, saved: int, held: int) -> None:
        counters = self._counters
        counters.package_cache["hit"] += hits
        counters.package_cache["miss"] += misses
        counters.package_cache_saved += saved
        counters.package_cache_held = held

    def _count_restart(self) -> None:
        self._counters.egress_restarts += 1

    def _count(self, session_id: str, sent: int, received: int) -> None:
        self._counters.egress_bytes["sent"] += sent
        self._counters.egress_bytes["received"] += received
        found = self._moved.get(session_id)
        if found is None:
            bound = (each for each in self._sessions.values() if each.id == session_id)
            session = next(bound, None) or self._visitors.get(session_id)
            if session is None:
                return  # a warm sandbox, which belongs to no session
            found = self._moved[session_id] = Moved(session.id, session.tenant, session.runtime)
        found.sent += sent
        found.received += received


def audit_line(audit: AuditLog) -> Callable[[Access], None]:
    """What puts lines of the access log into the audit trail: each connection once, when it has ended."""

    def record(line: Access) -> None:
        if line.outcome is not Outcome.OPEN:
            actor = Actor(subject="sandbox", tenant=line.tenant, role="sandbox")
            audit.record(AuditEvent(line.at, f"egress.{line.outcome}", actor, 0, session=line.session, detail={
                "host": line.host, "port": line.port, "address": line.address, "protocol": line.protocol,
                "rule": line.rule, "reason": line.reason, "up": line.up, "down": line.down,
                "seconds": line.seconds, "sandbox": line.sandbox, "requests": line.requests, "secrets": line.secrets,
                "cached": line.cached,
            }))  # fmt: skip

    return record
