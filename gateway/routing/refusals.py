"""Requests that are refused before the proxy sees them: what the parser did not take, and the answer to it."""

from __future__ import annotations

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway.core.errors import BadRequestError, WakegateError
from gateway.routing.responses import error_body, error_fields


class HeadTooLargeError(WakegateError):
    """A request head over the bounds."""

    status = 431
    code = "HEAD_TOO_LARGE"


def parser_problem(error: httptools.HttpParserError) -> WakegateError:
    """Why the parser stopped: an error that one of our callbacks raised, or what it says of the data itself."""
    cause = error.__context__  # httptools raises its own error over that of a callback
    if isinstance(error, httptools.HttpParserCallbackError) and isinstance(cause, WakegateError):
        return cause
    if isinstance(error, httptools.HttpParserCallbackError):
        return BadRequestError("the request's target is not a path")
    return BadRequestError(f"the request is not well-formed HTTP/1.1: {error}")


def last_answer(error: WakegateError) -> bytes:
    """The whole answer that an error makes, after which the connection is closed."""
    body = error_body(error)
    # Made without ASGI: the parser has stopped, so there is no request that an app could be called for.
    fields = [field for field in error_fields(error) if field[0] != b"connection"]
    lines = b"".join(b"%b: %b\r\n" % field for field in fields)
    head = b"%b%bcontent-length: %d\r\nconnection: close\r\n\r\n" % (STATUS_LINE[error.status], lines, len(body))
    return head + body
