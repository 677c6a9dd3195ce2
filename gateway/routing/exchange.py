"""One request's conversation with a sandbox on the slow path: bytes both ways, idle timeouts, and clients that leave.

An exchange that is answered at once costs no timer and no further task. The ticker looks at those that last: `tick`
begins to watch for a client that leaves after WATCH_AFTER_S, and interrupts an exchange that is over a time limit.
"""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter

from gateway.core.errors import WakegateError
from gateway.core.model import StartKind
from gateway.observability.counters import RuntimeCounters
from gateway.observability.request_record import Record
from gateway.routing.body_pipe import PIPE_FROM_BYTES, Write
from gateway.routing.connection import CHUNKED, UpstreamConnection
from gateway.routing.cycle import GatewayCycle
from gateway.routing.incoming import Incoming
from gateway.routing.read_ahead import ReadAhead
from gateway.routing.request_fields import Headers, Request
from gateway.routing.reservation import Reservation
from gateway.routing.responses import Message, Receive, Send
from gateway.routing.route import Route
from gateway.routing.target import Target
from gateway.routing.time_limits import ClientGoneError, TimeLimits

logger = logging.getLogger(__name__)

WATCH_AFTER_S = 0.1


class Exchange:
    """What is under way for one request. State: what is held for it, and which party it waits for.

    `waits_for` is "client body", "client read", "sandbox", or empty while the request is held.
    """

    __slots__ = (
        "_ahead", "_cycle", "_early", "_held", "_limits", "_reason", "_receive", "_since", "_task", "_upload",
        "_watcher", "began", "began_exactly", "connected", "connection", "counted", "id_line", "made_session",
        "passed_on", "record", "reservation", "route", "sends_only", "sent", "session", "start", "started", "status",
        "waits_for",
    )  # fmt: skip

    def __init__(
        self,
        receive: Receive,
        incoming: Incoming,
        cycle: GatewayCycle | None,
        counted: RuntimeCounters,
        limits: TimeLimits,
    ) -> None:
        """Take over what `incoming` holds. `cycle`: the server's, where it is ours; `counted`: the target's runtime's.

        Called in the task that serves the request.
        """
        session, target = incoming.request.session, incoming.target
        if session is None and type(target) is Target and target.session_id is not None:
            session = target.session_id.encode("ascii")
        self._receive = receive
        self._cycle = cycle
        self.sends_only = incoming.reader is not None  # `send` adds to the answer, so no way around it
        self.made_session = type(target) is Target and target.session_id is None  # one that only its answer names
        self.passed_on = incoming.request.hops > 0  # by another gateway, whose client it is
        self._limits = limits
        self._reason: WakegateError | None = None
        self._early: Message | None = None  # what came of the body while the request was held
        self._ahead: ReadAhead | None = None  # what counts the bytes of that, where they were wanted before it was sent
        self._held = 0
        self._since = incoming.began  # loop time from which the present wait counts
        self._task = asyncio.current_task()
        self._upload: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.began = incoming.began  # loop time
        self.began_exactly = incoming.began_exactly
        self.connected = incoming.began_exactly  # time.perf_counter when it had a connection
        self.waits_for = ""
        self.started = False  # the client has seen the response's head
        self.status = 0  # what the client was answered, or would have been; 0: nothing yet
        self.start: StartKind | None = None  # how its sandbox came to be, once it has answered
        self.id_line = incoming.id_line
        self.record: Record | None = None if cycle is None else cycle.record
        self.counted = counted
        self.session = session  # for the session header of an error
        self.route: Route | None = None  # whose slot it holds
        self.reservation: Reservation | None = None  # None: the route was live, with a free slot and an idle connection
        self.connection = incoming.connection
        self.sent = incoming.connection is not None  # the sandbox has the request's head
        if incoming.route is not None:
            self.hold(incoming.route)
        if self.sent:
            self.waits_for = "sandbox"

    @property
    def client_left(self) -> bool:
        """Whether the client's connection is known to be closed."""
        return self._cycle is not None and self._cycle.disconnected

    def interrupt(self, reason: WakegateError) -> None:
        """End it from outside, with the reason that its coroutine then raises."""
        if self._reason is None and self._task is not None:
            self._reason = reason
            self._task.cancel()

    def interrupted(self) -> WakegateError | None:
        """Called on CancelledError: our reason (which uses the cancellation up), or None if the server did it."""
        if self._reason is not None and self._task is not None:
            self._task.uncancel()
        return self._reason

    async def read_ahead(self, ahead: ReadAhead, request: Request) -> bytes:
        """The whole body, before the request is sent; empty unless it begins as a JSON object does.

        Raises TooLargeError, QueueFullError, ClientGoneError.
        """
        if not request.chunked and not request.content_length:
            return b""
        self._ahead = ahead
        self._now_waits_for("client body")
        self._early = await ahead.read(self._first_message, self._hold_ahead)
        self.waits_for = ""
        return b"" if self._early["more_body"] else self._early["body"]

    def _hold_ahead(self, size: int) -> None:
        self._held += size

    def _release_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.held -= self._held
            self._held = 0

    async def send_request(self, head: bytes, request: Request, *, is_head: bool) -> None:
        """Send head and body; a body that is not here at once goes on in a task beside the response."""
        connection = self.connection
        assert connection is not None
        self.sent = True
        if not request.chunked and not request.content_length:
            connection.begin(head, is_head=is_head)
            self._now_waits_for("sandbox")
            return
        self._now_waits_for("client body")
        message = await self._first_message()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the client left while sending its request")
        self._release_ahead()
        body: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        self._show(body)
        left = CHUNKED if request.chunked else (request.content_length or 0) - len(body)
        if request.chunked:
            body = _chunk(body) if more else last_chunks(body)
        if more:
            connection.begin(head + body, owed=left, is_head=is_head)
            self._upload = asyncio.create_task(self._send_rest(connection, left))
        else:
            connection.begin(head + body, owed=max(0, left), is_head=is_head)
            self._now_waits_for("sandbox")

    async def relay_response(self, send: Send, headers: Headers) -> None:
        """Pass the response on as it comes, at once if all of it is here. Its head must be (`response_head`)."""
        connection = self.connection
        assert connection is not None
        if (
            self._cycle is not None
            and not self.sends_only
            and connection.is_whole
            and self._cycle.respond(connection.status, headers, body := connection.whole_body())
        ):
            self._count_bytes(len(body))
            return
        loop = asyncio.get_running_loop()
        self.started = True
        await send({"type": "http.response.start", "status": connection.status, "headers": headers})
        if not connection.has_body:
            # Nothing of the body is here yet: an empty piece makes the server send the head now.
            await send({"type": "http.response.body", "body": b"", "more_body": True})
        more = True
        while more:
            self.waits_for = "sandbox"  # its idle timeout counts from the connection's last byte
            data, more = await connection.read()
            self.waits_for, self._since = "client read", loop.time()
            self._count_bytes(len(data))
            await send({"type": "http.response.body", "body": data, "more_body": more})

    def _count_bytes(self, count: int) -> None:
        if self.route is not None:
            self.route.traffic.egress_bytes += count

    def hold(self, route: Route, reservation: Reservation | None = None) -> None:
        """It has a slot on this route from now on; `reservation` says how, unless the route was live."""
        self.route, self.reservation = route, reservation
        self.counted = route.counted
        self.session = route.session_id_bytes

    def use(self, connection: UpstreamConnection, reservation: Reservation | None) -> None:
        """It has this connection from now on. With `reservation`: of a sandbox that was not ready at once."""
        self.connection, self.reservation = connection, reservation
        self.connected = perf_counter()

    def answered(self) -> StartKind:
        """The sandbox's response head is here. Returns how the sandbox came to be."""
        assert self.connection is not None
        self.start = StartKind.LIVE if self.reservation is None else self.reservation.start
        self.status = self.connection.status
        return self.start

    def failed(self, error: WakegateError) -> None:
        """No whole response comes: the connection cannot be used again, and the client is answered with the error."""
        if self.connection is not None:
            self.connection.abort()
            self.connection = None
        if not self.started:
            self.status = error.status
            if self.record is not None:
                self.record.error = error

    def cut_off(self, error: WakegateError) -> bool:
        """Whether it is too late to answer with an error: the client has left, or its answer is cut off with this.

        Raises the error where only that cuts it off, under another server than ours.
        """
        if not isinstance(error, ClientGoneError) and not self.started:
            return False
        if not isinstance(error, ClientGoneError):
            logger.warning("answer cut off: %s", error)
        # Without an end the client's own parser says that the answer is cut off; an end would make it whole.
        if self._cycle is not None:
            self._cycle.cut()
        elif self.started:
            raise error
        return True

    def leave_route(self, now: float) -> None:
        """Give the slot back, if it holds one. `now` in epoch seconds."""
        if self.route is not None:
            self.route.leave(now)
            self.route = None

    def close(self, now: float) -> None:
        """Stop the tasks beside it, and give back connection, slot and count. `now` in epoch seconds."""
        for task in (self._watcher, self._upload):
            if task is not None:
                task.cancel()
        self._release_ahead()
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.finish()
        self.leave_route(now)
        if self.status:
            self.counted.answer(self.start, self.status, perf_counter() - self.began_exactly)

    def tick(self, now: float) -> None:
        """Watch for a client that leaves once it lasts, and interrupt it over a time limit. `now` in loop time."""
        if now - self.began <= WATCH_AFTER_S:
            return
        comes = self._early is not None and self._early.get("more_body", False)  # the next piece is for the sandbox
        if self._watcher is None and self._upload is None and self.waits_for != "client body" and not comes:
            self._watcher = asyncio.create_task(self._watch())
        error = self._overdue(now)
        if error is not None:
            self.interrupt(error)

    async def _first_message(self) -> Message:
        if self._early is not None:
            message, self._early = self._early, None
            return message
        if self._watcher is not None:  # it has taken nothing yet, and must not from here on
            self._watcher.cancel()
            self._watcher = None
        return await self._receive()

    async def _send_rest(self, connection: UpstreamConnection, left: int) -> None:
        """The rest of the body: `left` bytes, or CHUNKED. Then watch for a client that leaves."""
        try:
            if self._cycle is None or left < PIPE_FROM_BYTES:  # CHUNKED is below it
                arrived = await self._piece_by_piece(connection, chunked=left == CHUNKED)
            else:
                arrived = await self._through_pipe(connection, self._cycle, left)
        except WakegateError:
            return  # the response side sees the same broken connection and raises
        if arrived:
            # All of the request is sent: what this task does from here on is no reason to give the connection up.
            self._upload, self._watcher = None, self._upload
            await self._watch()
        else:
            self.interrupt(ClientGoneError("the client left while sending its request"))

    async def _piece_by_piece(self, connection: UpstreamConnection, *, chunked: bool) -> bool:
        more = True
        while more:
            self._now_waits_for("client body")
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return False
            more = message.get("more_body", False)
            body: bytes = message.get("body", b"")
            self._show(body)
            self._now_waits_for("sandbox")
            if chunked:
                body = _chunk(body) if more else last_chunks(body)
            await connection.write(body)
        if chunked:
            connection.end_body()
        return True

    async def _through_pipe(self, connection: UpstreamConnection, cycle: GatewayCycle, left: int) -> bool:
        while here := cycle.take_body():  # came since the first piece, or while this is written; goes first
            left -= len(here)
            self._show(here)
            self._now_waits_for("sandbox")
            await connection.write(here)
        if cycle.disconnected or not left:
            return not left
        self._now_waits_for("client body")
        pipe = cycle.pipe_body(left, self._shown(connection.push), self._now_waits_for)
        connection.buffer_nothing()
        try:
            return await pipe.done
        finally:
            if not pipe.done.done() or pipe.done.cancelled():
                pipe.discard()
            connection.buffer_normally()

    def _show(self, piece: bytes) -> None:
        if self.record is not None and self.record.body is not None:
            self.record.body.feed(piece)

    def _shown(self, write: Write) -> Write:
        """The function, which an observer's reader of the body sees the pieces before, if there is one."""
        reader = None if self.record is None else self.record.body
        if reader is None:
            return write

        def show_and_write(piece: memoryview) -> asyncio.Future[None] | None:
            reader.feed(piece)
            return write(piece)

        return show_and_write

    def _now_waits_for(self, party: str) -> None:
        self.waits_for, self._since = party, asyncio.get_running_loop().time()

    def _overdue(self, now: float) -> WakegateError | None:
        party, since = self.waits_for, self._since
        if party == "sandbox" and self.connection is not None:
            since = max(since, self.connection.progress)  # the beginning of its turn, or the last byte either way
        elif party == "sandbox":
            party = ""  # the exchange has failed, and its client is being told
        return self._limits.exceeded(now - self.began, party, now - since)

    async def _watch(self) -> None:
        while (message := await self._receive())["type"] != "http.disconnect":
            if not self.sent:
                self._early = message
                if message.get("more_body", False):
                    return  # the rest stays in the client's socket until the sandbox is there
        self.interrupt(ClientGoneError("the client left before its answer was complete"))


def last_chunks(body: bytes) -> bytes:
    """A whole body in chunked coding."""
    return _chunk(body) + b"0\r\n\r\n"


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body) if body else b""
