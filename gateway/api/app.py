"""All control surfaces of a gateway as one ASGI app. The data path passes requests on that are not for a sandbox.

`Surfaces` makes each API from the parts that it needs, and pairs their handlers with the operations of
`openapi/table.py` to make routes. `control_app` is the app that they become.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.agent_bundles import AgentBundlesAPI
from gateway.api.agent_invocations import AgentInvocationsAPI
from gateway.api.agent_sandbox.claims import ClaimsAPI
from gateway.api.agent_sandbox.router import AgentSandboxRouter
from gateway.api.agent_schedules import AgentSchedulesAPI
from gateway.api.agent_tasks import AgentTasksAPI
from gateway.api.agentcube import AgentCubeAPI
from gateway.api.agents import AgentParts, AgentsAPI
from gateway.api.agentscope.manager import ManagerAPI
from gateway.api.agentscope.proxy import WorkspaceProxy
from gateway.api.audit_lines import AuditLinesAPI
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
from gateway.api.jupyter.contents import ContentsAPI
from gateway.api.jupyter.kernels import KernelsAPI
from gateway.api.keys import KeysAPI
from gateway.api.librechat import files as librechat_files
from gateway.api.librechat.runs import RunsAPI
from gateway.api.librechat.storage import Storage
from gateway.api.loss_report import LossReportingCaller
from gateway.api.mcp.endpoint import MCPEndpoint
from gateway.api.mcp.sessions import MCPSessions
from gateway.api.native import NativeAPI
from gateway.api.oneshot.dify import DifyAPI
from gateway.api.oneshot.native import RunAPI
from gateway.api.oneshot.runs import OneShotRuns
from gateway.api.open_terminal.chats import Chats
from gateway.api.open_terminal.files import FilesAPI
from gateway.api.open_terminal.ports import PortsAPI
from gateway.api.open_terminal.processes import ProcessesAPI
from gateway.api.open_terminal.search import SearchAPI
from gateway.api.open_terminal.server import ServerAPI
from gateway.api.open_terminal.shells import ShellsAPI
from gateway.api.open_terminal.socket import TerminalSocket
from gateway.api.openai.containers import ContainersAPI
from gateway.api.openai.files import ContainerFilesAPI
from gateway.api.openai.tool_calls import ToolsAPI
from gateway.api.openapi.document import Operation, make_document
from gateway.api.openapi.sandbox import PASS_THROUGH, SANDBOX
from gateway.api.openapi.table import CONTROL
from gateway.api.permissions import PERMISSIONS, requiring
from gateway.api.resource_metadata import ResourceMetadata
from gateway.api.session_metrics import SessionMetricsAPI
from gateway.api.task_parts import TaskParts
from gateway.api.tenants import TenantsAPI
from gateway.api.tools.service import ToolService
from gateway.api.usage import UsageAPI
from gateway.audit.log import AuditLog
from gateway.core.clock import Clock
from gateway.core.interfaces import LoadReader, RuntimeCatalog, SandboxCaller, SandboxProvider, SessionStore
from gateway.core.model import RuntimeKey, SessionId
from gateway.core.settings import Settings
from gateway.core.usage import Retention
from gateway.egress.records import EgressRecords
from gateway.identity.oidc import trusted_issuers
from gateway.identity.peers import PeerSigner
from gateway.identity.shared_secret import SharedSecret
from gateway.identity.tenants import TenantDirectory
from gateway.observability.counters import Counters
from gateway.observability.feed import EventFeed
from gateway.sessions.hibernation import Hibernator
from gateway.sessions.lifecycle import Lifecycle
from gateway.sessions.resizing import Resizing
from gateway.usage.prices import Prices

Handlers = dict[str, Handler]


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceParts:
    """The parts of a gateway that its surfaces are made of. The callables as in NativeAPI, HealthAPI and ControlApp.

    `is_leaving`: whether this gateway drains. `egress`: what its sessions reached; None: they reach nothing.
    """

    lifecycle: Lifecycle
    hibernator: Hibernator
    resizing: Resizing
    store: SessionStore
    provider: SandboxProvider
    catalog: RuntimeCatalog
    caller: SandboxCaller
    clock: Clock
    counters: Counters
    tenants: TenantDirectory
    explain_pools: Callable[[], dict[str, Any]]
    what_if: Callable[[RuntimeKey], dict[str, Any]]
    outcomes: Callable[[RuntimeKey], dict[str, Any]]
    is_leaving: Callable[[], bool]
    render_metrics: Callable[[str], Awaitable[tuple[bytes, str]]]
    peers: PeerSigner
    feed: EventFeed
    tasks: TaskParts
    acknowledge: Callable[[SessionId, str], None] = lambda session_id, restored: None
    prices: Prices | None = None
    audit: AuditLog | None = None
    egress: EgressRecords | None = None
    agents: AgentParts | None = None


class Surfaces:
    """The control surfaces of one gateway: `app` is the ASGI app, made of `routes`."""

    def __init__(self, settings: Settings, parts: SurfaceParts) -> None:
        parts = replace(parts, caller=LossReportingCaller(parts.caller))
        lifecycle, clock = parts.lifecycle, parts.clock
        self._tools = ToolService(
            lifecycle, parts.catalog, parts.caller, clock, picture_max_side=settings.picture_max_side
        )
        self._mcp_sessions = MCPSessions(self._tools, lifecycle, parts.catalog, clock)
        self._mcp = MCPEndpoint(self._tools, self._mcp_sessions, parts.catalog, parts.caller.acknowledge)
        self.keys = KeysAPI(lifecycle)
        self.tenants = TenantsAPI(parts.tenants, parts.store, lifecycle)
        self._access_tokens = AccessTokens()
        self._e2b = E2BRouter(lifecycle, parts.caller, self._access_tokens, clock)
        self._resource_metadata = ResourceMetadata(trusted_issuers(settings))
        self._runs = OneShotRuns(lifecycle, parts.caller)
        self.routes = make_routes(
            CONTROL,
            {**self._own(settings, parts), **self._for_models(parts), **self._compatible(settings, parts)},
            None if parts.audit is None else functools.partial(audited, audit=parts.audit, clock=clock),
        )
        self.app = ControlApp(
            self.routes,
            parts.counters,
            body_idle=settings.request_idle_timeout,
            peers=parts.peers,
            acknowledge=parts.acknowledge,
            e2b=self._e2b,
            agent_sandbox=AgentSandboxRouter(lifecycle, parts.caller),
            channels=Channels(lifecycle, parts.caller, clock),
            terminals=TerminalSocket(lifecycle, parts.caller),
            challenge=self._resource_metadata.challenge,
        )

    def _own(self, settings: Settings, parts: SurfaceParts) -> Handlers:
        """Wakegate's own API: sessions, runtimes, agents, and what operators and the console use."""
        lifecycle, store, catalog, clock, audit = parts.lifecycle, parts.store, parts.catalog, parts.clock, parts.audit
        retention = Retention(settings.usage_session_retention, settings.usage_retention)
        agents = AgentsAPI(
            parts.agents,
            lifecycle,
            parts.hibernator,
            store,
            parts.provider,
            parts.tenants,
            parts.counters,
            clock,
            parts.prices,
            catalog.all,
        )
        native = NativeAPI(
            lifecycle,
            parts.hibernator,
            parts.resizing,
            store,
            parts.provider,
            catalog,
            parts.explain_pools,
            parts.what_if,
            parts.outcomes,
        )
        health = HealthAPI(
            store,
            parts.provider,
            catalog,
            settings.state_dir,
            is_draining=parts.is_leaving,
            render_metrics=parts.render_metrics,
            unready=lambda: audit.unready if audit is not None else "",
        )
        return {
            **native.handlers(),
            **RunAPI(self._runs, catalog).handlers(),
            **agents.handlers(),
            **AgentBundlesAPI(
                None if parts.agents is None else parts.agents.code,
                None if parts.agents is None else parts.agents.environments,
            ).handlers(),
            **AgentInvocationsAPI(parts.tasks, catalog, lifecycle, clock).handlers(),
            **AgentTasksAPI(parts.tasks, catalog, clock).handlers(),
            **AgentSchedulesAPI(parts.tasks.scheduler, catalog, clock, parts.tasks.limits.retention).handlers(),
            **self.keys.handlers(),
            **self.tenants.handlers(),
            **UsageAPI(store, clock, parts.prices, retention).handlers(),
            **EgressAPI(lifecycle, catalog, parts.tenants, parts.egress or EgressRecords()).handlers(),
            **SessionMetricsAPI(lifecycle, parts.provider, catalog, parts.counters.sessions, clock).handlers(),
            **AuditLinesAPI(lifecycle, audit).handlers(),
            **EventsAPI(lifecycle, parts.feed, clock, parts.is_leaving).handlers(),
            **ConsoleAPI(self.keys, clock).handlers(),
            **health.handlers(),
            "get_openapi": _openapi,
        }

    def _for_models(self, parts: SurfaceParts) -> Handlers:
        """Tools for models: their calls, MCP, and OpenAI's containers."""
        lifecycle, catalog = parts.lifecycle, parts.catalog
        return {
            **ToolsAPI(self._tools, lifecycle, catalog, parts.caller, parts.clock).handlers(),
            **self._mcp.handlers(),
            **self._resource_metadata.handlers(),
            **ContainersAPI(lifecycle, parts.store, catalog).handlers(),
            **ContainerFilesAPI(lifecycle, parts.caller).handlers(),
        }

    def _compatible(self, settings: Settings, parts: SurfaceParts) -> Handlers:
        """Other products' APIs, for clients of theirs: AgentCube, Jupyter, Dify, AgentScope, E2B, Open Terminal,
        LibreChat."""
        lifecycle, store, catalog = parts.lifecycle, parts.store, parts.catalog
        sandboxes = SandboxesAPI(
            lifecycle,
            parts.hibernator,
            store,
            catalog,
            self._access_tokens,
            parts.clock,
            domain=settings.domain,
            engine=parts.provider if isinstance(parts.provider, LoadReader) else None,
        )
        storage = Storage(lifecycle, catalog, parts.caller)
        chats = Chats(lifecycle, store, catalog, parts.clock)
        return {
            **AgentCubeAPI(lifecycle).handlers(),
            **RunsAPI(storage, parts.caller).handlers(),
            **librechat_files.FilesAPI(storage, parts.caller).handlers(),
            **ServerAPI().handlers(),
            **ProcessesAPI(chats, parts.caller).handlers(),
            **FilesAPI(chats, parts.caller).handlers(),
            **SearchAPI(chats, parts.caller).handlers(),
            **PortsAPI(chats, parts.caller, settings.strip_headers).handlers(),
            **ShellsAPI(chats, parts.caller, parts.clock).handlers(),
            **ClaimsAPI(lifecycle, parts.hibernator, store, catalog, parts.clock).handlers(),
            **KernelsAPI(lifecycle, store, catalog, parts.caller).handlers(),
            **ContentsAPI(lifecycle, store, parts.caller).handlers(),
            **DifyAPI(self._runs, catalog).handlers(),
            **ManagerAPI(lifecycle, parts.hibernator, store, catalog, parts.caller).handlers(),
            **WorkspaceProxy(lifecycle, parts.caller).handlers(),
            **sandboxes.handlers(),
        }

    def open(self, secret: SharedSecret) -> None:
        """Derive the keys of what these surfaces sign from the store's secret, which its start has read."""
        self._access_tokens.open(secret)
        self._mcp_sessions.open(secret)

    async def aclose(self) -> None:
        """Stop what outlives requests: the MCP server, then tool calls under way."""
        async with AsyncExitStack() as stack:  # in the reverse of this order, each also where another one fails
            for aclose in (
                self._tools.skills.aclose,
                self._tools.results.aclose,
                self._runs.aclose,
                self._e2b.aclose,
                self._mcp.aclose,
            ):
                stack.push_async_callback(aclose)


def make_routes(
    operations: Mapping[str, Operation],
    handlers: Mapping[str, Handler],
    wrapped: Callable[[str, Handler], Handler] | None = None,
) -> list[Route]:
    """Pair operations with handlers; errors are answered in the operation's shape.

    `wrapped(operation, handler)`: what to do besides, seeing errors as exceptions.

    Raises ValueError unless every operation has a handler and every handler an operation, and KeyError for an operation
    that has no permission.
    """
    if unmatched := operations.keys() ^ handlers.keys():
        raise ValueError(f"operations without a handler, or handlers without an operation: {sorted(unmatched)}")
    routes = []
    for name, operation in operations.items():
        handler = requiring(PERMISSIONS[name], handlers[name])
        if wrapped is not None:
            handler = wrapped(name, handler)
        shape = ErrorShape(operation.error or ErrorShape.NATIVE)
        path = operation.path.replace("/{path}", "/{path:path}")  # the rest of a path may have slashes
        routes.append(Route(path, answering_errors(handler, shape), methods=[operation.method]))
    return routes


@lru_cache(maxsize=1)
def _openapi_json() -> bytes:
    return orjson.dumps(make_document((*CONTROL.values(), *SANDBOX, *PASS_THROUGH)))


async def _openapi(_: Request) -> Response:
    return Response(_openapi_json(), media_type="application/json")
