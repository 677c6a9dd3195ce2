"""WebSockets through to the sandbox: two pumps between the ASGI server and a client connection of our own.

Traffic either way is activity; an open but silent socket is not (docs/architecture.md, "Activity").
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from http import HTTPStatus
from io import StringIO
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Response

from gateway.core.asked import note_headers
from gateway.core.clock import Clock
from gateway.core.errors import BadRequestError, NotFoundError, UpstreamConnectError, WakegateError
from gateway.core.identity import Identity, act_as, current
from gateway.core.model import SessionId
from gateway.identity.scope import require_use
from gateway.observability.counters import Counters
from gateway.observability.request_record import Observer, Record
from gateway.routing.access import AccessPolicy
from gateway.routing.activator import Activator
from gateway.routing.client_rates import client_address
from gateway.routing.headers import next_hop
from gateway.routing.heads import is_picods, peer_path, sandbox_fields
from gateway.routing.incoming import Incoming, raw_path
from gateway.routing.request_ids import id_field, id_line
from gateway.routing.response_headers import GATEWAY_FIELDS, read_peer_response, read_response
from gateway.routing.responses import (
    ASGIApp,
    Headers,
    Receive,
    Scope,
    Send,
    error_body,
    error_fields,
    restored_in,
    session_fields,
)
from gateway.routing.route import Reservation, Route
from gateway.routing.target import NotProxied, Target, is_jupyter
from gateway.routing.websocket_dial import MAX_MESSAGE_BYTES, dial

_STATUSES = frozenset(HTTPStatus)  # those that the server knows a phrase for
_CLOSE_CODES_NOT_SENT = (1005, 1006, 1015)  # RFC 6455 7.4.1: they stand for "none came", and are never on the wire
_CODES_OF_AN_END = (1001, 1012, 1014)  # of a server that ends, or is killed; the session's record knows why
# For one message to a sandbox that does not read. Meanwhile nothing is read of the client either, so a client that has
# left is not noticed, and without a limit its slot would never be given back.
_SEND_TIMEOUT_S = 60.0


class WebSocketProxy:
    """ASGI app for the websocket scope."""

    def __init__(
        self,
        activator: Activator,
        clock: Clock,
        counters: Counters,
        access: AccessPolicy,
        observer: Observer | None = None,
        control: ASGIApp | None = None,
    ) -> None:
        """`control`: serves the WebSockets of the control surfaces, whose handshake is not answered yet."""
        self._control = control
        self._access = access
        self._observer = observer
        self._activator = activator
        self._counters = counters
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (await receive())["type"] != "websocket.connect":
            return
        record: Record | None = None
        if self._observer is not None:
            record = Record(scope)
            try:
                self._observer.began(record)
            except WakegateError as error:
                await _refuse(send, error, None, id_line(None))
                return
        try:
            await self._serve(scope, receive, send, record)
        finally:
            if record is not None and self._observer is not None:
                record.finish(self._observer, cut=record.status == 0)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, record: Record | None) -> None:
        incoming = Incoming(scope, record, asyncio.get_running_loop().time(), self._access)
        target = incoming.target
        session = incoming.request.session
        try:
            if isinstance(target, WakegateError):
                raise target
            if target is NotProxied.CONTROL and self._control is not None and is_jupyter(raw_path(scope)):
                await self._serve_control(self._control, scope, receive, send, incoming, record)
                return
            if not isinstance(target, Target):
                raise NotFoundError(
                    "no sandbox is behind this path; a WebSocket needs a session header, an invocations or a ports path"
                )
            session = target.session_id.encode("ascii") if target.session_id else None
            identity = await self._identify(scope, incoming, record)
            require_use(identity, target.path)
            act_as(identity)
            note_headers(scope["headers"])
            reservation = await self._activator.reserve(target)
            if not await self._attempt(scope, receive, send, incoming, target, reservation, record):
                # Nothing was sent to a sandbox that is gone: it is replaced once, as for any request.
                reservation = await self._activator.replace(reservation.route, target)
                await self._attempt(scope, receive, send, incoming, target, reservation, record, last=True)
        except WakegateError as error:
            self._counters.errors[error.code] += 1
            if record is not None:
                record.status, record.error = error.status, error
            await _refuse(send, error, session, incoming.id_line)

    async def _identify(self, scope: Scope, incoming: Incoming, record: Record | None) -> Identity:
        """Who asks. Raises UnauthorizedError, LimitError."""
        identity = incoming.identity
        if identity is None:
            identity = await self._access.authenticate(
                incoming.request.credential, client_address(scope), incoming.target
            )
            identity.spend()
        if record is not None:
            record.identity = identity
        return identity

    async def _serve_control(
        self,
        control: ASGIApp,
        scope: Scope,
        receive: Receive,
        send: Send,
        incoming: Incoming,
        record: Record | None,
    ) -> None:
        """Hand a conversation to the control surfaces, and note how it was answered."""
        act_as(await self._identify(scope, incoming, record))
        note_headers(scope["headers"])
        if record is not None:
            record.path = raw_path(scope)
            named = record.path.rsplit(b"/", 2)
            record.saw(SessionId(named[1][:128].decode("latin-1")) if len(named) == 3 else None, None, None)

        async def noting(message: Any) -> None:
            if record is not None and message["type"] == "websocket.accept":
                record.status = 101
            elif record is not None and message["type"] == "websocket.http.response.start":
                record.status = message["status"]
            await send(message)

        await control(scope, receive, noting)

    async def _attempt(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        incoming: Incoming,
        target: Target,
        reservation: Reservation,
        record: Record | None,
        *,
        last: bool = False,
    ) -> bool:
        """A conversation over this reservation. False: its sandbox is gone, and the client was told nothing yet."""
        route, request = reservation.route, incoming.request
        with route.hold_for_socket():
            answer: Headers = [
                *session_fields(route.session_id_bytes), (b"x-wakegate-start", reservation.start.value.encode())
            ]  # fmt: skip
            if reservation.restored is not None:
                answer.append((b"x-wakegate-restored", reservation.restored.encode("ascii")))
            answer.append(id_field(incoming.id_line))
            if record is not None:
                record.saw(route.session_id, route.runtime, reservation.start)
            lines = request.lines if is_picods(route, target) and not route.peer else [*request.lines, *request.extra]
            if route.peer:
                target = replace(target, path=peer_path(scope, target))
                lines = [*lines, next_hop(request, route.peer.sign(current(), "GET", target.path))]
            try:
                upstream: ClientConnection | WakegateError | InvalidStatus = await dial(
                    scope, route, target, request, lines
                )
            except (WakegateError, InvalidStatus) as error:
                if isinstance(error, InvalidStatus):
                    refusal = error.response
                    fields = [(name.encode(), value.encode()) for name, value in refusal.headers.raw_items()]
                    route.check_token_accepted(refusal.status_code, fields, target.path)
                if isinstance(error, UpstreamConnectError) and error.no_listener and not last:
                    return False
                upstream = error
            status = await self._converse(scope, receive, send, route, target, upstream, incoming, answer)
            route.counted.answered[reservation.start.value, status] += 1
            if record is not None:
                record.status = status
        return True

    async def _converse(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        route: Route,
        target: Target,
        upstream: ClientConnection | WakegateError | InvalidStatus,
        incoming: Incoming,
        answer: Headers,
    ) -> int:
        """The whole conversation, or why there is none; returns the status of the handshake."""
        if isinstance(upstream, WakegateError):
            self._counters.errors[upstream.code] += 1
            await _refuse(send, upstream, route.session_id_bytes, incoming.id_line)
            return upstream.status
        if isinstance(upstream, InvalidStatus):
            await _pass_refusal(scope, send, route, target, upstream, answer)
            return upstream.response.status_code
        if upstream.response is not None:
            answer = _accepted(scope, upstream.response, route, target, answer)
        await send({"type": "websocket.accept", "subprotocol": upstream.subprotocol, "headers": answer})
        if (restored := restored_in(answer)) is not None and not incoming.request.hops:
            self._activator.acknowledge(route.session_id, restored)
        up = asyncio.create_task(self._pump_up(receive, upstream, route))
        down = asyncio.create_task(self._pump_down(upstream, send, route))
        route.counted.websockets += 1
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        finally:
            route.counted.websockets -= 1
            for pump in (up, down):
                pump.cancel()
            ended, _ = await asyncio.gather(up, down, return_exceptions=True)
            if isinstance(ended, TimeoutError):
                upstream.transport.abort()  # it would not read a close frame either
                await send({"type": "websocket.close", "code": 1011, "reason": "the sandbox does not read messages"})
            await upstream.close()
        return 101

    async def _pump_up(self, receive: Receive, upstream: ClientConnection, route: Route) -> None:
        """Raises TimeoutError when the sandbox takes nothing for _SEND_TIMEOUT_S."""
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                code = message.get("code", 1005)
                await upstream.close(1000 if code in _CLOSE_CODES_NOT_SENT else code, message.get("reason") or "")
                return
            route.touch(self._clock.now())
            data = message.get("bytes")
            try:
                async with asyncio.timeout(_SEND_TIMEOUT_S):
                    await upstream.send(data if data is not None else message["text"])
            except ConnectionClosed:
                return  # the other pump tells the client

    async def _pump_down(self, upstream: ClientConnection, send: Send, route: Route) -> None:
        try:
            while True:
                data = await _message(upstream)
                route.touch(self._clock.now())
                route.traffic.egress_bytes += len(data)
                await send({"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data})
        except ConnectionClosed as closed:
            code, reason = _closing(closed)
        if route.closed and not route.peer and code in _CODES_OF_AN_END:
            code, reason = await self._activator.why_closed(route) or (code, reason)
        await send({"type": "websocket.close", "code": code, "reason": reason})


async def _message(upstream: ClientConnection) -> str | bytes:
    """The next message of a sandbox. Raises ConnectionClosed, also for one over MAX_MESSAGE_BYTES.

    Joined here, not by `recv`, which keeps an object per fragment: a message in millions of fragments of one byte or
    none would take a hundred times its size.
    """
    text: StringIO | None = None
    data = bytearray()
    async for fragment in upstream.recv_streaming():
        if isinstance(fragment, str):
            text = text or StringIO()
            text.write(fragment)
        else:
            data += fragment
    return bytes(data) if text is None else text.getvalue()


def _closing(closed: ConnectionClosed) -> tuple[int, str]:
    """With which code and reason the client's side ends when the sandbox's side has."""
    ours, theirs = closed.sent, closed.rcvd
    if ours is not None and not closed.rcvd_then_sent and ours.code == 1009:
        return 1009, f"the sandbox sent a message of more than {MAX_MESSAGE_BYTES >> 20} MiB"
    if theirs is None:
        return 1014, "the sandbox broke the connection off"  # bad gateway; 1006 is never sent
    return 1000 if theirs.code == 1005 else theirs.code, theirs.reason


async def _refuse(send: Send, error: WakegateError, session: bytes | None, line: bytes) -> None:
    headers = error_fields(error) + (
        session_fields(session) if session and not isinstance(error, BadRequestError) else []
    )
    await _deny(send, error.status, [*headers, id_field(line)], error_body(error))


def _accepted(scope: Scope, response: Response, route: Route, target: Target, answer: Headers) -> Headers:
    """The fields of a 101 for the client: the app's own (Set-Cookie), and what there is to know of the session."""
    said = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.raw_items()]
    own = [
        field
        for field in _own_fields(said, scope, route, target)
        if not field[0].startswith((b"sec-websocket-", b"content-length"))
    ]
    if not route.peer:
        return own + answer
    # The gateway that has the session knows better than this one how its sandbox came to be.
    return own + [field for field in read_peer_response(said) if field[0] in GATEWAY_FIELDS]


def _own_fields(said: Headers, scope: Scope, route: Route, target: Target) -> Headers:
    return read_response(said) if route.peer else sandbox_fields(said, scope, route, target)


async def _pass_refusal(
    scope: Scope, send: Send, route: Route, target: Target, error: InvalidStatus, answer: Headers
) -> None:
    """What the sandbox said in place of an upgrade, as its own answer."""
    response = error.response
    said = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.raw_items()]
    fields = [field for field in _own_fields(said, scope, route, target) if field[0] != b"content-length"]
    status = response.status_code if response.status_code in _STATUSES else 502
    await _deny(send, status, fields + answer, bytes(response.body or b""))


async def _deny(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Refuse the handshake with an HTTP answer (the ASGI websocket denial response extension)."""
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
