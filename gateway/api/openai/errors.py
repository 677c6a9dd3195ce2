"""The shape that OpenAI's clients expect of an error: `{"error": {"message", "type", "param", "code"}}`.

Used by the tool surfaces (tools/, containers.py). `param` names the field of the request that was wrong, or is null.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.body import JSON, error_headers
from gateway.api.relay import relay
from gateway.core.errors import BadRequestError, WakegateError
from gateway.sessions.membership import ElsewhereError

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]

# https://github.com/openai/openai-openapi: `type` is free text there; these are the words their servers use.
_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


class ParamError(BadRequestError):
    """One field of the request is wrong. `param` is its path, e.g. `tool_calls[0].id`."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param


def error_document(error: WakegateError) -> dict[str, Any]:
    """The body for an error."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {
        "error": {
            "message": str(error),
            "type": kind,
            "param": getattr(error, "param", None),
            "code": error.code.lower(),
        }
    }


def guarded(handler: Handler) -> Handler:
    """The handler, its errors answered in OpenAI's shape, with the session header once a session is known."""

    async def answer(request: Request) -> Response:
        try:
            try:
                return await handler(request)
            except ElsewhereError as elsewhere:
                return await relay(request, elsewhere)
        except WakegateError as error:
            if error.status >= 500:
                logger.warning("%s %s: %s", error.status, error.code, error)
            session_id = None if error.status == 404 else getattr(request.state, "session_id", None)
            headers = {**error_headers(error), **session_headers(session_id)}
            return JSON(error_document(error), error.status, headers)

    return answer


def session_headers(session_id: str | None) -> dict[str, str]:
    """Both spellings of the session header."""
    return {} if session_id is None else {"x-session-id": session_id, "x-agentcube-session-id": session_id}
