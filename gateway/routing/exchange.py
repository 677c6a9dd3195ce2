"""One request's conversation with a sandbox: bytes up, bytes down, and what happens when a side falls silent or leaves.

No timer and no extra task is made for an ordinary exchange. A ticker (`Exchanges.tick`) looks at the few that last:
after `WATCH_AFTER_S` it begins to watch for the client's leaving, and it interrupts those that broke a time limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from gateway.core.errors import RequestTimeoutError, UpstreamTimeoutError, WakegateError
from gateway.core.model import StartKind
from gateway.observability.counters import RuntimeCounters
from gateway.observability.request_record import Record
from gateway.routing.body_pipe import PIPE_FROM
from gateway.routing.cycle import GatewayCycle
from gateway.routing.headers import Headers, Request
from gateway.routing.responses import Message, Receive, Send
from gateway.routing.route import Route
from gateway.routing.upstream import UpstreamConnection

WATCH_AFTER_S = 0.1

Respond = Callable[[int, Headers, bytes], bool]


class ClientGoneError(WakegateError):
    """The client left before its answer was complete. Nobody is there to be told."""

    status = 499
    code = "CLIENT_GONE"


@dataclass(frozen=True)
class TimeLimits:
    """Longest silences of each direction and the longest whole exchange (0: none), in seconds."""

    request_idle: float
    response_idle: float
    client_read: float
    total: float


class Ticked(Protocol):
    """An exchange on the fast lane (routing/lane.py)."""

    def tick(self, now: float) -> None:
        """Change over to the ordinary way if it lasts."""
        ...


class Exchange:
    """What is under way for one request. `waits_for` names whose turn it is."""

    __slots__ = (
        "_early",
        "_reason",
        "_receive",
        "began",
        "began_exactly",
        "connection",
        "counted",
        "id_line",
        "record",
        "route",
        "sent",
        "session",
        "since",
        "start",
        "started",
        "status",
        "task",
        "upload",
        "waits_for",
        "watcher",
    )

    def __init__(self, receive: Receive, now: float) -> None:
        self._receive = receive
        self._reason: WakegateError | None = None
        self._early: Message | None = None  # what came of the body while the request was held
        self.began = now  # loop time
        self.began_exactly = perf_counter()
        self.since = now  # loop time from which the present wait counts
        self.waits_for = ""  # "client body", "client read", "sandbox"
        self.sent = False  # the sandbox has the request's head
        self.started = False  # the client has seen the response's head
        self.status = 0  # what the client was told, or would have been; 0: nothing yet
        self.start: StartKind | None = None  # how its sandbox came to be, once it has answered
        self.id_line = b""  # its x-request-id
        self.record: Record | None = None  # where somebody observes requests
        self.counted: RuntimeCounters | None = None  # where it is counted
        self.route: Route | None = None  # whose slot it holds
        self.session: bytes | None = None  # for the session header of an error
        self.connection: UpstreamConnection | None = None
        self.task = asyncio.current_task()
        self.upload: asyncio.Task[None] | None = None
        self.watcher: asyncio.Task[None] | None = None

    def interrupt(self, reason: WakegateError) -> None:
        """End it from outside, with the reason that its coroutine then raises."""
        if self._reason is None and self.task is not None:
            self._reason = reason
            self.task.cancel()

    def interrupted(self) -> WakegateError | None:
        """Called on CancelledError: our reason (which uses the cancellation up), or None if the server did it."""
        if self._reason is not None and self.task is not None:
            self.task.uncancel()
        return self._reason

    async def send_request(
        self, head: bytes, request: Request, cycle: GatewayCycle | None = None, *, is_head: bool
    ) -> None:
        """Send head and body; a body that is not here at once goes on in a task beside the response.

        `cycle` is the server's, where it is ours: a large body of known length then goes past it.
        """
        connection = self.connection
        assert connection is not None
        self.sent = True
        if not request.chunked and not request.content_length:
            connection.begin(head, is_head=is_head)
            return
        self._now_waits_for("client body")
        message = await self._first_message()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the client left while sending its request")
        body: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        if request.chunked:
            body = _chunk(body) if more else last_chunks(body)
        connection.begin(head + body, is_head=is_head)
        if more:
            left = None if request.chunked else (request.content_length or 0) - len(body)
            self.upload = asyncio.create_task(self._upload(connection, cycle, left))

    async def relay_response(self, send: Send, headers: Headers, respond: Respond | None) -> None:
        """Pass the response on as it comes. The head must be here (`connection.response_head`).

        `respond` writes a whole response at once, if the server can and the response is here.
        """
        connection = self.connection
        assert connection is not None
        if respond is not None and connection.is_whole and respond(connection.status, headers, connection.whole_body()):
            return
        loop = asyncio.get_running_loop()
        self.started = True
        await send({"type": "http.response.start", "status": connection.status, "headers": headers})
        if not connection.has_body:
            # Nothing of the body is here yet: an empty piece makes the server send the head now.
            await send({"type": "http.response.body", "body": b"", "more_body": True})
        more = True
        while more:
            self.waits_for = "sandbox"
            data, more = await connection.read()
            self.waits_for, self.since = "client read", loop.time()
            await send({"type": "http.response.body", "body": data, "more_body": more})

    def hold(self, route: Route) -> None:
        """It has a slot on this route from now on."""
        self.route = route
        self.counted = route.counted
        self.session = route.session_id_bytes

    def let_go(self, now: float) -> None:
        """Give the slot back, if it holds one. `now` in epoch seconds."""
        if self.route is not None:
            self.route.leave(now)
            self.route = None

    def close(self) -> None:
        """Stop what was started beside it; keep or cut the connection."""
        if self.watcher is not None:
            self.watcher.cancel()
        connection = self.connection
        if self.upload is not None:
            if not self.upload.done() and connection is not None:
                connection.abort()  # the answer came before the request was sent: this connection cannot be used again
            self.upload.cancel()
        if connection is not None:
            self.connection = None
            connection.finish()

    def watch(self) -> None:
        """Begin to watch for the client's leaving, unless the upload does so."""
        if self.watcher is None and self.upload is None and self.waits_for != "client body":
            self.watcher = asyncio.create_task(self._watch())

    async def _first_message(self) -> Message:
        if self._early is not None:
            message, self._early = self._early, None
            return message
        if self.watcher is not None:  # it has taken nothing yet, and must not from here on
            self.watcher.cancel()
            self.watcher = None
        return await self._receive()

    async def _upload(self, connection: UpstreamConnection, cycle: GatewayCycle | None, left: int | None) -> None:
        """The rest of the body, `left` bytes, None where it is chunked."""
        try:
            if cycle is None or left is None or left < PIPE_FROM:
                arrived = await self._piece_by_piece(connection, chunked=left is None)
            else:
                arrived = await self._through_pipe(connection, cycle, left)
        except WakegateError:
            return  # the response side sees the same broken connection and says so
        if arrived:
            # All of the request is sent: what this task does from here on is no reason to give the connection up.
            self.upload, self.watcher = None, self.upload
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
            self._now_waits_for("sandbox")
            if chunked:
                body = _chunk(body) if more else last_chunks(body)
            await connection.write(body)
        return True

    async def _through_pipe(self, connection: UpstreamConnection, cycle: GatewayCycle, left: int) -> bool:
        while here := cycle.take_body():  # came since the first piece, or while this is written; goes first
            left -= len(here)
            self._now_waits_for("sandbox")
            await connection.write(here)
        if cycle.disconnected or not left:
            return not left
        self._now_waits_for("client body")
        pipe = cycle.protocol.pipe_body(left, connection.push, self._now_waits_for)
        connection.buffer_nothing()
        try:
            return await pipe.done
        finally:
            if not pipe.done.done() or pipe.done.cancelled():
                pipe.discard()
            connection.buffer_as_ever()

    def _now_waits_for(self, whom: str) -> None:
        self.waits_for, self.since = whom, asyncio.get_running_loop().time()

    async def _watch(self) -> None:
        while (message := await self._receive())["type"] != "http.disconnect":
            if not self.sent:
                self._early = message
                if message.get("more_body", False):
                    return  # the rest stays with the client until its sandbox is there
        self.interrupt(ClientGoneError("the client left before its answer was complete"))


class Exchanges:
    """All exchanges under way. `tick` is called a few times a second."""

    def __init__(self, limits: TimeLimits) -> None:
        self.active: set[Exchange] = set()
        self.lanes: set[Ticked] = set()
        self._limits = limits

    def tick(self, now: float) -> None:
        """Look at those that last. `now` in loop time."""
        for lane in list(self.lanes):
            lane.tick(now)
        for exchange in list(self.active):
            if now - exchange.began > WATCH_AFTER_S:
                exchange.watch()
                error = self._overdue(exchange, now)
                if error is not None:
                    exchange.interrupt(error)

    def _overdue(self, exchange: Exchange, now: float) -> WakegateError | None:
        limits = self._limits
        if limits.total and now - exchange.began > limits.total:
            return UpstreamTimeoutError(f"the whole exchange took longer than {limits.total:g} s")
        if exchange.waits_for == "client body" and now - exchange.since > limits.request_idle:
            return RequestTimeoutError(f"no byte of the request's body came for {limits.request_idle:g} s")
        if exchange.waits_for == "client read" and now - exchange.since > limits.client_read:
            return ClientGoneError(f"the client took no byte of its answer for {limits.client_read:g} s")
        connection = exchange.connection
        if exchange.waits_for == "sandbox" and connection is not None:
            silent = now - max(connection.progress, exchange.since)
            if silent > limits.response_idle:
                return UpstreamTimeoutError(f"the sandbox was silent for {limits.response_idle:g} s")
        return None


def last_chunks(body: bytes) -> bytes:
    """A whole body in chunked coding."""
    return _chunk(body) + b"0\r\n\r\n"


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body) if body else b""
