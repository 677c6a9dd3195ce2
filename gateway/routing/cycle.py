"""One request and its response on a client connection: uvicorn's cycle, leaner, and able to answer in one call.

`scope["extensions"]["wakegate.cycle"]` is the cycle: the proxy answers whole responses through it, and cuts those that
cannot be finished. Under another server the extension is absent and the proxy speaks plain ASGI.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.observability.request_record import Observer, Record
from gateway.routing.batch import WriteBatch
from gateway.routing.body_pipe import BodyPipe, Write
from gateway.routing.incoming import Incoming


class ClientConnection(Protocol):
    """The server's protocol of one client connection, as its requests see it."""

    app: Any
    transport: asyncio.Transport
    flow: FlowControl
    loop: asyncio.AbstractEventLoop
    logger: logging.Logger
    server_state: ServerState
    tasks: set[asyncio.Task[None]]
    observer: Observer | None  # told of each request

    def on_response_complete(self) -> None:
        """The response of the present request is written."""
        ...

    def pipe_body(self, left: int, write: Write, waits_for: Callable[[str], None]) -> BodyPipe:
        """Hand the `left` bytes that are still to come of the present request's body to `write`, past the parser."""
        ...


class GatewayCycle(RequestResponseCycle):
    """One request and its response. The head is written with the first piece of the body: one call, not two.

    Most requests are answered without a task, so what only a task needs is set by `start`, or has the class's value.

    Header fields are not searched for forbidden bytes again: they come from llhttp, which refused them, or from us.
    """

    task: asyncio.Task[None] | None = None
    incoming: Incoming | None = None  # what the fast path found out, when it handed the request on
    response_started = False
    chunked_encoding: bool | None = None
    expected_content_length = 0
    _head = b""

    def __init__(self, protocol: ClientConnection, scope: Any, *, keep_alive: bool) -> None:
        # Not uvicorn's __init__: its event is made by the first wait, and what only a task needs by `start`.
        self._protocol = protocol
        self.scope: Any = scope
        self.disconnected = False
        self.keep_alive = keep_alive
        self.body: Any = b""  # or a bytearray, once it came in more than one piece
        self.more_body = True
        self.response_complete = False
        self._event: asyncio.Event | None = None
        self.record: Record | None = None  # only where requests are observed
        if protocol.observer is not None:
            self.record = Record(scope)
            protocol.observer.began(self.record)

    @property
    def message_event(self) -> asyncio.Event:  # type: ignore[override]
        """Set when there is something to receive."""
        if self._event is None:
            self._event = asyncio.Event()
            if self.body or not self.more_body or self.disconnected or self.response_complete:
                self._event.set()
        return self._event

    def wake(self) -> None:
        """There is something for `receive`."""
        if self._event is not None:
            self._event.set()

    def take_body(self) -> bytes:
        """Receive what is here of the body, without waiting."""
        here, self.body = bytes(self.body), b""
        if self._event is not None and self.more_body and not self.disconnected:
            self._event.clear()
        return here

    def pipe_body(self, left: int, write: Write, waits_for: Callable[[str], None]) -> BodyPipe:
        """Hand the `left` bytes that are still to come of the body to `write`, past the parser."""
        return self._protocol.pipe_body(left, write, waits_for)

    def start(self, incoming: Incoming | None = None) -> None:
        """Run the app for this request in a task of its own. `incoming`: what the fast path knows of it."""
        protocol = self._protocol
        self.incoming = incoming
        if incoming is not None and incoming.connection is not None:
            self.body = b""  # the fast path sent it
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.logger = protocol.logger
        self.on_response = protocol.on_response_complete
        self.waiting_for_100_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in self.scope["headers"]
        )
        self.scope["extensions"] = {"wakegate.cycle": self, "websocket.http.response": {}}
        # The task leaves the set by itself in run_asgi: a done callback would cost a turn of the loop.
        self.task = protocol.loop.create_task(self.run_asgi(protocol.app))
        protocol.tasks.add(self.task)

    def respond(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """A whole response in one call. False: the client does not keep up; the caller has to `send`."""
        if self.flow.write_paused or self.response_started:
            return False
        if not self.disconnected:
            self.begin(status, headers)
            self.write_body(body, more=False)
        return True

    def respond_lines(self, status: int, lines: list[bytes], body: bytes, batch: WriteBatch) -> bool:
        """A whole response from finished header lines that name no length, with the other writes of this loop turn.

        False: the client does not keep up, wants the connection closed, or must not be sent a body, which the slow path
        deals with.
        """
        protocol = self._protocol
        # 204 and 304 have no length, which the lines below would add.
        if protocol.flow.write_paused or not self.keep_alive or status in (204, 304):
            return False
        self.response_complete = True
        if not self.disconnected:
            for name, value in protocol.server_state.default_headers:
                lines.append(b"%b: %b\r\n" % (name, value))
            lines += (b"content-length: %d\r\n\r\n" % len(body), body)
            # Joined once: a body of a few hundred KB is copied a single time on its way.
            batch.write(protocol.transport, b"".join((STATUS_LINE[status], *lines)))
            if self.record is not None:
                self.record.status, self.record.sent = status, len(body)
                self._done()
        protocol.on_response_complete()
        return True

    def cut(self) -> None:
        """Abort the connection, so that the client sees that its response is not whole."""
        self.lost()
        self._protocol.transport.abort()

    def lost(self) -> None:
        """The connection is gone, or about to be."""
        self.disconnected = True
        if self.record is not None:
            self._done(cut=True)
        self.wake()

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if self.response_started:
            self.write_body(message.get("body", b""), more=message.get("more_body", False))
        else:
            self.begin(message["status"], message["headers"])

    async def run_asgi(self, app: Any) -> None:
        try:
            await super().run_asgi(app)
        finally:
            del self.scope["extensions"]  # scope and cycle would refer to each other until a garbage collection
            if self.task is not None:
                self._protocol.tasks.discard(self.task)

    def write_body(self, body: bytes, *, more: bool) -> None:
        """A piece of the body; with the first one goes the head."""
        if self.record is not None:
            self.record.sent += len(body)
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            body = b""
        elif self.chunked_encoding:
            if body:
                body = b"%x\r\n%b\r\n" % (len(body), body)
            if not more:
                body += b"0\r\n\r\n"
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("the response's body is longer than its Content-Length")
        if self._head:
            body, self._head = self._head + body, b""
        if body:
            self.transport.write(body)
        if not more:
            self._finish()

    def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The head; it is written with the first piece of the body."""
        self.response_started = True
        self.waiting_for_100_continue = False
        lines = [STATUS_LINE[status]]
        has_connection = False
        for name, value in (*self._protocol.server_state.default_headers, *headers):
            if name == b"content-length":
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif name == b"transfer-encoding":
                self.chunked_encoding = True
            elif name == b"connection":
                has_connection = True
                self.keep_alive = self.keep_alive and value.lower() != b"close"
            lines.append(b"%b: %b\r\n" % (name, value))
        if not self.keep_alive and not has_connection:
            lines.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in (204, 304):
            if self.scope["http_version"] == "1.0":
                self.keep_alive = False  # RFC 9112 7.1: no chunked coding to 1.0, so the connection's end ends the body
                self.expected_content_length = 1 << 62
            else:
                self.chunked_encoding = True
                lines.append(b"transfer-encoding: chunked\r\n")
        if self.scope["method"] == "HEAD" or status == 304:
            self.expected_content_length = 0
        lines.append(b"\r\n")
        self._head = b"".join(lines)
        if self.record is not None:
            self.record.status = status

    def _done(self, *, cut: bool = False) -> None:
        """Hand the record out, once."""
        record, self.record = self.record, None
        if record is not None and self._protocol.observer is not None:
            record.finish(self._protocol.observer, cut=cut)

    def _finish(self) -> None:
        if self.chunked_encoding is False and self.expected_content_length:
            raise RuntimeError("the response's body is shorter than its Content-Length")
        self.response_complete = True
        if self.record is not None:
            self._done()
        self.wake()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
