"""The fast path: a whole request on a live route, sent and answered from callbacks, without a task or a future.

The server's protocol offers each request that is whole when its head is parsed. With a task per request one costs 80 us
of CPU, from callbacks 65 us, and with batched writes and no reference cycles 46 to 54 us (docs/adr/0001-data-path.md).
Rejected: callbacks for all requests, as a body that is still coming, a full slot queue or a slow client would each need
a state of their own here; the slow path (proxy.py) has those as plain awaits. So the fast path serves what needs no
wait but the one for the answer, and hands everything else on, with what it found out, at one of two points:

    before anything is sent   no live route, no free slot, no idle connection, another gateway's session, an error,
                              a page of another site that may read the answer, HEAD
    after the request is sent the answer lasts over WATCH_AFTER_S, is not whole at once, or is cut off
"""

from __future__ import annotations

from time import perf_counter

from gateway.core.clock import Clock
from gateway.core.errors import WakegateError
from gateway.core.model import StartKind
from gateway.identity.scope import require_use
from gateway.routing.access import AccessPolicy
from gateway.routing.activator import Activator
from gateway.routing.batch import WriteBatch
from gateway.routing.connection import UpstreamConnection
from gateway.routing.cycle import GatewayCycle
from gateway.routing.exchange import WATCH_AFTER_S, last_chunks
from gateway.routing.heads import PORTS, request_head
from gateway.routing.incoming import Incoming
from gateway.routing.response_headers import response_lines
from gateway.routing.route import Route
from gateway.routing.target import Target
from gateway.routing.ticker import Ticker


class FastPath:
    """Serves whole requests of live sessions. `ticker`: hands those that last to the slow path."""

    def __init__(self, activator: Activator, ticker: Ticker, clock: Clock, access: AccessPolicy) -> None:
        self.batch = WriteBatch()
        self._activator = activator
        self._ticker = ticker
        self._clock = clock
        self._access = access

    def take(self, cycle: GatewayCycle, now: float) -> Incoming | None:
        """Serve a whole request. None: it is sent; else what is known of it, for the slow path. `now` in loop time."""
        scope, record = cycle.scope, cycle.record
        incoming = Incoming(scope, record, now, self._access)
        target = incoming.target
        # A page that may read the answer needs fields in it, and an answer to HEAD has a length without a body.
        if type(target) is not Target or incoming.reader is not None or scope["method"] == "HEAD":
            return incoming
        identity = incoming.identity
        if identity is None:  # to verify a credential may take a look into the store, or a wait for an issuer's keys
            return incoming
        try:
            if not identity.uses_all_paths:
                require_use(identity, target.path)
            incoming.route = route = self._activator.live(target, self._clock.now(), identity)
        except WakegateError:  # the slow path asks again, and answers with it
            return incoming
        if route is None or route.peer:
            return incoming
        # Only runtimes with several ports have branches; the others do not pay a search through none of them.
        connection = (route.pool if not route.branches else route.pool_for(target.path)).take()
        if connection is None:  # the slow path dials one; the slot stays with the request, in incoming.route
            return incoming
        incoming.connection = connection
        if record is not None:
            record.saw(route.session_id, route.runtime, StartKind.LIVE)
            if record.body is not None:
                record.body.feed(cycle.body)
        request, body = incoming.request, cycle.body
        if request.chunked:
            owed, body = 0, last_chunks(body)
        else:
            # 0 unless the client announced more than it sent, which then must not pass as a whole request.
            owed = (request.content_length or 0) - len(body)
        exchange = FastExchange(self, cycle, incoming, route, target.path, connection)
        # The connection drops this before it calls it, so nothing refers to itself once the answer is written, and the
        # garbage collector has nothing to do.
        connection.on_answer = exchange.answered
        connection.begin(request_head(scope, request, route, target) + body, owed=owed, batch=self.batch)
        self._ticker.add(exchange)
        return None

    def end(self, exchange: FastExchange) -> None:
        """The request is answered: its connection and its slot are free again."""
        self._ticker.discard(exchange)
        exchange.connection.finish()
        exchange.route.leave(self._clock.now())

    def hand_on(self, exchange: FastExchange) -> None:
        """Have the slow path relay the answer, in a task; slot and connection go with the request."""
        self._ticker.discard(exchange)
        exchange.connection.on_answer = None
        exchange.cycle.start(exchange.incoming)


class FastExchange:
    """A request that is sent. `answered` is called once its response's head, or the connection's end, is here."""

    __slots__ = ("_fast_path", "_path", "connection", "cycle", "incoming", "route")

    def __init__(
        self,
        fast_path: FastPath,
        cycle: GatewayCycle,
        incoming: Incoming,
        route: Route,
        path: bytes,
        connection: UpstreamConnection,
    ) -> None:
        self._fast_path = fast_path
        self.cycle = cycle
        self.incoming = incoming
        self.route = route
        self._path = path
        self.connection = connection

    def answered(self) -> None:
        """Answer the client, if the whole response is here and can be written at once; else hand the request on."""
        connection = self.connection
        # 401: it may be of our own token.
        if connection.is_whole and connection.error is None and connection.status != 401:
            lines = response_lines(connection.headers)
            if lines is not None:
                route, incoming = self.route, self.incoming
                # Looked up once for header and histogram.
                took = perf_counter() - incoming.began_exactly
                lines += (
                    route.port_lines if self._path.startswith(PORTS) else route.live_lines,
                    incoming.id_line,
                    b"server-timing: upstream;dur=%.3f\r\n" % (took * 1e3),
                )
                body = connection.whole_body()
                if self.cycle.respond_lines(connection.status, lines, body, self._fast_path.batch):
                    route.counted.live[connection.status] += 1
                    route.counted.quick.observe(took)
                    route.traffic.egress_bytes += len(body)
                    self._fast_path.end(self)
                    return
        self._fast_path.hand_on(self)

    def tick(self, now: float) -> None:
        """Hand it on once it lasts: from then on it is watched for a client that leaves and for idle timeouts."""
        if now - self.incoming.began > WATCH_AFTER_S:
            self._fast_path.hand_on(self)
