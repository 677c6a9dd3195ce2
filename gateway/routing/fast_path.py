"""The fast lane: a request that is whole, on a live route, sent and answered from callbacks without a task of its own.

The server's protocol offers each request that is whole when its head is parsed. What lasts longer than a moment, or has
an answer that does, changes over to the ordinary way of proxy.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from time import perf_counter
from typing import Any

from gateway.core.clock import Clock
from gateway.core.errors import WakegateError
from gateway.core.model import StartKind
from gateway.routing.activator import Activator
from gateway.routing.batch import WriteBatch
from gateway.routing.cycle import GatewayCycle
from gateway.routing.exchange import WATCH_AFTER_S, Exchange, Exchanges, last_chunks
from gateway.routing.headers import identify, read_request, response_lines
from gateway.routing.heads import request_head
from gateway.routing.request_ids import id_in
from gateway.routing.responses import Scope, Send
from gateway.routing.route import Reservation, Route
from gateway.routing.target import Target, parse
from gateway.routing.upstream import UpstreamConnection

Settle = Callable[[Scope, Send, Exchange, Coroutine[Any, Any, None]], Awaitable[None]]
Answer = Callable[[Scope, Send, Exchange, Route, Reservation | None, float], Coroutine[Any, Any, None]]


class FastLane:
    """Offers itself to whole requests. `settle` and `answer`: the ordinary way, for the rest of what changes over."""

    def __init__(
        self,
        activator: Activator,
        exchanges: Exchanges,
        clock: Clock,
        batch: WriteBatch,
        settle: Settle,
        answer: Answer,
    ) -> None:
        self.batch = batch
        self._activator = activator
        self._exchanges = exchanges
        self._clock = clock
        self._settle = settle
        self._answer = answer

    def take(self, cycle: GatewayCycle) -> bool:
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

    def leave(self, lane: Lane) -> None:
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


class Lane:
    """A request on the fast lane: `answered` is called when its response's head, or its failure, is here."""

    __slots__ = ("_is_head", "_lanes", "began", "began_exactly", "connection", "cycle", "id_line", "route")

    def __init__(
        self, lanes: FastLane, cycle: GatewayCycle, route: Route, connection: UpstreamConnection, id_line: bytes
    ) -> None:
        self._lanes = lanes
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
            if self.cycle.respond_lines(connection.status, lines, connection.whole_body(), self._lanes.batch):
                counted = self.route.counted
                counted.live[connection.status] += 1
                counted.quick.observe(took)
                self._lanes.leave(self)
                return
        self._lanes.change_over(self)

    def tick(self, now: float) -> None:
        """Called a few times a second with the loop's time."""
        if now - self.began > WATCH_AFTER_S:
            self._lanes.change_over(self)
