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

from gateway.clock import Clock
from gateway.counters import Counters
from gateway.errors import BadRequestError, UpstreamBrokenError, UpstreamConnectError, WakegateError
from gateway.model import StartKind
from gateway.routing.activator import Activator, Reservation, Route
from gateway.routing.answers import ASGIApp, Receive, Scope, Send, send_answer, send_error, send_not_found
from gateway.routing.batch import WriteBatch
from gateway.routing.cycle import GatewayCycle
from gateway.routing.exchange import WATCH_AFTER_S, ClientGoneError, Exchange, Exchanges, TimeLimits, last_chunks
from gateway.routing.headers import (
    Headers,
    Request,
    identify,
    next_hop,
    read_peer_response,
    read_request,
    read_response,
    response_lines,
)
from gateway.routing.ids import id_field, id_in, id_line
from gateway.routing.observe import Observer, Record
from gateway.routing.target import NotProxied, Target, parse
from gateway.routing.upstream import UpstreamConnection
from gateway.routing.websocket import WebSocketProxy

logger = logging.getLogger(__name__)

TICK_S = 0.1
_NOTHING: dict[str, Any] = {}
_SHOWN = {"first_byte": b"upstream"}  # Server-Timing's word for it
Stages = list[tuple[str, float]]


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
            await _redirect(scope, send)
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
        stages = stages_of(exchange, reservation, connected, perf_counter() - connected)
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

    def fast_lane(self, cycle: GatewayCycle) -> bool:
        """Take a request that is whole, on a live route with an idle connection: no task, no future, callbacks only.

        False: it is not of that kind, and takes the ordinary way. What lasts longer than a moment changes over to it.
        """
        scope = cycle.scope
        try:
            request = read_request(scope["headers"], scope["client"], scope["scheme"])
            target = parse(scope["raw_path"], request.session, request.runtime)
            if type(target) is not Target:
                return False
            route = self._activator.live(target, self._clock.now())
        except WakegateError:
            return False
        if route is None:
            return False
        if route.peer:
            route.leave(self._clock.now())
            return False
        connection = (route.pool if not route.branches else route.pool_for(target.path)).take()
        if connection is None:
            route.leave(self._clock.now())
            return False
        record = cycle.record
        line = identify(request, record.traceparent if record is not None else b"")
        if record is not None:
            record.request_id = id_in(line)
            record.saw(route.session_id, route.runtime, StartKind.LIVE)
        lane = Lane(self, cycle, route, connection, line)
        connection.on_answer = lane.answered
        body = bytes(cycle.body)
        if request.chunked:
            body = last_chunks(body)
        connection.begin(
            request_head(scope, request, route, target) + body, is_head=scope["method"] == "HEAD", batch=self.batch
        )
        self._exchanges.lanes.add(lane)
        return True

    def leave_lane(self, lane: Lane) -> None:
        """The lane's request is answered: its connection and its slot are free again."""
        self._exchanges.lanes.discard(lane)
        lane.connection.finish()
        lane.route.leave(self._clock.now())

    def change_over(self, lane: Lane) -> None:
        """The lane's request is no quick one: the rest of it goes the ordinary way, in a task."""
        self._exchanges.lanes.discard(lane)
        lane.connection.on_answer = None

        async def rest(scope: Any, receive: Any, send: Any) -> None:
            exchange = Exchange(receive, lane.began)
            exchange.began_exactly = lane.began_exactly
            exchange.id_line = lane.id_line
            exchange.record = lane.cycle.record
            exchange.hold(lane.route)
            exchange.connection = lane.connection
            exchange.waits_for = "sandbox"
            await self._settle(
                scope, send, exchange, self._answer(scope, send, exchange, lane.route, None, lane.began_exactly)
            )

        lane.cycle.body = bytearray()  # it was sent
        lane.cycle.start(rest)

    async def _dial(
        self, exchange: Exchange, route: Route, reservation: Reservation | None, target: Target
    ) -> Reservation:
        """A new connection. A sandbox that is gone is replaced once: nothing was sent to it."""
        try:
            exchange.connection = await route.pool_for(target.path).dial()
            return reservation or Reservation(route, StartKind.LIVE)
        except UpstreamConnectError as error:
            if not error.gone:
                raise
            logger.warning("session %s: %s; it is replaced", route.session_id, error)
        exchange.let_go(self._clock.now())
        reservation = await self._activator.replace(route, target)
        exchange.hold(reservation.route)
        exchange.connection = await reservation.route.pool_for(target.path).dial()
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


class Lane:
    """A request on the fast lane: `answered` is called when its response's head, or its failure, is here."""

    __slots__ = ("_is_head", "_proxy", "began", "began_exactly", "connection", "cycle", "id_line", "route")

    def __init__(
        self, proxy: Proxy, cycle: GatewayCycle, route: Route, connection: UpstreamConnection, id_line: bytes
    ) -> None:
        self._proxy = proxy
        self.id_line = id_line
        self.cycle = cycle
        self._is_head = cycle.scope["method"] == "HEAD"
        self.route = route
        self.connection = connection
        self.began = cycle.protocol.loop.time()
        self.began_exactly = perf_counter()

    def answered(self) -> None:
        """Answer the client if the whole response is here."""
        connection = self.connection
        if connection.is_whole and not connection.failed and not self._is_head:
            lines = response_lines(connection.headers)
            lines.append(self.route.live_lines)
            lines.append(self.id_line)
            took = perf_counter() - self.began_exactly
            lines.append(b"server-timing: upstream;dur=%.3f\r\n" % (took * 1e3))
            if self.cycle.respond_lines(connection.status, lines, connection.whole_body(), self._proxy.batch):
                counted = self.route.counted
                counted.live[connection.status] += 1
                counted.quick.observe(took)
                self._proxy.leave_lane(self)
                return
        self._proxy.change_over(self)

    def tick(self, now: float) -> None:
        """Called a few times a second with the loop's time."""
        if now - self.began > WATCH_AFTER_S:
            self._proxy.change_over(self)


def request_head(scope: Scope, request: Request, route: Route, target: Target) -> bytes:
    """The head as the sandbox gets it, or the gateway that has the session.

    Raises UnavailableError for a request that went in circles between gateways.
    """
    query: bytes = scope["query_string"]
    path = target.path
    if route.peer:
        path = scope["raw_path"]
        request.lines.append(next_hop(request))
    return b"%b %b%b HTTP/1.1\r\n%b%b\r\n" % (
        scope["method"].encode("ascii"),
        path,
        b"?" + query if query else b"",
        b"".join(request.lines),
        route.head,
    )


def response_fields(headers: Headers, route: Route, start: StartKind, stages: Stages) -> Headers:
    """What goes on to the client of the sandbox's fields; whose it is, how its sandbox came to be, where time went."""
    fields = read_response(headers)
    fields += route.fields
    shown = [b"%b;dur=%.3f" % (_SHOWN.get(name) or name.encode("ascii"), seconds * 1e3) for name, seconds in stages]
    fields.append((b"server-timing", b", ".join(shown)))
    fields.append((b"x-wakegate-start", start.value.encode("ascii")))
    return fields


def record_of(scope: Scope) -> Record | None:
    """The record of a request that somebody observes."""
    cycle = scope.get("extensions", _NOTHING).get("wakegate.cycle")
    return None if cycle is None else cycle.record


def stages_of(exchange: Exchange, reservation: Reservation | None, connected: float, first_byte: float) -> Stages:
    """The stages of a request in their order, seconds; those that such a start does not have are left out."""
    if reservation is None:
        return [("first_byte", first_byte)]
    made = reservation.start is not StartKind.LIVE
    stages = [("queue", reservation.queue_s)]
    if made:
        stages.append(("claim", reservation.claim_s))
    if reservation.restore_s:
        stages.append(("restore", reservation.restore_s))
    before = sum(seconds for _, seconds in stages)
    stages.append(("connect", max(0.0, connected - exchange.began_exactly - before)))
    stages.append(("first_byte", first_byte))
    return stages


async def _redirect(scope: Scope, send: Send) -> None:
    query: bytes = scope["query_string"]
    location = scope["raw_path"] + b"/" + (b"?" + query if query else b"")
    status = 301 if scope["method"] in ("GET", "HEAD") else 307
    await send_answer(send, status, [(b"location", location)], b"")
