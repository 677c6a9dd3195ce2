"""WebSockets through to the sandbox: the handshake is ours with the client, and another one with the sandbox.

`websocket_dial` makes the one with the sandbox, `websocket_answers` answers the client, `websocket_relay` passes the
messages on, and `websocket_close` says how it ended.
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass, replace
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from gateway.core.clock import Clock
from gateway.core.errors import NotFoundError, UpstreamConnectError, WakegateError
from gateway.core.identity import NOBODY, Identity, act_as, current
from gateway.core.model import SessionId
from gateway.core.request_headers import note_headers
from gateway.identity.scope import require_use
from gateway.observability.counters import Counters
from gateway.observability.request_record import Observer, Record
from gateway.routing.access import AccessPolicy
from gateway.routing.activator import Activator
from gateway.routing.client_rates import client_address
from gateway.routing.headers import next_hop
from gateway.routing.heads import is_picods, peer_path
from gateway.routing.incoming import Incoming, raw_path
from gateway.routing.request_ids import id_field, id_line
from gateway.routing.reservation import Reservation
from gateway.routing.responses import (
    ASGIApp,
    Headers,
    Receive,
    Scope,
    Send,
    restored_in,
    session_fields,
)
from gateway.routing.route import Route
from gateway.routing.sandbox_sockets import SandboxSockets
from gateway.routing.target import NotProxied, Target, is_jupyter, is_terminal_socket
from gateway.routing.websocket_answers import accepted, pass_refusal, refuse
from gateway.routing.websocket_close import closing
from gateway.routing.websocket_dial import dial
from gateway.routing.websocket_relay import Conversation, relay


@dataclass(frozen=True, slots=True)
class _Client:
    """The client's side of one WebSocket: its ASGI scope and callables, and what was read of its handshake."""

    scope: Scope
    receive: Receive
    send: Send
    incoming: Incoming
    record: Record | None


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
        sandboxes: SandboxSockets | None = None,
    ) -> None:
        """`control`: serves the WebSockets of the control surfaces, whose handshake is not answered yet.
        `sandboxes`: those of the cluster's Sandboxes that are no sessions.
        """
        self._control = control
        self._sandboxes = sandboxes
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
                await refuse(send, error, None, id_line(None))
                return
        try:
            incoming = Incoming(scope, record, asyncio.get_running_loop().time(), self._access)
            await self._serve(_Client(scope, receive, send, incoming, record))
        finally:
            # Without a status the client has left before the handshake was answered.
            if record is not None and self._observer is not None:
                record.finish(self._observer, cut=record.status == 0)

    async def _serve(self, client: _Client) -> None:
        scope, incoming, record = client.scope, client.incoming, client.record
        target = incoming.target
        session = incoming.request.session
        if self._sandboxes is not None and (incoming.was_sandbox or target is NotProxied.SANDBOX):
            await self._serve_sandbox(self._sandboxes, client)
            return
        try:
            if isinstance(target, WakegateError):
                raise target
            if target is NotProxied.CONTROL and self._control is not None:
                path = raw_path(scope)
                if is_jupyter(path) or is_terminal_socket(path):
                    await self._serve_control(self._control, client)
                    return
            if not isinstance(target, Target):
                raise NotFoundError(
                    "no sandbox is behind this path; a WebSocket needs a session header, an invocations or a ports path"
                )
            session = target.session_id.encode("ascii") if target.session_id else None
            identity = await self._identify(client)
            require_use(identity, target.path)
            act_as(identity)
            note_headers(scope["headers"])  # by them a canary is chosen for a new session
            reservation = await self._activator.reserve(target)
            if not await self._attempt(client, target, reservation):
                # Nothing was sent to a sandbox that is gone: it is replaced once, as for any request.
                reservation = await self._activator.replace(reservation.route, target)
                await self._attempt(client, target, reservation, last=True)
        except WakegateError as error:
            self._counters.errors[error.code] += 1
            if record is not None:
                record.status, record.error = error.status, error
            await refuse(client.send, error, session, incoming.id_line)

    async def _identify(self, client: _Client) -> Identity:
        """Who asks. Raises UnauthorizedError, LimitError."""
        incoming = client.incoming
        identity = incoming.identity
        if identity is None:
            identity = await self._access.authenticate(
                incoming.request.credential, client_address(client.scope), incoming.target
            )
            identity.spend()
        if client.record is not None:
            client.record.identity = identity
        return identity

    async def _serve_sandbox(self, sandboxes: SandboxSockets, client: _Client) -> None:
        """A conversation with a Sandbox that is no session, or why there is none."""
        incoming, record = client.incoming, client.record
        try:
            if isinstance(incoming.target, WakegateError):
                raise incoming.target
            act_as(await self._identify(client))
            status = await sandboxes.converse(client.scope, client.receive, client.send, incoming, record)
            if record is not None:
                record.status = status
        except WakegateError as error:
            self._counters.errors[error.code] += 1
            if record is not None:
                record.status, record.error = error.status, error
            await sandboxes.refuse(client.send, error, incoming)

    async def _serve_control(self, control: ASGIApp, client: _Client) -> None:
        """Hand a conversation to the control surfaces, and note how it was answered."""
        scope, record = client.scope, client.record
        path = raw_path(scope)
        if client.incoming.request.credential is None and is_terminal_socket(path):
            act_as(NOBODY)
            scope.setdefault("state", {})["authenticate"] = functools.partial(self._admit, client)
        else:
            act_as(await self._identify(client))
        note_headers(scope["headers"])
        if record is not None:
            record.path = path
            session = _session_in(path)
            record.saw(SessionId(session[:128].decode("latin-1")) if session else None, None, None)

        async def noting(message: Any) -> None:
            if record is not None and message["type"] == "websocket.accept":
                record.status = 101
            elif record is not None and message["type"] == "websocket.http.response.start":
                record.status = message["status"]
            await client.send(message)

        await control(scope, client.receive, noting)

    async def _admit(self, client: _Client, token: str) -> None:
        """Go on as who a token names that came in a message. Raises UnauthorizedError, LimitError."""
        client.incoming.request.credential = token.encode("utf-8", "replace")
        act_as(await self._identify(client))

    async def _attempt(self, client: _Client, target: Target, reservation: Reservation, *, last: bool = False) -> bool:
        """A conversation over this reservation. False: its sandbox is gone, and the client was told nothing yet."""
        route, record = reservation.route, client.record
        # A socket has a slot like any request, for as long as it is open, but counts as activity only by its traffic.
        with route.hold_for_socket():
            if record is not None:
                record.saw(route.session_id, route.runtime, reservation.start)
            try:
                upstream: ClientConnection | WakegateError | InvalidStatus = await _dial(client, route, target)
            except InvalidStatus as error:
                fields = [(name.encode(), value.encode()) for name, value in error.response.headers.raw_items()]
                route.check_token_accepted(error.response.status_code, fields, target.path)
                upstream = error
            except WakegateError as error:
                if isinstance(error, UpstreamConnectError) and error.no_listener and not last:
                    return False
                upstream = error
            status = await self._converse(client, route, target, upstream, _session_fields(reservation, client))
            route.counted.answered[reservation.start.value, status] += 1
            if record is not None:
                record.status = status
        return True

    async def _converse(
        self,
        client: _Client,
        route: Route,
        target: Target,
        upstream: ClientConnection | WakegateError | InvalidStatus,
        answer: Headers,
    ) -> int:
        """The whole conversation, or why there is none; returns the status of the handshake."""
        scope, send, incoming = client.scope, client.send, client.incoming
        if isinstance(upstream, WakegateError):
            self._counters.errors[upstream.code] += 1
            await refuse(send, upstream, route.session_id_bytes, incoming.id_line)
            return upstream.status
        if isinstance(upstream, InvalidStatus):
            await pass_refusal(scope, send, route, target, upstream, answer)
            return upstream.response.status_code
        if upstream.response is not None:
            answer = accepted(scope, upstream.response, route, target, answer)
        await send({"type": "websocket.accept", "subprotocol": upstream.subprotocol, "headers": answer})
        # What another gateway passed on, that gateway acknowledges, once its client has the answer.
        if (restored := restored_in(answer)) is not None and not incoming.request.hops:
            self._activator.acknowledge(route.session_id, restored)
        await relay(client.receive, send, upstream, self._conversation(route))
        return 101

    def _conversation(self, route: Route) -> Conversation:
        """Traffic is activity of the session, and counts as its egress."""

        def came(size: int) -> None:
            route.touch(self._clock.now())
            route.traffic.egress_bytes += size

        return Conversation(route.counted, came, lambda closed: closing(closed, self._activator, route))


def _session_fields(reservation: Reservation, client: _Client) -> Headers:
    """What answers to a handshake say of the session and of the request."""
    fields: Headers = [
        *session_fields(reservation.route.session_id_bytes), (b"x-wakegate-start", reservation.start.value.encode())
    ]  # fmt: skip
    if reservation.restored is not None:
        fields.append((b"x-wakegate-restored", reservation.restored.encode("ascii")))
    fields.append(id_field(client.incoming.id_line))
    return fields


async def _dial(client: _Client, route: Route, target: Target) -> ClientConnection:
    """Dial the sandbox, or the gateway that has the session. Raises what `dial` raises."""
    request = client.incoming.request
    # `extra`: cookies and the like, which picod gets none of, and a peer passes on or leaves out itself.
    lines = request.lines if is_picods(route, target) and not route.peer else [*request.lines, *request.extra]
    if route.peer:
        target = replace(target, path=peer_path(client.scope, target))
        lines = [*lines, next_hop(request, route.peer.sign(current(), "GET", target.path))]
    return await dial(client.scope, route, target, request, lines)


def _session_in(path: bytes) -> bytes:
    """The session that the path of a control surface's WebSocket names; empty if it names none."""
    if is_terminal_socket(path):
        return path.rpartition(b"/")[2].rpartition(b".")[0]
    named = path.rsplit(b"/", 2)  # .../kernels/ID/channels
    return named[1] if len(named) == 3 else b""
