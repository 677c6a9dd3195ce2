"""All control surfaces of a gateway on one app, made of the parts they speak for. The data path stands before it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.routing import Route

from gateway.api.agentcube import AgentCubeAPI
from gateway.api.app import make_control_app
from gateway.api.mcp.endpoint import MCPEndpoint
from gateway.api.native import NativeAPI
from gateway.api.openai.containers import ContainersAPI
from gateway.api.openai.files import ContainerFilesAPI
from gateway.api.openai.tool_calls import ToolsAPI
from gateway.api.openapi import http as openapi
from gateway.api.tools.service import ToolService
from gateway.core.clock import Clock
from gateway.core.interfaces import RuntimeCatalog, SandboxCaller, SandboxProvider, SessionStore
from gateway.core.settings import Settings
from gateway.observability.counters import Counters
from gateway.sessions.lifecycle import Lifecycle


class Surfaces:
    """`app` answers what `routes` name, as an ASGI app."""

    def __init__(
        self,
        settings: Settings,
        lifecycle: Lifecycle,
        store: SessionStore,
        provider: SandboxProvider,
        catalog: RuntimeCatalog,
        caller: SandboxCaller,
        clock: Clock,
        counters: Counters,
        *,
        explain_pools: Callable[[], dict[str, Any]],
        is_leaving: Callable[[], bool],
        render_metrics: Callable[[str], Awaitable[tuple[bytes, str]]],
    ) -> None:
        """The last three as NativeAPI takes them."""
        native = NativeAPI(lifecycle, store, provider, catalog, explain_pools, is_leaving, render_metrics)
        self._tools = ToolService(lifecycle, catalog, caller, clock)
        self._mcp = MCPEndpoint(self._tools, lifecycle, catalog, settings.allowed_origins)
        self.routes: list[Route] = [
            *AgentCubeAPI(lifecycle).routes(),
            *native.routes(),
            *ToolsAPI(self._tools, lifecycle, catalog, caller, clock).routes(),
            *ContainersAPI(lifecycle, store, catalog).routes(),
            *ContainerFilesAPI(lifecycle, caller).routes(),
            *self._mcp.routes(),
            *openapi.routes(),
        ]
        self.app = make_control_app(self.routes, counters, body_idle=settings.request_idle_timeout)

    async def aclose(self) -> None:
        """End what requests have left running: sessions of MCP, then calls of tools."""
        try:
            await self._mcp.aclose()
        finally:
            await self._tools.memory.aclose()
