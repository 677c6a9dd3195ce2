"""All control surfaces of a gateway as one ASGI app. The data path passes requests on that are not for a sandbox.

`Surfaces` makes each API from the parts that it needs, and pairs their handlers with the operations of
`openapi/table.py` to make routes.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.api import console
from gateway.api.agent_bundles import AgentBundlesAPI
from gateway.api.agentcube import AgentCubeAPI
from gateway.api.agents import AgentParts, AgentsAPI
from gateway.api.audited import audited
from gateway.api.console import ConsoleAPI
from gateway.api.e2b.access_tokens import AccessTokens
from gateway.api.e2b.router import E2BRouter
from gateway.api.e2b.sandboxes import SandboxesAPI
from gateway.api.egress import EgressAPI
from gateway.api.errors import ErrorShape, Handler, answering_errors, error_response
from gateway.api.events import EventsAPI
from gateway.api.health import HealthAPI
from gateway.api.jupyter.channels import Channels
from gateway.api.jupyter.kernels import KernelsAPI
from gateway.api.keys import KeysAPI
from gateway.api.loss_report import LossReportingCaller
from gateway.api.mcp.endpoint import MCPEndpoint
from gateway.api.mcp.sessions import MCPSessions
from gateway.api.native import NativeAPI
from gateway.api.oneshot.dify import DifyAPI
from gateway.api.oneshot.native import RunAPI
from gateway.api.oneshot.runs import OneShotRuns
from gateway.api.openai.containers import ContainersAPI
from gateway.api.openai.files import ContainerFilesAPI
from gateway.api.openai.tool_calls import ToolsAPI
from gateway.api.openapi.document import Operation, make_document
from gateway.api.openapi.sandbox import PASS_THROUGH, SANDBOX
from gateway.api.openapi.table import CONTROL
from gateway.api.permissions import PERMISSIONS, requiring
from gateway.api.relay import is_relayed
from gateway.api.tenants import TenantsAPI
from gateway.api.tools.service import ToolService
from gateway.api.unknown import shape_of, unknown_answer
from gateway.api.usage import UsageAPI
from gateway.audit.log import AuditLog
from gateway.core.clock import Clock
from gateway.core.identity import Identity
from gateway.core.interfaces import RuntimeCatalog, SandboxCaller, SandboxProvider, SessionStore
from gateway.core.model import RuntimeKey, SessionId
from gateway.core.settings import Settings
from gateway.core.usage import Retention
from gateway.egress.records import EgressRecords
from gateway.identity.peers import PeerSigner
from gateway.identity.shared_secret import SharedSecret
from gateway.identity.tenants import TenantDirectory
from gateway.observability.counters import Counters, status_label
from gateway.observability.feed import EventFeed
from gateway.sessions.hibernation import Hibernator
from gateway.sessions.lifecycle import Lifecycle
from gateway.usage.prices import Prices

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

# A client may send any word as its method. Others than these share one label, so that it cannot make a time series
# each.
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class Surfaces:
    """The control surfaces of one gateway: `app` is the ASGI app, made of `routes`."""

    def __init__(
        self,
        settings: Settings,
        lifecycle: Lifecycle,
        hibernator: Hibernator,
        store: SessionStore,
        provider: SandboxProvider,
        catalog: RuntimeCatalog,
        caller: SandboxCaller,
        clock: Clock,
        counters: Counters,
        tenants: TenantDirectory,
        *,
        prices: Prices | None = None,
        explain_pools: Callable[[], dict[str, Any]],
        what_if: Callable[[RuntimeKey], dict[str, Any]],
        is_leaving: Callable[[], bool],
        render_metrics: Callable[[str], Awaitable[tuple[bytes, str]]],
        peers: PeerSigner,
        acknowledge: Callable[[SessionId, str], None] = lambda session_id, restored: None,
        audit: AuditLog | None = None,
        egress: EgressRecords | None = None,
        agents: AgentParts | None = None,
        feed: EventFeed | None = None,
    ) -> None:
        """`is_leaving`: whether this gateway drains. `egress`: what its sessions reached; None: they reach nothing.

        The other callables as in NativeAPI, HealthAPI and below."""
        reporting_caller = LossReportingCaller(caller)
        self._tools = ToolService(
            lifecycle, catalog, reporting_caller, clock, picture_max_side=settings.picture_max_side
        )
        self._mcp_sessions = MCPSessions(self._tools, lifecycle, catalog, clock)
        self._mcp = MCPEndpoint(self._tools, self._mcp_sessions, catalog, caller.acknowledge)
        self.keys = KeysAPI(lifecycle)
        self.tenants = TenantsAPI(tenants, store, lifecycle)
        self._access_tokens = AccessTokens()
        self._e2b = E2BRouter(lifecycle, caller, self._access_tokens, clock)
        self._runs = OneShotRuns(lifecycle, caller)
        feed = feed or EventFeed(clock)
        handlers: dict[str, Handler] = {
            **RunAPI(self._runs, catalog).handlers(),
            **KernelsAPI(lifecycle, store, catalog, caller).handlers(),
            **DifyAPI(self._runs, catalog).handlers(),
            **self.keys.handlers(),
            **self.tenants.handlers(),
            **AgentCubeAPI(lifecycle).handlers(),
            **NativeAPI(lifecycle, hibernator, store, provider, catalog, explain_pools, what_if).handlers(),
            **AgentsAPI(agents, lifecycle, store, provider, tenants, counters, clock, prices, catalog.all).handlers(),
            **AgentBundlesAPI(None if agents is None else agents.bundles).handlers(),
            **HealthAPI(
                store,
                provider,
                catalog,
                settings.state_dir,
                is_draining=is_leaving,
                render_metrics=render_metrics,
                unready=lambda: audit.unready if audit is not None else "",
            ).handlers(),
            **EventsAPI(lifecycle, feed, clock, is_leaving).handlers(),
            **ConsoleAPI(self.keys, clock).handlers(),
            **EgressAPI(lifecycle, catalog, tenants, egress or EgressRecords()).handlers(),
            **UsageAPI(
                store, clock, prices, Retention(settings.usage_session_retention, settings.usage_retention)
            ).handlers(),
            **ToolsAPI(self._tools, lifecycle, catalog, reporting_caller, clock).handlers(),
            **ContainersAPI(lifecycle, store, catalog).handlers(),
            **ContainerFilesAPI(lifecycle, reporting_caller).handlers(),
            **self._mcp.handlers(),
            **SandboxesAPI(
                lifecycle, hibernator, store, catalog, self._access_tokens, clock, domain=settings.domain
            ).handlers(),
            "get_openapi": _openapi,
        }
        if audit is not None:
            audited_by = functools.partial(audited, audit=audit, clock=clock)
            self.routes = make_routes(CONTROL, handlers, audited_by)
        else:
            self.routes = make_routes(CONTROL, handlers)
        self.app = make_control_app(
            self.routes,
            counters,
            body_idle=settings.request_idle_timeout,
            peers=peers,
            acknowledge=acknowledge,
            e2b=self._e2b,
            channels=Channels(lifecycle, caller, clock),
        )

    def open(self, secret: SharedSecret) -> None:
        """Derive the keys of what these surfaces sign from the store's secret, which its start has read."""
        self._access_tokens.open(secret)
        self._mcp_sessions.open(secret)

    async def aclose(self) -> None:
        """Stop what outlives requests: the MCP server, then tool calls under way."""
        try:
            await self._mcp.aclose()
        finally:
            try:
                await self._e2b.aclose()
            finally:
                try:
                    await self._runs.aclose()
                finally:
                    await self._tools.results.aclose()


def make_routes(
    operations: Mapping[str, Operation],
    handlers: Mapping[str, Handler],
    wrapped: Callable[[str, Handler], Handler] = lambda name, handler: handler,
) -> list[Route]:
    """Pair operations with handlers; errors are answered in the operation's shape.

    `wrapped(operation, handler)`: what to do besides, seeing errors as exceptions.

    Raises ValueError unless every operation has a handler and every handler an operation, and KeyError for an operation
    that has no permission.
    """
    if unmatched := operations.keys() ^ handlers.keys():
        raise ValueError(f"operations without a handler, or handlers without an operation: {sorted(unmatched)}")
    return [
        Route(
            operation.path,
            answering_errors(
                wrapped(name, requiring(PERMISSIONS[name], handlers[name])),
                ErrorShape(operation.error or ErrorShape.NATIVE),
            ),
            methods=[operation.method],
        )
        for name, operation in operations.items()
    ]


def make_control_app(
    routes: Sequence[BaseRoute],
    counters: Counters,
    *,
    body_idle: float,
    peers: PeerSigner,
    acknowledge: Callable[[SessionId, str], None] = lambda session_id, restored: None,
    e2b: E2BRouter | None = None,
    channels: Channels | None = None,
) -> ASGIApp:
    """Make the ASGI app, which also counts its answers by route.

    `body_idle`: idle timeout in seconds while a request's body is read.
    `peers` signs what is passed on to the gateway that has a session.
    `acknowledge(session, restored)` is called once an answer with x-wakegate-restored has been delivered.
    """
    app = Starlette(routes=list(routes), exception_handlers=dict.fromkeys((404, 405), unknown_answer(routes)))
    # A path with a slash behind it is another path. Starlette would redirect to the one without, and clients that do
    # not follow a redirect of a POST would fail with an answer that names no error.
    app.router.redirect_slashes = False
    app.state.body_idle = body_idle
    app.state.peers = peers

    async def control(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"].startswith(("/api/kernels/", "/api/kernelspecs")) or scope["path"] == "/api/kernels":
            scope = {**scope, "path": "/jupyter" + scope["path"]}  # for clients that take a host without a path
        if scope["type"] == "websocket":
            if channels is not None:
                await channels(scope, receive, send)
            return
        if scope["type"] == "http" and scope["path"].startswith("//"):
            # AgentCube's SDK joins a base URL with a trailing slash to "//v1/...".
            scope = {**scope, "path": "/" + scope["path"].lstrip("/")}
        status = 0
        restored: tuple[SessionId, str] | None = None

        async def counted(message: Any) -> None:
            nonlocal status, restored
            if message["type"] == "http.response.start":
                status = message["status"]
                restored = _restored_of(scope, message["headers"])
                state = scope.get("state", {})
                if (request_id := state.get("request_id")) is not None:
                    message["headers"].append((b"x-request-id", request_id))
                message["headers"].extend(_limits_of(state, message["headers"]))
            await send(message)
            if restored is not None and message["type"] == "http.response.body" and not message.get("more_body", False):
                # A client that left before the last byte has not read the report of a loss, so its next answer must
                # repeat it.
                cycle = scope.get("extensions", {}).get("wakegate.cycle")
                if cycle is None or not cycle.disconnected:
                    acknowledge(*restored)

        try:
            # The data path has refused the request already; it comes here for the error's shape only
            # (routing/proxy.py).
            refusal = scope.get("state", {}).get("refusal")
            if refusal is None and console.takes(scope):
                await console.serve(scope, receive, counted)
            elif refusal is None and e2b is not None and e2b.takes(scope):
                scope["app"] = app
                await e2b(scope, receive, counted)
            elif refusal is None:
                await app(scope, receive, counted)
            else:
                await error_response(refusal, shape_of(scope["path"]))(scope, receive, counted)
        finally:
            if status:
                # The route's pattern and not the path: session ids in a label would make a time series per session.
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                counters.control[method, route, status_label(status)] += 1

    return control


def _limits_of(state: Mapping[str, Any], headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """RateLimit-* of an answer that does not have them: of the tenant's quota for a create, else of its rate."""
    fields: Mapping[str, str] = state.get("quota_fields") or {}
    identity: Identity | None = state.get("identity")
    if not fields and identity is not None and identity.budget is not None:
        fields = identity.budget.fields()
    if not fields or any(name == b"ratelimit-limit" for name, _ in headers):
        return []
    return [(name.encode(), value.encode()) for name, value in fields.items()]


def _restored_of(scope: Any, headers: Sequence[tuple[bytes, bytes]]) -> tuple[SessionId, str] | None:
    """The session and the value of x-wakegate-restored of an answer; None without that header.

    Also None for a request that another gateway relayed: that one acknowledges once its client has the answer.
    """
    restored = next((value for name, value in headers if name == b"x-wakegate-restored"), None)
    session = next((value for name, value in headers if name == b"x-session-id"), None)
    if restored is None or session is None or is_relayed(scope):
        return None
    return SessionId(session.decode("latin-1")), restored.decode("latin-1")


@lru_cache(maxsize=1)
def _openapi_json() -> bytes:
    return orjson.dumps(make_document((*CONTROL.values(), *SANDBOX, *PASS_THROUGH)))


async def _openapi(_: Request) -> Response:
    return Response(_openapi_json(), media_type="application/json")
