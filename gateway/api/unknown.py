"""Answers to requests that no operation is for: another method of a known path, and unknown paths, with a hint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Match

from gateway.api.errors import ErrorShape, error_response
from gateway.core.errors import BadRequestError, NotFoundError, WakegateError

# AgentCube's router answers an unknown path and a wrong method alike, in plain text; its clients know that.
_AGENTCUBE = ("/v1/code-interpreter", "/v1/agent-runtime", "/v1/namespaces", "/health")
_OPENAI = ("/v1/containers", "/v1/tools", "/v1/tool_calls")
_SANDBOX_API = "/api"
_HEADERS = "x-session-id: ID, or x-wakegate-runtime: NAMESPACE/NAME for a new session"


def shape_of(path: str) -> ErrorShape:
    """The shape of the errors of the surface that a control path belongs to."""
    if _is_below(path, _AGENTCUBE):
        return ErrorShape.AGENTCUBE
    if _is_below(path, _OPENAI):
        return ErrorShape.OPENAI
    return ErrorShape.MCP if path == "/mcp" else ErrorShape.NATIVE


class SessionHeaderMissingError(BadRequestError):
    """The path is one of a sandbox, and the request does not say of which."""

    code = "SESSION_HEADER_MISSING"


class MethodNotAllowedError(WakegateError):
    """The path is known, and not with this method."""

    status = 405
    code = "METHOD_NOT_ALLOWED"


def unknown_answer(routes: Sequence[BaseRoute]) -> Callable[[Request, Exception], Awaitable[Response]]:
    """The handler of starlette's 404 and 405, for an app of these routes."""

    async def answer(request: Request, _: Exception) -> Response:
        path = request.url.path
        if _is_below(path, _AGENTCUBE):
            return PlainTextResponse("404 page not found", 404)
        allowed = {
            method
            for route in routes
            if route.matches(request.scope)[0] is not Match.NONE
            for method in getattr(route, "methods", None) or ()
        }
        shape = shape_of(path)
        if allowed:
            names = ", ".join(sorted(allowed))
            response = error_response(MethodNotAllowedError(f"{request.method} is not for {path}; use {names}"), shape)
            response.headers["allow"] = names
            return response
        return error_response(_not_found(path, is_named=_names_sandbox(request)), shape)

    return answer


def _not_found(path: str, *, is_named: bool) -> WakegateError:
    if is_named:  # else the request would not have come here
        return NotFoundError(
            f"the gateway's own API has no {path}; names below it never reach a sandbox. Reach a server of a sandbox"
            " that uses this name at /v1/sessions/ID/ports/PORT/..., an agent at .../invocations/..."
        )
    if _is_below(path, (_SANDBOX_API,)):
        return SessionHeaderMissingError(f"{path} is a path of a sandbox: send {_HEADERS}")
    return NotFoundError(f"the gateway has no {path}; for a path of a sandbox send {_HEADERS}")


def _names_sandbox(request: Request) -> bool:
    return any(name in request.headers for name in ("x-session-id", "x-agentcube-session-id", "x-wakegate-runtime"))


def _is_below(path: str, names: Sequence[str]) -> bool:
    return any(path == name or path.startswith(name + "/") for name in names)
