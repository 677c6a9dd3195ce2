"""The data path, one straight line: scope -> target -> reservation -> headers -> upstream -> bytes.

Plain ASGI. What is not for a sandbox goes to the control app. Errors raised below become answers here and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from time import perf_counter
from typing import Any

from structlog.contextvars import bind_contextvars

from gateway.core.clock import Clock
from gateway.core.errors import BadRequestError, UpstreamBrokenError, UpstreamConnectError, WakegateError
from gateway.core.model import StartKind
from gateway.observability.counters import Counters
from gateway.observability.request_record import Observer, Record
from gateway.routing.activator import Activator
from gateway.routing.batch import WriteBatch
from gateway.routing.exchange import ClientGoneError, Exchange, Exchanges, TimeLimits
from gateway.routing.fast_path import FastLane
from gateway.routing.headers import Request, identify, read_peer_response, read_request
from gateway.routing.heads import request_head, response_fields, stages_of
from gateway.routing.request_ids import id_field, id_in, id_line
from gateway.routing.responses import ASGIApp, Receive, Scope, Send, send_error, send_not_found, send_redirect
from gateway.routing.route import Reservation, Route
from gateway.routing.target import NotProxied, Target, parse
from gateway.routing.websocket import WebSocketProxy

logger = logging.getLogger(__name__)

TICK_S = 0.1
_NOTHING: dict[str, Any] = {}


class Proxy:
    """The gateway's outermost ASGI app."""

    def __init__(
        self,
        activator: Activator,
        control: ASGIApp,
        clock: Clock,
        limits: TimeLimits,
        counters: Counters,
        observer: Observer | None = None,
    ) -> None:
        self._activator = activator
        self._counters = counters
        self._control = control
        self._clock = clock
        self.batch = WriteBatch()
        self._exchanges = Exchanges(limits)
        self.fast_lane = FastLane(activator, self._exchanges, clock, self.batch, self._settle, self._answer)
        self._websockets = WebSocketProxy(activator, clock, counters, observer)

    def __repr__(self) -> str:
        return f"<Proxy {len(self._exchanges.active)} exchanges, {len(self._activator.routes)} routes>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websockets(scope, receive, send)
        else:
            await self._control(scope, receive, send)

    async def run_ticker(self) -> None:
        """Look after exchanges and idle connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK_S)
            now = loop.time()
            self._exchanges.tick(now)
            for route in list(self._activator.routes.values()):
                for pool in route.pools():
                    if pool.idle:
                        pool.trim(now)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        line = b""
        try:
            request = read_request(scope["headers"], scope["client"], scope["scheme"])
            line = identify(request, record.traceparent if record is not None else b"")
            target = parse(scope["raw_path"], request.session, request.runtime)
        except BadRequestError as error:
            self._counters.errors[error.code] += 1
            self._counters.unrouted.answer(None, error.status, 0.0)
            line = line or id_line(None)
            if record is not None:
                record.request_id = id_in(line)
            await send_error(send, error, None, line)
            return
        if record is not None:
            record.request_id = id_in(line)
        bind_contextvars(request_id=id_in(line).decode())  # log lines of this request's task carry it
        scope.setdefault("state", {})["request_id"] = id_in(line)
        if isinstance(target, Target):
            await self._proxy(scope, receive, send, request, target)
        elif target is NotProxied.CONTROL:
            await self._control(scope, receive, send)
        elif target is NotProxied.ADD_SLASH:
            await send_redirect(send, scope)
        else:
            await send_not_found(send)

    async def _proxy(self, scope: Scope, receive: Receive, send: Send, request: Request, target: Target) -> None:
        exchange = Exchange(receive, asyncio.get_running_loop().time())
        exchange.session = request.session or (target.session_id.encode("ascii") if target.session_id else None)
        exchange.counted = self._counters.find(target.runtime)
        exchange.id_line = request.id_line
        exchange.record = record = record_of(scope)
        if record is not None:
            record.saw(target.session_id, target.runtime, None)
        await self._settle(scope, send, exchange, self._whole(scope, send, exchange, request, target))

    async def _settle(self, scope: Scope, send: Send, exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
        """Do the work of an exchange; whatever happens, say so and give back what it holds."""
        self._exchanges.active.add(exchange)
        try:
            await work
        except WakegateError as error:
            await self._fail(scope, send, exchange, error)
        except asyncio.CancelledError:
            reason = exchange.interrupted()
            if reason is None:
                raise
            await self._fail(scope, send, exchange, reason)
        finally:
            self._exchanges.active.discard(exchange)
            exchange.close()
            exchange.let_go(self._clock.now())
            if exchange.status and exchange.counted is not None:
                took = perf_counter() - exchange.began_exactly
                exchange.counted.answer(exchange.start, exchange.status, took)

    async def _whole(self, scope: Scope, send: Send, exchange: Exchange, request: Request, target: Target) -> None:
        """From a target to the end of its response."""
        route = self._activator.live(target, self._clock.now())
        reservation: Reservation | None = None  # stays None for a live route with a free slot and an idle connection
        if route is None:
            reservation = await self._activator.reserve(target)
            route = reservation.route
        exchange.hold(route)
        exchange.connection = route.pool_for(target.path).take()
        if exchange.connection is None:
            reservation = await self._dial(exchange, route, reservation, target)
            route = reservation.route
        connected = perf_counter()  # uvloop's own time has a grain of 1 ms
        head = request_head(scope, request, route, target)
        cycle = scope.get("extensions", _NOTHING).get("wakegate.cycle")
        await exchange.send_request(head, request, cycle, is_head=scope["method"] == "HEAD")
        if exchange.upload is None:
            exchange.waits_for = "sandbox"
        await self._answer(scope, send, exchange, route, reservation, connected)

    async def _answer(
        self,
        scope: Scope,
        send: Send,
        exchange: Exchange,
        route: Route,
        reservation: Reservation | None,
        connected: float,
    ) -> None:
        """Relay the response of a request that was sent."""
        connection = exchange.connection
        assert connection is not None
        await connection.response_head()
        start = StartKind.LIVE if reservation is None else reservation.start
        stages = stages_of(exchange.began_exactly, reservation, connected, perf_counter() - connected)
        for name, seconds in stages:
            self._counters.stage(name, start, seconds)
        exchange.status, exchange.start = connection.status, start
        if exchange.record is not None:
            exchange.record.saw(route.session_id, route.runtime, start)
            exchange.record.stages = stages
        if route.peer:
            headers = [*read_peer_response(connection.headers), id_field(exchange.id_line)]
            await exchange.relay_response(send, headers, None)
            return
        headers = response_fields(connection.headers, route, start, stages)
        headers.append(id_field(exchange.id_line))
        if reservation is not None and reservation.restored is not None:
            headers.append((b"x-wakegate-restored", reservation.restored.encode("ascii")))
        cycle = scope.get("extensions", _NOTHING).get("wakegate.cycle")
        await exchange.relay_response(send, headers, None if cycle is None else cycle.respond)

    async def _dial(
        self, exchange: Exchange, route: Route, reservation: Reservation | None, target: Target
    ) -> Reservation:
        """A new connection. A sandbox that is gone is replaced once: nothing was sent to it."""
        try:
            exchange.connection = await route.dial(target.path)
            return reservation or Reservation(route, StartKind.LIVE)
        except UpstreamConnectError as error:
            if not error.gone:
                raise
            logger.warning("session %s: %s; it is replaced", route.session_id, error)
        exchange.let_go(self._clock.now())
        reservation = await self._activator.replace(route, target)
        exchange.hold(reservation.route)
        exchange.connection = await reservation.route.dial(target.path)
        return reservation

    async def _fail(self, scope: Scope, send: Send, exchange: Exchange, error: WakegateError) -> None:
        """Say what went wrong; a response that has begun can only be cut, so that the client sees it is not whole."""
        if exchange.connection is not None:
            exchange.connection.abort()
            exchange.connection = None
        self._counters.errors[error.code] += 1
        if not exchange.started:
            exchange.status = error.status
        if isinstance(error, ClientGoneError) or exchange.started:
            if not isinstance(error, ClientGoneError):
                logger.warning("answer cut off: %s", error)
            cycle = scope.get("extensions", _NOTHING).get("wakegate.cycle")
            if cycle is not None:
                cycle.cut()
            elif exchange.started:
                raise error
            return
        if isinstance(error, UpstreamBrokenError):
            error = UpstreamBrokenError(
                f"{error}; its command may or may not have run, the next request gets a live sandbox"
            )
        await send_error(send, error, exchange.session, exchange.id_line)


def record_of(scope: Scope) -> Record | None:
    """The record of a request that somebody observes."""
    cycle = scope.get("extensions", _NOTHING).get("wakegate.cycle")
    return None if cycle is None else cycle.record
