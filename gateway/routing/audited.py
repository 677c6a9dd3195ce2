"""What the data path puts into the audit trail: a line for each request that runs or changes something in a sandbox.

An observer of requests, so a gateway without a trail pays nothing for it. The line is written with the last byte of the
answer. Bodies are not looked at: they pass through, and may be of any size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway.audit.event import Actor, AuditEvent
from gateway.audit.log import AuditLog
from gateway.core.clock import Clock
from gateway.core.errors import BadRequestError
from gateway.core.identity import NOBODY, Identity
from gateway.observability.request_record import Record
from gateway.routing.access import AccessPolicy, host_name
from gateway.routing.target import RUNTIME_HEADER, SESSION_HEADERS, Target, parse
from picod.wire import PORTS_PATH, TERMINAL_PATH

_READS = frozenset(("GET", "HEAD", "OPTIONS"))
_PORTS, _TERMINAL = PORTS_PATH.encode(), TERMINAL_PATH.encode()
# Paths of picod, the longest first, to what a request that is no read does there.
_ACTIONS: tuple[tuple[bytes, str], ...] = (
    (b"/api/run_code", "code.run"),
    (b"/api/contexts", "code.context"),
    (b"/api/execute", "command.run"),
    (b"/api/processes", "command.run"),
    (b"/api/runs", "command.run"),
    (b"/api/files", "file.write"),
    (b"/api/fs", "file.write"),
    (b"/api/archive", "file.write"),
)


def action_of(method: str, path: bytes) -> str:
    """What a request for a sandbox does there; empty: it only reads. `path`: the sandbox's."""
    if path.startswith(_PORTS):
        return "port.open"
    if path == _TERMINAL:
        return "terminal.open"
    if method in _READS:
        return ""
    return next((action for prefix, action in _ACTIONS if path.startswith(prefix)), "sandbox.request")


class AuditObserver:
    """An Observer (observability/request_record.py)."""

    def __init__(self, audit: AuditLog, clock: Clock, access: AccessPolicy) -> None:
        self._access = access  # it knows which hosts are ports of sandboxes
        self._audit = audit
        self._clock = clock

    def began(self, record: Record) -> None:
        """Raises AuditUnavailableError for a request that has to be in the trail, and cannot be."""
        if not self._audit.unready:
            return
        scope = record.scope
        target = _target_of(scope)
        acts = target is not None and action_of(scope.get("method", "WEBSOCKET"), target.path)
        if acts or self._is_port_host(scope):
            self._audit.check()

    def _is_port_host(self, scope: Any) -> bool:
        ports = self._access.ports
        host = _first(scope["headers"], (b"host",))
        return ports is not None and host is not None and ports.cover(host_name(host))

    def finished(self, record: Record) -> None:
        """Record it, if it did something, or was refused for who asked."""
        scope = record.scope
        path = record.path
        if not path:
            target = _target_of(scope)  # refused before it was known to be for a sandbox
            if target is None:
                return
            path = target.path
            record.saw(target.session_id, target.runtime, record.start)
        method = scope.get("method", "WEBSOCKET")
        denied = record.status in (401, 403) and record.start is None
        action = "auth.denied" if denied else action_of(method, path)
        if not action:
            return
        detail: dict[str, str | int | float | bool] = {
            "method": method,
            "path": path.decode("latin-1"),
            "seconds": round(record.seconds, 3),
        }
        if record.cut:
            detail["cut"] = True
        self._audit.record(
            AuditEvent(
                at=self._clock.now(),
                action=action,
                actor=_actor_of(scope, record.identity),
                status=record.status or 499,
                session=record.session or "",
                runtime=str(record.runtime or ""),
                request_id=record.request_id.decode("latin-1"),
                detail=detail,
            )
        )


def _target_of(scope: Any) -> Target | None:
    """Where a request goes, if that is a sandbox."""
    headers = scope["headers"]
    try:
        found = parse(
            scope.get("raw_path") or scope["path"].encode(),
            _first(headers, SESSION_HEADERS),
            _first(headers, (RUNTIME_HEADER,)),
        )
    except BadRequestError:
        return None  # it was refused, whoever asked
    return found if isinstance(found, Target) else None


def _first(headers: Iterable[tuple[bytes, bytes]], names: tuple[bytes, ...]) -> bytes | None:
    return next((value for name, value in headers if name in names), None)


def _actor_of(scope: Any, known: Identity | None) -> Actor:
    identity: Identity = scope.get("state", {}).get("identity") or known or NOBODY
    client = scope["client"]
    return Actor(
        subject=identity.subject,
        tenant=identity.tenant,
        role=str(identity.role),
        key_id=identity.key_id,
        address=client[0] if client else "",
    )
