"""What the gateway found out about a request from its head, once, for the fast path and the slow path alike."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

from gateway.core.errors import BadRequestError, LimitError, WakegateError
from gateway.core.identity import Identity
from gateway.identity.console_sessions import PREFIX
from gateway.observability.request_record import Record
from gateway.routing.access import AccessPolicy, OriginError
from gateway.routing.connection import UpstreamConnection
from gateway.routing.cors import is_preflight
from gateway.routing.forwarded import Forwarded
from gateway.routing.headers import read_request, replace_traceparent
from gateway.routing.port_hosts import E2B_PORTS
from gateway.routing.request_fields import Request, mount_at_root
from gateway.routing.request_ids import id_in, id_line
from gateway.routing.responses import Scope
from gateway.routing.route import Route
from gateway.routing.target import NotProxied, Target, is_invocation, is_jupyter, parse, parse_port_host
from gateway.routing.url_tokens import (
    console_credential,
    cookie_token,
    follows_link,
    refuse_keys,
    take_jupyter_token,
    take_query_token,
)

_SCOPE_SCHEMES = {
    ("http", "http"): "http", ("http", "https"): "https", ("websocket", "http"): "ws", ("websocket", "https"): "wss",
}  # fmt: skip


_CONSOLE_PREFIX = PREFIX.encode()
_UNREAD = Request()  # of a request whose fields could not be read; nobody writes to it


def raw_path(scope: Scope) -> bytes:
    """The path as the client sent it. ASGI servers need not keep it; uvicorn does."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    return path


def _write_client(scope: Scope, request: Request, forwarded: Forwarded) -> None:
    """Let the scope say what is believed, so that logs, spans and links need not know of proxies."""
    scope["client"] = (forwarded.client, 0)
    if forwarded.scheme:
        scope["scheme"] = _SCOPE_SCHEMES[scope["type"], forwarded.scheme]
    if forwarded.host and request.host is not None:
        scope["headers"] = [(name, request.host if name == b"host" else value) for name, value in scope["headers"]]


def _parse_with_host(scope: Scope, request: Request, access: AccessPolicy) -> Target | NotProxied:
    """Like `parse`, where a host may name a port."""
    named = access.port_host(request.host, request.sent_host)
    if named is None:
        return parse(raw_path(scope), request.session, request.runtime)
    if named.port in E2B_PORTS:
        # No server of the sandbox: these two are E2B's own API, which the control app has. It reads the header fields
        # that clients send where names are not to be had.
        scope["headers"] = [*scope["headers"], (b"e2b-sandbox-id", named.session), (b"e2b-sandbox-port", named.port)]
        return NotProxied.CONTROL
    mount_at_root(request)
    host = request.host or b""
    return parse_port_host(named, host, raw_path(scope), request.session, request.runtime, passed_on=request.hops > 0)


class Incoming:
    """A request as it was read. The fast path makes one and, where it cannot serve the request, hands it on.

    `target`: where it goes, or the error of a request that cannot be read (`request` is then empty) or is refused.
    `reader`: the origin of another site's page that may read the answer, which then takes the slow path.
    `was_control`: a control surface's own path, which was refused: the answer is in that surface's shape.
    `was_sandbox`: likewise, for a Sandbox of the cluster.
    `route`: a live session's, with one of its slots taken.
    `identity`: who sent it; None: `AccessPolicy.authenticate` has to be asked.
    `url_token`: the session token that was in its URL, which is then its credential.
    `connection`: set once the request has been sent on it.
    """

    __slots__ = (
        "began", "began_exactly", "connection", "id_line", "identity", "reader", "request", "route", "target",
        "url_token", "was_control", "was_sandbox",
    )  # fmt: skip

    def __init__(self, scope: Scope, record: Record | None, now: float, access: AccessPolicy) -> None:
        """Read the head. `now` in loop time; `record`: the request's, where it is observed."""
        self.began = now
        self.began_exactly = perf_counter()  # uvloop's time has a grain of 1 ms
        self.route: Route | None = None
        self.connection: UpstreamConnection | None = None
        self.reader: bytes | None = None
        self.identity: Identity | None = None
        self.was_control = self.was_sandbox = False
        self.url_token: bytes | None = None
        self.request, self.id_line = _UNREAD, b""
        self.target: Target | NotProxied | WakegateError | None = None
        try:
            self._read(scope, record, access)
        except (BadRequestError, LimitError) as error:
            self._refuse(scope, access, error)
        if record is not None:
            self._note(record)

    def _read(self, scope: Scope, record: Record | None, access: AccessPolicy) -> None:
        """Raises BadRequestError, LimitError; what was found out before that stays."""
        self.request = request = read_request(scope, access)
        self.id_line = line = id_line(request.sent_id)
        request.lines.append(line)
        if record is not None and record.traceparent:
            replace_traceparent(request, record.traceparent)
        if request.forwarded is not None:
            _write_client(scope, request, request.forwarded)
        if request.host is None and scope["http_version"] == "1.1":
            raise BadRequestError("an HTTP/1.1 request has a Host header (RFC 9112 3.2); send one")
        if request.passed_on_for is not None:
            self.identity = request.passed_on_for
            scope.setdefault("state", {})["peer"] = True
        else:
            self.identity = access.identify(request.credential)
        from_browser = self.identity is None and self._read_browsers_token(scope, request, access)
        target: Target | NotProxied
        if access.routed and access.routes(request.sandbox, request.sandbox_namespace, request.host):
            target = NotProxied.SANDBOX
        elif access.ports is None:
            path: bytes = scope.get("raw_path") or scope["path"].encode()  # `raw_path`, without the call
            target = parse(path, request.session, request.runtime)
        else:
            target = _parse_with_host(scope, request, access)
        if request.hops and type(target) is Target:
            target = replace(target, passed_on=True)
        if request.prefers_async and is_invocation(target) and scope.get("method") == "POST":
            target = NotProxied.CONTROL  # api/agent_invocations.py keeps it, and has it run later
        self.target = target
        # The query first: to name a member of an enumeration takes 0.2 us in Python 3.11, and few requests have one.
        if scope["query_string"] and target is NotProxied.CONTROL:
            self._read_control_query(scope, request, access)
        try:
            self.reader = access.check(request.host, request.origin, request.fetch_site, scope["headers"])
        except OriginError:
            # Who has no credential at all may follow a link too: to a port that is public, or to be refused.
            nobody = access.is_authenticated and self.identity is None and request.credential is None
            if not (from_browser or nobody) or request.origin is not None or not follows_link(scope, target):
                raise
        if self.reader is not None and is_preflight(scope.get("method", ""), scope["headers"]):
            self.target = NotProxied.PREFLIGHT
        identity = self.identity
        if identity is not None and identity.budget is not None and request.passed_on_for is None:
            identity.spend()  # what another gateway passes on, that one has counted

    def _read_control_query(self, scope: Scope, request: Request, access: AccessPolicy) -> None:
        """Raises BadRequestError for a key in the query, where only Jupyter's clients may put one."""
        if is_jupyter(raw_path(scope)):
            token = take_jupyter_token(scope)
            if token is not None and request.credential is None:
                request.credential, self.identity = token, access.identify(token)
        if access.is_authenticated and scope["query_string"]:
            refuse_keys(scope["query_string"])

    def _refuse(self, scope: Scope, access: AccessPolicy, error: WakegateError) -> None:
        self.was_control, self.was_sandbox = self.target is NotProxied.CONTROL, self.target is NotProxied.SANDBOX
        self.id_line = self.id_line or id_line(None)
        self.target = error
        self.reader = access.reader_among(scope["headers"])

    def _note(self, record: Record) -> None:
        if isinstance(self.target, WakegateError):
            record.error = self.target
        record.request_id = id_in(self.id_line)
        record.identity = self.identity
        target = self.target
        if type(target) is Target:
            record.path = target.path
            record.saw(target.session_id, target.runtime, None)
        elif target is NotProxied.SANDBOX:
            record.path = raw_path(record.scope)

    def _read_browsers_token(self, scope: Scope, request: Request, access: AccessPolicy) -> bool:
        """Take the credential from the URL or a cookie; whether it is from there.

        Raises BadRequestError for what does not belong into a URL.
        """
        self.url_token = take_query_token(scope)
        if request.credential is not None:
            if request.credential.startswith(_CONSOLE_PREFIX):  # half of what the console has; the cookie is the other
                request.credential = console_credential(request.credential, scope["headers"])
                self.identity = access.identify(request.credential)
            return False
        request.credential = self.url_token or cookie_token(scope["headers"])
        return request.credential is not None
