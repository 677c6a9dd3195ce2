"""Letting web pages of `--allowed-origins` read answers: Cross-Origin Resource Sharing (the Fetch standard, 3.3).

One rule for all surfaces and for what sandboxes answer, so a sandbox's own Access-Control-* fields end here. The origin
is named, never `*`. Credentials are never allowed: the gateway knows nobody by a cookie, and a page that has a key
sends it in Authorization, which a preflight permits like any other field.
"""

from __future__ import annotations

import re

from gateway.routing.request_ids import id_field
from gateway.routing.responses import Headers, Message, Send

MAX_AGE_S = 600  # how long a browser may go without asking again; what it then sends is judged all the same
_MAX_NAMES = 64
_MAX_NAMES_BYTES = 2048
_MAX_METHOD_BYTES = 32

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# A page reads no other fields than these and the few that the standard always shows.
_EXPOSED = b", ".join((
    b"accept-ranges", b"allow", b"content-disposition", b"content-encoding", b"content-range", b"etag",
    b"idempotency-replayed", b"link", b"location", b"mcp-protocol-version", b"mcp-session-id", b"retry-after",
    b"server-timing", b"x-agentcube-session-id", b"x-request-id", b"x-session-id", b"x-wakegate-restored",
    b"x-wakegate-start",
))  # fmt: skip


def is_preflight(method: str, headers: Headers) -> bool:
    """Whether a browser asks ahead of a page's request. The request has an Origin."""
    return method == "OPTIONS" and _field(headers, b"access-control-request-method") is not None


async def answer_preflight(send: Send, origin: bytes, headers: Headers, id_line: bytes) -> None:
    """The answer to a preflight of an origin that may: what it asked for, as far as that is well-formed and bounded."""
    fields = [*_preflight_fields(origin, headers), id_field(id_line)]
    await send({"type": "http.response.start", "status": 204, "headers": fields})
    await send({"type": "http.response.body", "body": b""})


def readable(send: Send, origin: bytes) -> Send:
    """`send` for a request of a page that may read its answer."""

    async def send_readable(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [each for each in message["headers"] if not each[0].lower().startswith(b"access-control-")]
            message = {**message, "headers": kept + _answer_fields(origin, kept)}
        await send(message)

    return send_readable


def _preflight_fields(origin: bytes, headers: Headers) -> Headers:
    fields: Headers = [
        (b"access-control-allow-origin", origin),
        (b"vary", b"origin, access-control-request-method, access-control-request-headers"),
        (b"access-control-max-age", b"%d" % MAX_AGE_S),
    ]
    method = _field(headers, b"access-control-request-method") or b""
    if len(method) <= _MAX_METHOD_BYTES and _TOKEN.fullmatch(method):
        fields.append((b"access-control-allow-methods", method))
    if names := _names(_field(headers, b"access-control-request-headers") or b""):
        fields.append((b"access-control-allow-headers", b", ".join(names)))
    return fields


def _answer_fields(origin: bytes, others: Headers) -> Headers:
    fields: Headers = [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", _EXPOSED)]
    # A cache that kept the answer for one origin would give it to another, whose browser then refuses it.
    if not any(name.lower() == b"vary" and b"origin" in _list(value.lower()) for name, value in others):
        fields.append((b"vary", b"origin"))
    return fields


def _names(value: bytes) -> list[bytes]:
    """The field names in a list; none unless all are well-formed and few."""
    names = _list(value) if len(value) <= _MAX_NAMES_BYTES else []
    return names if len(names) <= _MAX_NAMES and all(_TOKEN.fullmatch(name) for name in names) else []


def _list(value: bytes) -> list[bytes]:
    return [each.strip(b" \t") for each in value.split(b",")]


def _field(headers: Headers, name: bytes) -> bytes | None:
    return next((value for key, value in headers if key == name), None)
