"""What the data path puts into the audit trail: a line for each request that runs or changes something in a sandbox.

An observer of requests, so a gateway without a trail pays nothing for it. The line is written with the last byte of the
answer. Bodies are hashed as they pass, up to a MiB of each (audit/body.py), and not kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway.audit.body import BodyDigest
from gateway.audit.event import MAX_TEXT, Actor, AuditEvent
from gateway.audit.log import AuditLog
from gateway.core.addresses import host_name
from gateway.core.clock import Clock
from gateway.core.errors import BadRequestError, LimitError, WakegateError
from gateway.core.identity import NOBODY, Identity
from gateway.observability.request_record import Record
from gateway.routing.access import AccessPolicy
from gateway.routing.request_fields import NAMESPACE_HEADER, SANDBOX_HEADER
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
    (b"/jupyter/", "code.run"),  # a kernel's channels
    (b"/api/kernels", "code.run"),
    (b"/open-terminal/", "terminal.open"),  # a terminal's WebSocket
)
_FILES = frozenset(("file.write",))


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
        self._text_bytes = 2 * MAX_TEXT if audit.text else 0  # a credential at the edge is hidden before it is cut

    def began(self, record: Record) -> None:
        """Raises AuditUnavailableError for a request that has to be in the trail, and cannot be."""
        scope = record.scope
        if scope.get("method", "GET") not in _READS:
            record.body = BodyDigest(self._text_bytes)
        if not self._audit.unready:  # nearly always, and then the target is not parsed a second time
            return
        target = _target_of(scope)
        acts = target is not None and action_of(scope.get("method", "WEBSOCKET"), target.path)
        if acts or self._is_port_host(scope) or self._is_routed(scope):
            self._audit.check()

    def _is_port_host(self, scope: Any) -> bool:
        ports = self._access.ports
        host = _first(scope["headers"], (b"host",))
        return ports is not None and host is not None and ports.cover(host_name(host))

    def _is_routed(self, scope: Any) -> bool:
        headers = scope["headers"]
        named = (_first(headers, (name,)) for name in (SANDBOX_HEADER, NAMESPACE_HEADER, b"host"))
        return self._access.routes(*named)

    def finished(self, record: Record) -> None:
        """Record it, if it did something, or was refused for who asked or for a limit."""
        scope = record.scope
        path = record.path
        if isinstance(record.error, LimitError):
            self._record_limit(record, record.error)
            return
        if not path:
            target = _target_of(scope)  # refused before it was known to be for a sandbox
            if target is None:
                return
            path = target.path
            record.saw(target.session_id, target.runtime, record.start)
        method = scope.get("method", "WEBSOCKET")
        # With a start the sandbox has answered, so the refusal is the application's.
        denied = record.status in (401, 403) and record.start is None
        action = "auth.denied" if denied else action_of(method, path)
        if not action:
            return
        detail: dict[str, str | int | float | bool] = {
            "method": method,
            "path": path.decode("latin-1"),
            "seconds": round(record.seconds, 3),
        }
        if record.sandbox:
            detail["sandbox"] = record.sandbox
        if record.cut:
            detail["cut"] = True
        if isinstance(record.body, BodyDigest):
            detail |= self._content_of(action, record.body, scope)
        self._record(record, action, detail)

    def _content_of(self, action: str, body: BodyDigest, scope: Any) -> dict[str, str | int]:
        """What is recorded of the body, and which files were named besides the path."""
        found = body.detail()
        if action in _FILES:
            if names := body.names():
                found["names"] = names
            if scope["query_string"]:
                found["query"] = scope["query_string"][:MAX_TEXT].decode("latin-1")
        elif self._text_bytes and found:
            found["text"] = body.text
        return found

    def _record_limit(self, record: Record, error: LimitError) -> None:
        actor = _actor_of(record.scope, record.identity)
        left_out = self._audit.refusals.left_out((actor.tenant, actor.subject, error.code, error.limit))
        if left_out is not None:
            detail: dict[str, str | int | float | bool] = {"limit": error.limit, "left_out": left_out}
            if record.path:
                detail["path"] = record.path.decode("latin-1")
            self._record(record, "quota.denied", detail)

    def _record(self, record: Record, action: str, detail: dict[str, str | int | float | bool]) -> None:
        error: WakegateError | None = record.error
        self._audit.record(
            AuditEvent(
                at=self._clock.now(),
                action=action,
                actor=_actor_of(record.scope, record.identity),
                status=record.status or 499,
                code="" if error is None else error.code,
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
