"""The slow path, one straight line: scope -> target -> reservation -> headers -> sandbox -> bytes. Plain ASGI.

It serves what the fast path (fast_path.py) handed on, and everything under another server than ours. Requests that are
not for a sandbox go to the control app. Errors that are raised below become HTTP answers here and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Any

from structlog.contextvars import bind_contextvars

from gateway.core.clock import Clock
from gateway.core.errors import SessionNotFoundError, UpstreamBrokenError, UpstreamConnectError, WakegateError
from gateway.core.identity import NOBODY, act_as, current
from gateway.core.model import StartKind
from gateway.core.request_headers import note_headers
from gateway.identity.scope import require_use
from gateway.observability.counters import Counters
from gateway.observability.request_record import Observer
from gateway.routing.access import AccessPolicy
from gateway.routing.activator import Activator
from gateway.routing.client_rates import client_address
from gateway.routing.cors import answer_preflight, readable
from gateway.routing.cycle import GatewayCycle
from gateway.routing.exchange import Exchange
from gateway.routing.heads import request_head, response_fields, stages_of
from gateway.routing.incoming import Incoming
from gateway.routing.read_ahead import ReadAhead
from gateway.routing.request_ids import id_field, id_in
from gateway.routing.reservation import Reservation
from gateway.routing.response_headers import read_peer_response
from gateway.routing.responses import (
    ASGIApp,
    Receive,
    Scope,
    Send,
    restored_in,
    send_answer,
    send_error,
    send_not_found,
    send_redirect,
)
from gateway.routing.route import Route
from gateway.routing.sandbox_router import SandboxRouter
from gateway.routing.sandbox_sockets import SandboxSockets
from gateway.routing.target import NotProxied, Target, is_invocation
from gateway.routing.ticker import TICK_S, Ticker
from gateway.routing.time_limits import TimeLimits
from gateway.routing.url_tokens import is_page_of_port, redirect_fields
from gateway.routing.websocket import WebSocketProxy
from gateway.tasks.conversations import Conversations

logger = logging.getLogger(__name__)

_NO_EXTENSIONS: dict[str, Any] = {}


class Proxy:
    """The gateway's outermost ASGI app."""

    def __init__(
        self,
        activator: Activator,
        control: ASGIApp,
        clock: Clock,
        limits: TimeLimits,
        counters: Counters,
        access: AccessPolicy,
        observer: Observer | None = None,
        conversations: Conversations | None = None,
        sandboxes: Callable[[Ticker], SandboxRouter] | None = None,
    ) -> None:
        """`conversations`: the sessions that the bodies of agents' requests name. `sandboxes` makes the router of the
        cluster's Sandboxes, where there is one.
        """
        self.ticker = Ticker()
        self._sandboxes = None if sandboxes is None else sandboxes(self.ticker)
        self._activator = activator
        self._counters = counters
        self._control = control
        self._clock = clock
        self._limits = limits
        self.access = access
        self._conversations = conversations
        self._read_ahead = ReadAhead()
        sockets = None if self._sandboxes is None else SandboxSockets(self._sandboxes, counters)
        self._websockets = WebSocketProxy(activator, clock, counters, access, observer, control, sockets)

    def __repr__(self) -> str:
        return f"<Proxy {len(self.ticker)} exchanges, {len(self._activator.routes)} routes>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websockets(scope, receive, send)
        else:
            await self._control(scope, receive, send)

    async def run_ticker(self) -> None:
        """Tick the exchanges under way, and close connections that were idle for long, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK_S)
            now = loop.time()
            self.ticker.tick(now)
            for route in list(self._activator.routes.values()):
                for pool in route.pools():
                    if pool.idle:  # asked here, since 10,000 routes with nothing to trim are the usual case
                        pool.trim(now)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = _cycle_of(scope)
        incoming = None if cycle is None else cycle.incoming
        if incoming is None:
            record = None if cycle is None else cycle.record
            incoming = Incoming(scope, record, asyncio.get_running_loop().time(), self.access)
        target = incoming.target
        if incoming.reader is not None:
            if target is NotProxied.PREFLIGHT:
                self._counters.unrouted.answer(None, 204, 0.0)
                await answer_preflight(send, incoming.reader, scope["headers"], incoming.id_line)
                return
            send = readable(send, incoming.reader)
        if isinstance(target, WakegateError):
            await self._refuse(scope, receive, send, incoming, target)
            return
        request_id = id_in(incoming.id_line)
        bind_contextvars(request_id=request_id.decode())  # log lines of this request's task carry it
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        try:
            identity = incoming.identity
            if identity is None:
                identity = state["identity"] = await self.access.authenticate(
                    incoming.request.credential, client_address(scope), target
                )
                identity.spend()  # known in memory, the data path has spent already (incoming.py)
        except WakegateError as error:
            if cycle is not None and cycle.record is not None and target is not NotProxied.CONTROL:
                cycle.record.error = error  # of a control surface's, that one records it
            await self._unauthenticated(scope, receive, send, incoming, error)
            return
        incoming.identity = state["identity"] = identity
        act_as(identity)  # whatever this task and those that it starts do, is done for this caller
        if isinstance(target, Target) and incoming.url_token is not None and is_page_of_port(scope, target):
            fields = redirect_fields(scope, target, incoming.url_token)
            await send_answer(send, 303, [*fields, id_field(incoming.id_line)], b"")
        elif isinstance(target, Target):
            counted = self._counters.find(target.runtime)
            exchange = Exchange(receive, incoming, cycle, counted, self._limits)
            await self._serve(scope, send, exchange, incoming, target)
        elif target is NotProxied.CONTROL:
            await self._control(scope, receive, send)
        elif target is NotProxied.SANDBOX and self._sandboxes is not None:
            await self._sandboxes.serve(scope, receive, send, incoming, cycle)
        elif target is NotProxied.ADD_SLASH:
            await send_redirect(send, scope)
        else:
            await send_not_found(send)

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, incoming: Incoming, error: WakegateError
    ) -> None:
        """Answer a request that was refused by its head, in the shape of the surface that its path belongs to."""
        if incoming.was_sandbox and self._sandboxes is not None:
            await self._sandboxes.refuse(send, error, incoming)
            return
        self._counters.errors[error.code] += 1
        if incoming.was_control:
            scope.setdefault("state", {}).update(request_id=id_in(incoming.id_line), refusal=error)
            await self._control(scope, receive, send)
            return
        self._counters.unrouted.answer(None, error.status, 0.0)
        await send_error(send, error, None, incoming.id_line)

    async def _unauthenticated(
        self, scope: Scope, receive: Receive, send: Send, incoming: Incoming, error: WakegateError
    ) -> None:
        """Answer a request that comes from nobody who is known. Some operations of the control surfaces are public."""
        act_as(NOBODY)
        if incoming.target is NotProxied.CONTROL:
            scope["state"]["unauthenticated"] = error
            scope["state"].setdefault("identity", NOBODY)  # it may be known, and over its tenant's rate
            await self._control(scope, receive, send)
            return
        if incoming.target is NotProxied.SANDBOX and self._sandboxes is not None:
            await self._sandboxes.refuse(send, error, incoming)
            return
        self._counters.errors[error.code] += 1
        self._counters.unrouted.answer(None, error.status, 0.0)
        await send_error(send, error, None, incoming.id_line)

    async def _serve(self, scope: Scope, send: Send, exchange: Exchange, incoming: Incoming, target: Target) -> None:
        """Carry an exchange to its end. Whatever happens, the client is answered and what is held is given back."""
        self.ticker.add(exchange)
        try:
            if not exchange.sent:
                target = await self._send_request(scope, exchange, incoming, target)
            await self._relay_response(scope, send, exchange, target)
        except WakegateError as error:
            await self._fail(send, exchange, error)
        except asyncio.CancelledError:
            reason = exchange.interrupted()
            if reason is None:
                raise
            await self._fail(send, exchange, reason)
        finally:
            self.ticker.discard(exchange)
            # The request made its session, and no answer with the id has begun: nobody could ever use or end it.
            if exchange.made_session and exchange.client_left and not exchange.started and exchange.route:
                self._activator.end_unclaimed(exchange.route.session_id)
            exchange.close(self._clock.now())

    async def _send_request(self, scope: Scope, exchange: Exchange, incoming: Incoming, target: Target) -> Target:
        """From a target to a request that is sent, or as much of it as is here. Returns the target with its session."""
        if exchange.record is not None:
            exchange.record.saw(target.session_id, target.runtime, None)
        route = incoming.route  # the fast path's, which took a slot and found no idle connection
        if route is None:
            require_use(current(), target.path)
            route = self._activator.live(target, self._clock.now())
        reservation: Reservation | None = None
        if route is None:
            note_headers(scope["headers"])
            if target.session_id is None and is_invocation(target):
                target, reservation = await self._enter_conversation(exchange, incoming, target)
            else:
                reservation = await self._activator.reserve(target)
            route = reservation.route
        exchange.hold(route, reservation)
        connection = route.pool_for(target.path).take()
        if connection is None:
            route = await self._dial(exchange, route, reservation, target)
        else:
            exchange.use(connection, reservation)
        head = request_head(scope, incoming.request, route, target)
        await exchange.send_request(head, incoming.request, is_head=scope["method"] == "HEAD")
        return target

    async def _enter_conversation(
        self, exchange: Exchange, incoming: Incoming, target: Target
    ) -> tuple[Target, Reservation]:
        """A slot for a request that names no session in its head; its body may, where the agent's manifest says so."""
        key, conversations = target.runtime, self._conversations
        if key is None or conversations is None or not conversations.field(key):
            return target, await self._activator.reserve(target)
        body = await exchange.read_ahead(self._read_ahead, incoming.request)
        session = await conversations.session(key, body)
        if session is None:
            return target, await self._activator.reserve(target)
        exchange.made_session = False  # whoever names the conversation finds it, also if this client leaves
        target = replace(target, session_id=session)
        try:
            return target, await self._activator.reserve(target)
        except SessionNotFoundError:  # it has ended, and nothing was sent to it: the conversation goes on in a new one
            target = replace(target, session_id=await conversations.session(key, body, ended=session))
        return target, await self._activator.reserve(target)

    async def _dial(self, exchange: Exchange, route: Route, reservation: Reservation | None, target: Target) -> Route:
        """Give the exchange a new connection; returns the route it is of.

        A sandbox that is gone is replaced once: nothing was sent to it.
        """
        try:
            exchange.use(await route.dial(target.path), reservation or Reservation(route, StartKind.LIVE))
            return route
        except UpstreamConnectError as error:
            if not error.no_listener:
                raise
            logger.warning("session %s: %s; it is replaced", route.session_id, error)
        # The slot first: the new sandbox has slots of its own, and a request that waits must hold none.
        exchange.leave_route(self._clock.now())
        reservation = await self._activator.replace(route, target)
        exchange.hold(reservation.route, reservation)
        exchange.use(await reservation.route.dial(target.path), reservation)
        return reservation.route

    async def _relay_response(self, scope: Scope, send: Send, exchange: Exchange, target: Target) -> None:
        """Relay the response of a request that was sent."""
        connection, route, reservation = exchange.connection, exchange.route, exchange.reservation
        assert connection is not None
        assert route is not None
        await connection.response_head()
        route.check_token_accepted(connection.status, connection.headers, target.path)
        start = exchange.answered()
        stages = stages_of(exchange.began_exactly, reservation, exchange.connected, perf_counter() - exchange.connected)
        for name, seconds in stages:
            self._counters.stage(name, start, seconds)
        if exchange.record is not None:
            exchange.record.saw(route.session_id, route.runtime, start)
            exchange.record.stages = stages
        if route.peer:  # it has written all of these fields, and knows the times that matter
            headers = read_peer_response(connection.headers)
        else:
            headers = response_fields(connection.headers, scope, route, target, start, stages)
            if reservation is not None and reservation.restored is not None:
                headers.append((b"x-wakegate-restored", reservation.restored.encode("ascii")))
        headers.append(id_field(exchange.id_line))
        await exchange.relay_response(send, headers)
        restored = restored_in(headers) if route.peer or reservation is not None else None
        # A gateway that passed the request on knows whether its client was there to read the answer; we do not.
        if restored is not None and not exchange.client_left and not exchange.passed_on:
            self._activator.acknowledge(route.session_id, restored)

    async def _fail(self, send: Send, exchange: Exchange, error: WakegateError) -> None:
        """Answer with the error. A response that has begun can only be cut, so that the client sees it is not whole."""
        exchange.failed(error)
        self._counters.errors[error.code] += 1
        if exchange.cut_off(error):
            return
        if isinstance(error, UpstreamBrokenError):
            error = UpstreamBrokenError(
                f"{error}; its command may or may not have run, and the next request gets a live sandbox, unless the "
                "session was ended meanwhile"
            )
        await send_error(send, error, exchange.session, exchange.id_line)


def _cycle_of(scope: Scope) -> GatewayCycle | None:
    """The server's cycle of a request; None under another server than ours."""
    cycle: GatewayCycle | None = scope.get("extensions", _NO_EXTENSIONS).get("wakegate.cycle")
    return cycle
