"""The control app: all control surfaces on one starlette router, behind the data path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute

from gateway.observability.counters import Counters, status_label

_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


def make_control_app(
    routes: Sequence[BaseRoute], counters: Counters, *, body_idle: float
) -> Callable[..., Awaitable[None]]:
    """An ASGI app. Unknown paths and wrong methods get AgentCube's plain 404, never a 405.

    `body_idle`: seconds that a client may be silent while it owes the rest of its body.
    """
    app = Starlette(routes=list(routes), exception_handlers={404: _not_found, 405: _not_found})
    app.router.redirect_slashes = False
    app.state.body_idle = body_idle

    async def control(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith("//"):
            # AgentCube's SDK joins a base URL with a trailing slash to "//v1/...".
            scope = {**scope, "path": "/" + scope["path"].lstrip("/")}
        status = 0

        async def counted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if (request_id := scope.get("state", {}).get("request_id")) is not None:
                    message["headers"].append((b"x-request-id", request_id))
            await send(message)

        try:
            await app(scope, receive, counted)
        finally:
            if status:
                # The route's pattern, never the path: /v1/sessions/{session_id}.
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                counters.control[method, route, status_label(status)] += 1

    return control


async def _not_found(_: Request, __: Exception) -> Response:
    return PlainTextResponse("404 page not found", 404)
