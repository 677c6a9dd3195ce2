"""Answers requests that match no operation: unknown paths, and known paths with another method."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Match

from gateway.api.errors import ErrorShape, error_response
from gateway.core.errors import BadRequestError, NotFoundError, WakegateError

# AgentCube's router gives the same plain-text answer to an unknown path and to a wrong method, and so do we.
_AGENTCUBE = ("/v1/code-interpreter", "/v1/agent-runtime", "/v1/namespaces", "/health")
_OPENAI = ("/v1/containers", "/v1/tools", "/v1/tool_calls")
_E2B = ("/sandboxes", "/v2/sandboxes")
_DIFY = ("/v1/sandbox",)
_JUPYTER = ("/jupyter",)
_KUBERNETES = ("/apis",)
_OPEN_TERMINAL = ("/open-terminal",)
_SANDBOX_API = "/api"
_HEADERS = "x-session-id: ID, or x-wakegate-runtime: NAMESPACE/NAME for a new session"


def shape_of(path: str) -> ErrorShape:
    """The error shape of the surface that a path belongs to, also where the path itself is unknown."""
    if _is_below(path, _AGENTCUBE):
        return ErrorShape.AGENTCUBE
    if _is_below(path, _OPENAI):
        return ErrorShape.OPENAI
    if _is_below(path, ("/agentscope",)):
        return ErrorShape.AGENTSCOPE
    if _is_below(path, _DIFY):
        return ErrorShape.DIFY
    if _is_below(path, _JUPYTER):
        return ErrorShape.JUPYTER
    if _is_below(path, _E2B):
        return ErrorShape.E2B
    if _is_below(path, _OPEN_TERMINAL):
        return ErrorShape.OPEN_TERMINAL
    if _is_below(path, _KUBERNETES):
        return ErrorShape.KUBERNETES
    return ErrorShape.MCP if path == "/mcp" else ErrorShape.NATIVE


class SessionHeaderMissingError(BadRequestError):
    """The path exists in sandboxes only, and the request does not name a session."""

    code = "SESSION_HEADER_MISSING"


class MethodNotAllowedError(WakegateError):
    """The path exists, but not with this method; the answer's Allow header lists the methods."""

    status = 405
    code = "METHOD_NOT_ALLOWED"


def unknown_answer(routes: Sequence[BaseRoute]) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Make the handler for starlette's 404 and 405 of an app with these routes."""

    async def answer(request: Request, _: Exception) -> Response:
        path = request.url.path
        if _is_below(path, _AGENTCUBE):
            return PlainTextResponse("404 page not found", 404)
        allowed = {
            method
            for route in routes
            # A match in part is one of the path without the method.
            if route.matches(request.scope)[0] is not Match.NONE
            for method in getattr(route, "methods", None) or ()
        }
        shape = shape_of(path)
        if allowed:
            names = ", ".join(sorted(allowed))
            error = MethodNotAllowedError(f"{request.method} is not allowed for {path}; use {names}")
            response = error_response(error, shape)
            response.headers["allow"] = names
            return response
        return error_response(_not_found(path, is_named=_names_sandbox(request)), shape)

    return answer


def _not_found(path: str, *, is_named: bool) -> WakegateError:
    # With a session the data path sends any path to the sandbox, except names that the gateway's own API reserves.
    if is_named:
        return NotFoundError(
            f"the gateway's own API has no {path}, and paths below it never reach a sandbox. Reach a server in a"
            " sandbox that uses this path at /v1/sessions/ID/ports/PORT/..., an agent at .../invocations/..."
        )
    if _is_below(path, (_SANDBOX_API,)):
        return SessionHeaderMissingError(f"{path} is a path of a sandbox: send {_HEADERS}")
    return NotFoundError(f"the gateway has no {path}; for a path of a sandbox send {_HEADERS}")


def _names_sandbox(request: Request) -> bool:
    return any(name in request.headers for name in ("x-session-id", "x-agentcube-session-id", "x-wakegate-runtime"))


def _is_below(path: str, names: Sequence[str]) -> bool:
    return any(path == name or path.startswith(name + "/") for name in names)
