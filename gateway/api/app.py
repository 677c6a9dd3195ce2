"""All control surfaces of a gateway as one ASGI app, which stands behind the data path.

Start here: `Surfaces` makes each API from the parts it speaks for, and joins their handlers with the operations of
`openapi/table.py` to routes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.api.agentcube import AgentCubeAPI
from gateway.api.errors import ErrorShape, Handler, answering_errors, error_response
from gateway.api.mcp.endpoint import MCPEndpoint
from gateway.api.native import NativeAPI
from gateway.api.openai.containers import ContainersAPI
from gateway.api.openai.files import ContainerFilesAPI
from gateway.api.openai.tool_calls import ToolsAPI
from gateway.api.openapi.document import Operation, make_document
from gateway.api.openapi.sandbox import SANDBOX, THROUGH
from gateway.api.openapi.table import CONTROL
from gateway.api.restored import NotingCaller
from gateway.api.tools.service import ToolService
from gateway.api.unknown import shape_of, unknown_answer
from gateway.core.clock import Clock
from gateway.core.interfaces import RuntimeCatalog, SandboxCaller, SandboxProvider, SessionStore
from gateway.core.model import SessionId
from gateway.core.settings import Settings
from gateway.observability.counters import Counters, status_label
from gateway.sessions.hibernation import Hibernator
from gateway.sessions.lifecycle import Lifecycle

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class Surfaces:
    """The control surfaces. `app` is the ASGI app, `routes` what it answers."""

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
        *,
        explain_pools: Callable[[], dict[str, Any]],
        is_leaving: Callable[[], bool],
        render_metrics: Callable[[str], Awaitable[tuple[bytes, str]]],
        acknowledge: Callable[[SessionId, str], None] = lambda session_id, restored: None,
    ) -> None:
        """The last but one are what NativeAPI takes by the same names; `acknowledge` as make_control_app takes it."""
        noting = NotingCaller(caller)
        self._tools = ToolService(lifecycle, catalog, noting, clock, picture_max_side=settings.picture_max_side)
        self._mcp = MCPEndpoint(self._tools, lifecycle, catalog, caller.acknowledge)
        handlers: dict[str, Handler] = {
            **AgentCubeAPI(lifecycle).handlers(),
            **NativeAPI(
                lifecycle,
                hibernator,
                store,
                provider,
                catalog,
                settings.state_dir,
                explain_pools,
                is_leaving,
                render_metrics,
            ).handlers(),
            **ToolsAPI(self._tools, lifecycle, catalog, noting, clock).handlers(),
            **ContainersAPI(lifecycle, store, catalog).handlers(),
            **ContainerFilesAPI(lifecycle, noting).handlers(),
            **self._mcp.handlers(),
            "get_openapi": _openapi,
        }
        self.routes = make_routes(CONTROL, handlers)
        self.app = make_control_app(
            self.routes, counters, body_idle=settings.request_idle_timeout, acknowledge=acknowledge
        )

    async def aclose(self) -> None:
        """End what requests have left running: the MCP server, then calls of tools."""
        try:
            await self._mcp.aclose()
        finally:
            await self._tools.memory.aclose()


def make_routes(operations: Mapping[str, Operation], handlers: Mapping[str, Handler]) -> list[Route]:
    """A route for each operation, its errors answered in the operation's shape.

    Raises ValueError unless every operation has a handler and every handler an operation.
    """
    if unmatched := operations.keys() ^ handlers.keys():
        raise ValueError(f"operations without a handler, or handlers without an operation: {sorted(unmatched)}")
    return [
        Route(
            operation.path,
            answering_errors(handlers[name], ErrorShape(operation.error or ErrorShape.NATIVE)),
            methods=[operation.method],
        )
        for name, operation in operations.items()
    ]


def make_control_app(
    routes: Sequence[BaseRoute],
    counters: Counters,
    *,
    body_idle: float,
    acknowledge: Callable[[SessionId, str], None] = lambda session_id, restored: None,
) -> ASGIApp:
    """An ASGI app that counts its answers by route.

    `body_idle`: seconds that a client may be silent while it owes the rest of its body.
    `acknowledge(session, restored)` is called when an answer with x-wakegate-restored was delivered.
    """
    app = Starlette(routes=list(routes), exception_handlers=dict.fromkeys((404, 405), unknown_answer(routes)))
    app.router.redirect_slashes = False
    app.state.body_idle = body_idle

    async def control(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith("//"):
            # AgentCube's SDK joins a base URL with a trailing slash to "//v1/...".
            scope = {**scope, "path": "/" + scope["path"].lstrip("/")}
        status = 0
        told: tuple[SessionId, str] | None = None

        async def counted(message: Any) -> None:
            nonlocal status, told
            if message["type"] == "http.response.start":
                status = message["status"]
                told = _restored_of(scope, message["headers"])
                if (request_id := scope.get("state", {}).get("request_id")) is not None:
                    message["headers"].append((b"x-request-id", request_id))
            await send(message)
            if told is not None and message["type"] == "http.response.body" and not message.get("more_body", False):
                cycle = scope.get("extensions", {}).get("wakegate.cycle")
                if cycle is None or not cycle.disconnected:
                    acknowledge(*told)

        try:
            refusal = scope.get("state", {}).get("refusal")
            if refusal is None:
                await app(scope, receive, counted)
            else:
                await error_response(refusal, shape_of(scope["path"]))(scope, receive, counted)
        finally:
            if status:
                # The route's pattern, never the path, which would be a label value per session: bounded by the table.
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                counters.control[method, route, status_label(status)] += 1

    return control


def _restored_of(scope: Any, headers: Sequence[tuple[bytes, bytes]]) -> tuple[SessionId, str] | None:
    """The session and the loss that an answer tells of. None also where a gateway asks that has a client to tell."""
    restored = next((value for name, value in headers if name == b"x-wakegate-restored"), None)
    session = next((value for name, value in headers if name == b"x-session-id"), None)
    if restored is None or session is None or any(name == b"x-wakegate-relayed" for name, _ in scope["headers"]):
        return None
    return SessionId(session.decode("latin-1")), restored.decode("latin-1")


@lru_cache(maxsize=1)
def _openapi_json() -> bytes:
    return orjson.dumps(make_document((*CONTROL.values(), *SANDBOX, *THROUGH)))


async def _openapi(_: Request) -> Response:
    return Response(_openapi_json(), media_type="application/json")
