"""Answers that the data path gives by itself: errors of ours and redirects, as plain ASGI messages."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import orjson

from gateway.core.errors import WakegateError, public_message
from gateway.routing.request_ids import id_field

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

logger = logging.getLogger(__name__)


def session_fields(session_id: bytes) -> Headers:
    """Both spellings of the session header."""
    return [(b"x-session-id", session_id), (b"x-agentcube-session-id", session_id)]


def error_fields(error: WakegateError) -> Headers:
    """Content type, and Retry-After where the error says when to come back."""
    fields: Headers = [(b"content-type", b"application/json; charset=utf-8")]
    if error.status in (400, 408):
        # What we could not read, or not to its end, leaves bytes on the connection that are nobody's.
        fields.append((b"connection", b"close"))
    if error.status == 401:  # without a challenge RFC 9110 15.5.2 allows no 401
        fields.append((b"www-authenticate", b'Bearer realm="wakegate"'))
    if (seconds := error.retry_after_seconds) is not None:
        fields.append((b"retry-after", b"%d" % seconds))
    fields += [(name.encode(), value.encode()) for name, value in error.fields.items()]
    return fields


def error_body(error: WakegateError) -> bytes:
    """The data path's error shape."""
    return orjson.dumps({"error": public_message(error), "code": error.code, **error.details})


async def send_answer(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send a response with a body of known length."""
    await send(
        {"type": "http.response.start", "status": status, "headers": [*headers, (b"content-length", b"%d" % len(body))]}
    )
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: WakegateError, session_id: bytes | None, id_line: bytes) -> None:
    """An error of ours, with the request's id, and the session header once a session is known."""
    if error.status >= 500:  # what clients do wrong is theirs to see, and would fill the log
        logger.warning("%s %s: %s", error.status, error.code, error)
    fields = error_fields(error) + (session_fields(session_id) if session_id else [])
    fields.append(id_field(id_line))
    await send_answer(send, error.status, fields, error_body(error))


async def send_not_found(send: Send) -> None:
    """The answer of AgentCube's surfaces to an unknown path."""
    await send_answer(send, 404, [(b"content-type", b"text/plain")], b"404 page not found")


async def send_redirect(send: Send, scope: Scope) -> None:
    """To the same path with a slash at its end; a method other than GET and HEAD is kept."""
    query: bytes = scope["query_string"]
    location = scope["raw_path"] + b"/" + (b"?" + query if query else b"")
    # 301 where browsers may keep it; after it they would send a POST as a GET, after 307 they do not.
    status = 301 if scope["method"] in ("GET", "HEAD") else 307
    await send_answer(send, status, [(b"location", location)], b"")


def restored_in(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """What an answer's x-wakegate-restored says; None without one."""
    return next((value.decode("latin-1") for name, value in headers if name == b"x-wakegate-restored"), None)
