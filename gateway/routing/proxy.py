"""The data path, one straight line: scope -> target -> reservation -> headers -> upstream -> bytes.

Plain ASGI. What is not for a sandbox goes to the control app. Errors raised below become answers here and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import Any

from gateway.clock import Clock
from gateway.errors import BadRequestError, UpstreamBrokenError, UpstreamConnectError, WakegateError
from gateway.model import StartKind
from gateway.routing.activator import Activator, Reservation, Route
from gateway.routing.answers import ASGIApp, Receive, Scope, Send, send_answer, send_error, send_not_found
from gateway.routing.exchange import ClientGoneError, Exchange, Exchanges, TimeLimits
from gateway.routing.headers import Headers, Request, read_request, read_response
from gateway.routing.target import NotProxied, Target, parse
from gateway.routing.websocket import WebSocketProxy

logger = logging.getLogger(__name__)

TICK_S = 0.1
_NOTHING: dict[str, Any] = {}


class Proxy:
    """The gateway's outermost ASGI app."""

    def __init__(self, activator: Activator, control: ASGIApp, clock: Clock, limits: TimeLimits) -> None:
        self._activator = activator
        self._control = control
        self._clock = clock
        self._exchanges = Exchanges(limits)
        self._websockets = WebSocketProxy(activator, clock)

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
                if route.pool.idle:
                    route.pool.trim(now)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            request = read_request(scope["headers"], scope["client"], scope["scheme"])
            target = parse(scope["raw_path"], request.session, request.runtime)
        except BadRequestError as error:
            await send_error(send, error, None)
            return
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
        exchange.session = request.session
        self._exchanges.active.add(exchange)
        try:
            route = self._activator.live(target, self._clock.now())
            reservation: Reservation | None = None  # stays None on the hot path: a live route with a free slot
            if route is None:
                reservation = await self._activator.reserve(target)
                route = reservation.route
            exchange.hold(route)
            exchange.connection = route.pool.take()
            if exchange.connection is None:
                reservation = await self._dial(exchange, route, reservation, target)
                route = reservation.route
            await self._converse(scope, send, exchange, request, route, reservation, target)
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

    async def _dial(
        self, exchange: Exchange, route: Route, reservation: Reservation | None, target: Target
    ) -> Reservation:
        """A new connection. A sandbox that is gone is replaced once: nothing was sent to it."""
        try:
            exchange.connection = await route.pool.dial()
            return reservation or Reservation(route, StartKind.LIVE)
        except UpstreamConnectError as error:
            if not error.gone:
                raise
            logger.warning("session %s: %s; it is replaced", route.session_id, error)
        exchange.let_go(self._clock.now())
        reservation = await self._activator.replace(route, target)
        exchange.hold(reservation.route)
        exchange.connection = await reservation.route.pool.dial()
        return reservation

    async def _converse(
        self,
        scope: Scope,
        send: Send,
        exchange: Exchange,
        request: Request,
        route: Route,
        reservation: Reservation | None,
        target: Target,
    ) -> None:
        connection = exchange.connection
        assert connection is not None
        connected = perf_counter()  # uvloop's own time has a grain of 1 ms
        query: bytes = scope["query_string"]
        request.lines.append(route.head)
        head = b"%b %b%b HTTP/1.1\r\n%b\r\n" % (
            scope["method"].encode("ascii"),
            target.path,
            b"?" + query if query else b"",
            b"".join(request.lines),
        )
        await exchange.send_request(head, request, is_head=scope["method"] == "HEAD")
        if exchange.upload is None:
            exchange.waits_for = "sandbox"
        await connection.response_head()
        headers = read_response(connection.headers)
        headers += (
            (b"x-session-id", route.session_id_bytes),
            (b"x-agentcube-session-id", route.session_id_bytes),
        )
        self._tell_timing(headers, exchange, reservation, connected, perf_counter())
        await exchange.relay_response(send, headers, scope.get("extensions", _NOTHING).get("wakegate.respond"))

    def _tell_timing(
        self, headers: Headers, exchange: Exchange, reservation: Reservation | None, connected: float, answered: float
    ) -> None:
        upstream = (answered - connected) * 1e3
        if reservation is None:
            headers.append((b"x-wakegate-start", b"live"))
            headers.append((b"server-timing", b"upstream;dur=%.3f" % upstream))
            return
        queue, claim = reservation.queue_s * 1e3, reservation.claim_s * 1e3
        connect = max(0.0, (connected - exchange.began_exactly) * 1e3 - queue - claim)
        headers.append((b"x-wakegate-start", reservation.start.value.encode("ascii")))
        headers.append((
            b"server-timing",
            b"queue;dur=%.3f, claim;dur=%.3f, connect;dur=%.3f, upstream;dur=%.3f" % (queue, claim, connect, upstream),
        ))  # fmt: skip
        if reservation.restored is not None:
            headers.append((b"x-wakegate-restored", reservation.restored.encode("ascii")))

    async def _fail(self, scope: Scope, send: Send, exchange: Exchange, error: WakegateError) -> None:
        """Say what went wrong; a response that has begun can only be cut, so that the client sees it is not whole."""
        if exchange.connection is not None:
            exchange.connection.abort()
            exchange.connection = None
        if isinstance(error, ClientGoneError) or exchange.started:
            if not isinstance(error, ClientGoneError):
                logger.warning("answer cut off: %s", error)
            cut = scope.get("extensions", {}).get("wakegate.cut")
            if cut is not None:
                cut()
            elif exchange.started:
                raise error
            return
        if isinstance(error, UpstreamBrokenError):
            error = UpstreamBrokenError(
                f"{error}; its command may or may not have run, the next request gets a live sandbox"
            )
        await send_error(send, error, exchange.session)


async def _redirect(scope: Scope, send: Send) -> None:
    query: bytes = scope["query_string"]
    location = scope["raw_path"] + b"/" + (b"?" + query if query else b"")
    status = 301 if scope["method"] in ("GET", "HEAD") else 307
    await send_answer(send, status, [(b"location", location)], b"")
