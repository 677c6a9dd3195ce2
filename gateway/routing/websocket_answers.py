"""Answers to a WebSocket's handshake: fields of the 101, and HTTP answers in its place."""

from __future__ import annotations

from http import HTTPStatus

from websockets.exceptions import InvalidStatus
from websockets.http11 import Response

from gateway.core.errors import BadRequestError, WakegateError
from gateway.routing.heads import sandbox_fields
from gateway.routing.request_ids import id_field
from gateway.routing.response_headers import GATEWAY_FIELDS, read_peer_response, read_response
from gateway.routing.responses import Headers, Scope, Send, error_body, error_fields, session_fields
from gateway.routing.route import Route
from gateway.routing.target import Target

_STATUSES = frozenset(HTTPStatus)  # those that the server knows a phrase for


async def refuse(send: Send, error: WakegateError, session: bytes | None, line: bytes) -> None:
    """Answer with an error. `line`: the request id's header line."""
    # A request that is wrong in itself may name anything as its session.
    headers = error_fields(error) + (
        session_fields(session) if session and not isinstance(error, BadRequestError) else []
    )
    await deny(send, error.status, [*headers, id_field(line)], error_body(error))


def accepted(scope: Scope, response: Response, route: Route, target: Target, answer: Headers) -> Headers:
    """The fields of a 101 for the client: the app's own (Set-Cookie), and what there is to know of the session."""
    received = fields_of(response)
    own = without_handshake(_own_fields(received, scope, route, target))
    if not route.peer:
        return own + answer
    # The gateway that has the session knows better than this one how its sandbox came to be.
    return own + [field for field in read_peer_response(received) if field[0] in GATEWAY_FIELDS]


async def pass_refusal(
    scope: Scope, send: Send, route: Route, target: Target, error: InvalidStatus, answer: Headers
) -> None:
    """Pass on what the sandbox answered in place of an upgrade."""
    response = error.response
    await pass_answer(send, response, _own_fields(fields_of(response), scope, route, target) + answer)


async def pass_answer(send: Send, response: Response, fields: Headers) -> None:
    """The sandbox's answer in place of an upgrade, with these fields."""
    status = response.status_code if response.status_code in _STATUSES else 502
    kept = [field for field in fields if field[0] != b"content-length"]
    await deny(send, status, kept, bytes(response.body or b""))


def without_handshake(fields: Headers) -> Headers:
    """The fields of a 101 that are the application's.

    The handshake with the client is the server's: its key and extensions are not those of ours with the sandbox.
    """
    return [field for field in fields if not field[0].startswith((b"sec-websocket-", b"content-length"))]


def fields_of(response: Response) -> Headers:
    """The fields as they came."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.raw_items()]


def _own_fields(received: Headers, scope: Scope, route: Route, target: Target) -> Headers:
    return read_response(received) if route.peer else sandbox_fields(received, scope, route, target)


async def deny(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Refuse the handshake with an HTTP answer (the ASGI websocket denial response extension)."""
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
