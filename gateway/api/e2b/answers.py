"""Errors of envd's and the code interpreter's plain HTTP routes, as E2B writes them: `{"code": STATUS, "message"}`."""

from __future__ import annotations

from starlette.responses import Response

from gateway.api.http import JSON
from gateway.core.errors import WakegateError, public_message


def error_answer(status: int, message: str) -> Response:
    """An error of the sandbox's side."""
    return JSON({"code": status, "message": message}, status)


def wakegate_error(error: WakegateError) -> Response:
    """One of the gateway's errors."""
    answer = error_answer(error.status, public_message(error))
    if (seconds := error.retry_after_seconds) is not None:
        answer.headers["retry-after"] = str(seconds)
    return answer


def sandbox_gone(session_id: str) -> Response:
    """The answer for a sandbox that has ended, by which the SDKs know that."""
    # By 502 the SDKs know that the sandbox is gone: `is_running` is false then. 404 would be a file that is not there.
    document = {"sandboxId": session_id, "message": "The sandbox was not found", "code": 502}
    return JSON(document, 502)
