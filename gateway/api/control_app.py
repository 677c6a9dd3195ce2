"""The ASGI app of the control surfaces: what is done for every request before its route, and for every answer.

Plain ASGI and not Starlette's BaseHTTPMiddleware, which passes each piece of an answer through a task and a queue of
its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.routing import BaseRoute

from gateway.api import console
from gateway.api.agent_sandbox.router import AgentSandboxRouter
from gateway.api.e2b.router import E2BRouter
from gateway.api.errors import error_response
from gateway.api.jupyter.channels import Channels
from gateway.api.loss_report import current_loss_report, new_loss_report
from gateway.api.open_terminal.socket import TerminalSocket
from gateway.api.relay import is_relayed
from gateway.api.router import IndexedRouter
from gateway.api.unknown import shape_of, unknown_answer
from gateway.core.identity import Identity
from gateway.core.model import SessionId
from gateway.identity.peers import PeerSigner
from gateway.observability.counters import Counters, status_label

# A client may send any word as its method. Others than these share one label, so that it cannot make a time series
# each.
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
Challenge = Callable[[Any], bytes | None]


class ControlApp:
    """The ASGI app, which also counts its answers by route."""

    def __init__(
        self,
        routes: Sequence[BaseRoute],
        counters: Counters,
        *,
        body_idle: float,
        peers: PeerSigner,
        acknowledge: Callable[[SessionId, str], None] = lambda session_id, restored: None,
        e2b: E2BRouter | None = None,
        agent_sandbox: AgentSandboxRouter | None = None,
        channels: Channels | None = None,
        terminals: TerminalSocket | None = None,
        challenge: Challenge = lambda scope: None,
    ) -> None:
        """`body_idle`: idle timeout in seconds while a request's body is read.

        `peers` signs what is passed on to the gateway that has a session.
        `acknowledge(session, restored)` is called once an answer with x-wakegate-restored has been delivered.
        `challenge` gives the WWW-Authenticate of a 401, where it is not the usual one.
        """
        app = Starlette(exception_handlers=dict.fromkeys((404, 405), unknown_answer(routes)))
        app.router = IndexedRouter(routes)
        app.state.body_idle = body_idle
        app.state.peers = peers
        self._app = app
        self._counters = counters
        self._acknowledge = acknowledge
        self._e2b = e2b
        self._agent_sandbox = agent_sandbox
        self._channels = channels
        self._terminals = terminals
        self._challenge = challenge

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request, or one WebSocket."""
        path = _route_path(scope)
        if path != scope["path"]:
            scope = {**scope, "path": path}
        if scope["type"] == "websocket":
            if self._terminals is not None and self._terminals.takes(scope):
                await self._terminals(scope, receive, send)
            elif self._channels is not None:
                await self._channels(scope, receive, send)
            return
        new_loss_report()  # for what is answered by no handler of `answering_errors`, which begins its own
        answer = _Answer(scope, send, self._acknowledge, self._challenge)
        try:
            await self._serve(scope, receive, answer.send)
        finally:
            if answer.status:
                # The route's pattern and not the path: session ids in a label would make a time series per session.
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._counters.control[method, route, status_label(answer.status)] += 1

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        refusal = scope.get("state", {}).get("refusal")
        if refusal is not None:
            # The data path has refused the request already; it comes here for the error's shape only
            # (routing/proxy.py).
            await error_response(refusal, shape_of(scope["path"]))(scope, receive, send)
        elif console.takes(scope):
            await console.serve(scope, receive, send)
        elif self._e2b is not None and self._e2b.takes(scope):
            scope["app"] = self._app
            await self._e2b(scope, receive, send)
        elif self._agent_sandbox is not None and self._agent_sandbox.takes(scope):
            scope["app"] = self._app
            await self._agent_sandbox(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _route_path(scope: Any) -> str:
    """The path by which the route is looked up; it differs for clients that join paths in ways of their own."""
    path: str = scope["path"]
    if path.startswith(("/api/kernels/", "/api/kernelspecs")) or path == "/api/kernels":
        return "/jupyter" + path  # for clients that take a host without a path
    if path.startswith("/agentscope/"):
        return path.removesuffix("_async")  # the same methods, which its asynchronous clients call by these names
    if scope["type"] == "http" and path.startswith("//"):
        # AgentCube's SDK joins a base URL with a trailing slash to "//v1/...".
        return "/" + path.lstrip("/")
    return path


class _Answer:
    """One answer on its way to the client: fields are added to its head, and its delivery is noted."""

    def __init__(
        self, scope: Any, send: Any, acknowledge: Callable[[SessionId, str], None], challenge: Challenge
    ) -> None:
        self.status = 0  # 0: not begun
        self._challenge = challenge
        self._scope = scope
        self._send = send
        self._acknowledge = acknowledge
        self._restored: tuple[SessionId, str] | None = None

    async def send(self, message: Any) -> None:
        """The ASGI `send` of the request."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *_loss_of(message["headers"])]
            self._restored = _restored_of(self._scope, message["headers"])
            state = self._scope.get("state", {})
            if (request_id := state.get("request_id")) is not None:
                message["headers"].append((b"x-request-id", request_id))
            message["headers"].extend(_limits_of(state, message["headers"]))
            if self.status == 401 and (value := self._challenge(self._scope)) is not None:
                others = [field for field in message["headers"] if field[0] != b"www-authenticate"]
                message["headers"] = [*others, (b"www-authenticate", value)]
        await self._send(message)
        restored = self._restored
        if restored is not None and message["type"] == "http.response.body" and not message.get("more_body", False):
            # A client that left before the last byte has not read the report of a loss, so its next answer must repeat
            # it.
            cycle = self._scope.get("extensions", {}).get("wakegate.cycle")
            if cycle is None or not cycle.disconnected:
                self._acknowledge(*restored)


def _limits_of(state: Mapping[str, Any], headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """RateLimit-* of an answer that does not have them: of the tenant's quota for a create, else of its rate."""
    fields: Mapping[str, str] = state.get("quota_fields") or {}
    identity: Identity | None = state.get("identity")
    if not fields and identity is not None and identity.budget is not None:
        fields = identity.budget.fields()
    if not fields or any(name == b"ratelimit-limit" for name, _ in headers):
        return []
    return [(name.encode(), value.encode()) for name, value in fields.items()]


def _loss_of(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What an answer that does not say it yet has to say of a loss that its request has found, in whatever part."""
    said = dict(headers)
    found = {name.encode(): value.encode("latin-1") for name, value in current_loss_report().headers().items()}
    # An answer that names another session stays as it is: the loss is due until one says it that can be acknowledged.
    if b"x-wakegate-restored" in said or said.get(b"x-session-id", session := found.get(b"x-session-id")) != session:
        return []
    return [field for field in found.items() if field[0] not in said]


def _restored_of(scope: Any, headers: Sequence[tuple[bytes, bytes]]) -> tuple[SessionId, str] | None:
    """The session and the value of x-wakegate-restored of an answer; None without that header.

    Also None for a request that another gateway relayed: that one acknowledges once its client has the answer.
    """
    restored = next((value for name, value in headers if name == b"x-wakegate-restored"), None)
    session = next((value for name, value in headers if name == b"x-session-id"), None)
    if restored is None or session is None or is_relayed(scope):
        return None
    return SessionId(session.decode("latin-1")), restored.decode("latin-1")
