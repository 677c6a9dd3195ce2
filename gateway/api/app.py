"""All control surfaces of a gateway as one ASGI app. The data path passes requests on that are not for a sandbox.

`Surfaces` makes each API from the parts that it needs, and pairs their handlers with the operations of
`openapi/table.py` to make routes. `control_app` is the app that they become.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.agent_bundles import AgentBundlesAPI
from gateway.api.agentcube import AgentCubeAPI
from gateway.api.agents import AgentParts, AgentsAPI
from gateway.api.audited import audited
from gateway.api.console import ConsoleAPI
from gateway.api.control_app import ControlApp
from gateway.api.e2b.access_tokens import AccessTokens
from gateway.api.e2b.router import E2BRouter
from gateway.api.e2b.sandboxes import SandboxesAPI
from gateway.api.egress import EgressAPI
from gateway.api.errors import ErrorShape, Handler, answering_errors
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
from gateway.api.tenants import TenantsAPI
from gateway.api.tools.service import ToolService
from gateway.api.usage import UsageAPI
from gateway.audit.log import AuditLog
from gateway.core.clock import Clock
from gateway.core.interfaces import RuntimeCatalog, SandboxCaller, SandboxProvider, SessionStore
from gateway.core.model import RuntimeKey, SessionId
from gateway.core.settings import Settings
from gateway.core.usage import Retention
from gateway.egress.records import EgressRecords
from gateway.identity.peers import PeerSigner
from gateway.identity.shared_secret import SharedSecret
from gateway.identity.tenants import TenantDirectory
from gateway.observability.counters import Counters
from gateway.observability.feed import EventFeed
from gateway.sessions.hibernation import Hibernator
from gateway.sessions.lifecycle import Lifecycle
from gateway.usage.prices import Prices


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
        self.app = ControlApp(
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


@lru_cache(maxsize=1)
def _openapi_json() -> bytes:
    return orjson.dumps(make_document((*CONTROL.values(), *SANDBOX, *PASS_THROUGH)))


async def _openapi(_: Request) -> Response:
    return Response(_openapi_json(), media_type="application/json")
