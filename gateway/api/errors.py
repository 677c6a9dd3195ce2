"""Turns errors into HTTP answers, in the shape of each surface.

Handlers raise a WakegateError; `answering_errors` answers it, and relays the request if another gateway owns its
session. The data path has its own error answers (gateway/routing/responses.py).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.http import JSON, session_headers
from gateway.api.loss_report import new_loss_report
from gateway.api.relay import relay
from gateway.core.errors import BadRequestError, WakegateError, public_message
from gateway.sessions.membership import ElsewhereError

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]

# https://github.com/openai/openai-openapi: `type` is free text there; these are the words their servers use.
_OPENAI_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
_JSONRPC_INVALID_REQUEST = -32600


class ErrorShape(StrEnum):
    """The body of an error; the value is the name of its schema in /openapi.json."""

    NATIVE = "Error"  # {"error": text, "code": CODE}
    AGENTCUBE = "Message"  # {"message": text}
    OPENAI = "OpenAIError"  # {"error": {"message", "type", "param", "code"}}
    AGENTSCOPE = "AgentScopeError"  # {"detail": text}
    E2B = "E2BError"  # {"code": status, "message": text}
    JUPYTER = "JupyterError"  # {"message": text, "reason": CODE}
    DIFY = "DifyError"  # {"code": status, "message": text, "data": null}
    AGENT_SANDBOX = "AgentSandboxError"  # {"detail": text, "message": text}
    OPEN_TERMINAL = "OpenTerminalError"  # {"detail": text, "error": text}
    KUBERNETES = "KubernetesStatus"  # {"kind": "Status", "status": "Failure", "message", "reason", "code"}
    MCP = "MCPMessage"  # a JSON-RPC error response without an id


class ParamError(BadRequestError):
    """A field of the request is invalid. `param` is its path, e.g. `tool_calls[0].id`."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param


def answering_errors(handler: Handler, shape: ErrorShape) -> Handler:
    """Wrap a handler: errors are answered in that shape, and requests for another gateway's session are relayed.

    Every answer, errors included, carries x-wakegate-restored if a call to the sandbox has found a loss.
    """

    async def answer(request: Request) -> Response:
        report = new_loss_report()
        response = await respond(request)
        response.headers.update(report.headers())
        return response

    async def respond(request: Request) -> Response:
        try:
            try:
                return await handler(request)
            except ElsewhereError as elsewhere:
                return await relay(request, elsewhere)
        except WakegateError as error:
            # Clients take the session header of an answer for a session that they can use, which this one is not.
            session_id = None if error.status == 404 else getattr(request.state, "session_id", None)
            return error_response(error, shape, session_id)

    return answer


def error_response(error: WakegateError, shape: ErrorShape, session_id: str | None = None) -> Response:
    """The answer to a failed request, with the session header if the session is known."""
    if error.status >= 500:
        logger.warning("%s %s: %s", error.status, error.code, error)
    headers = session_headers(session_id) | error.fields
    if error.status == 401:
        headers["www-authenticate"] = 'Bearer realm="wakegate"'
    if (seconds := error.retry_after_seconds) is not None:
        headers["retry-after"] = str(seconds)
    if error.status in (408, 413):
        headers["connection"] = "close"  # the rest of the request's body may still come
    return JSON(error_document(error, shape), error.status, headers)


def error_document(error: WakegateError, shape: ErrorShape) -> dict[str, Any]:
    """The body of an error in one surface's shape, of JSON types only."""
    return _DOCUMENTS[shape](error)


def _native(error: WakegateError) -> dict[str, Any]:
    return {"error": public_message(error), "code": error.code, **error.details}


def _agentcube(error: WakegateError) -> dict[str, Any]:
    return {"message": public_message(error)}


def _openai(error: WakegateError) -> dict[str, Any]:
    kind = _OPENAI_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    param = getattr(error, "param", None)
    return {"error": {"message": public_message(error), "type": kind, "param": param, "code": error.code.lower()}}


def _agentscope(error: WakegateError) -> dict[str, Any]:
    return {"detail": public_message(error)}


def _e2b(error: WakegateError) -> dict[str, Any]:
    return {"code": error.status, "message": public_message(error), "error_code": error.code.lower()}


def _jupyter(error: WakegateError) -> dict[str, Any]:
    return {"message": public_message(error), "reason": error.code}


def _dify(error: WakegateError) -> dict[str, Any]:
    return {"code": -error.status, "message": public_message(error), "data": None}


def _mcp(error: WakegateError) -> dict[str, Any]:
    # The HTTP status says what kind of error it is; JSON-RPC has no codes for these.
    return {"jsonrpc": "2.0", "id": None, "error": {"code": _JSONRPC_INVALID_REQUEST, "message": public_message(error)}}


def _agent_sandbox(error: WakegateError) -> dict[str, Any]:
    # Their router answers `detail`, their runtime `message`; clients show either.
    text = public_message(error)
    return {"detail": text, "message": text}


def _open_terminal(error: WakegateError) -> dict[str, Any]:
    # Its server answers `detail`, and `error` for terminals; Open WebUI shows either.
    text = public_message(error)
    return {"detail": text, "error": text}


_REASONS = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 405: "MethodNotAllowed",
    409: "Conflict", 413: "RequestEntityTooLarge", 429: "TooManyRequests", 500: "InternalError",
    503: "ServiceUnavailable", 504: "Timeout",
}  # fmt: skip


def _kubernetes(error: WakegateError) -> dict[str, Any]:
    # https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/
    taken = error.code == "ALREADY_EXISTS"
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": public_message(error),
        "reason": "AlreadyExists" if taken else _REASONS.get(error.status, "Unknown"),
        "code": error.status,
    }


_DOCUMENTS: Mapping[ErrorShape, Callable[[WakegateError], dict[str, Any]]] = {
    ErrorShape.NATIVE: _native,
    ErrorShape.AGENTCUBE: _agentcube,
    ErrorShape.OPENAI: _openai,
    ErrorShape.AGENTSCOPE: _agentscope,
    ErrorShape.E2B: _e2b,
    ErrorShape.JUPYTER: _jupyter,
    ErrorShape.DIFY: _dify,
    ErrorShape.AGENT_SANDBOX: _agent_sandbox,
    ErrorShape.OPEN_TERMINAL: _open_terminal,
    ErrorShape.KUBERNETES: _kubernetes,
    ErrorShape.MCP: _mcp,
}
