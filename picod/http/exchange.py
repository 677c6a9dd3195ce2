"""One request and its answer, as ASGI has them: `receive` reads the body, `send` writes HTTP/1.1 (RFC 9112)."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from abc import abstractmethod
from http import HTTPStatus
from typing import Any

from picod.http.flow import FlowControl
from picod.http.request import ASGIApp, ClientGoneError, Headers, Scope
from picod.http.tunnel import Tunnel

_HIGH_WATER_BYTES = 256 << 10  # of a body that the app has not read, above which the socket is not read
_SMALL_BODY_BYTES = 16 << 10  # at most in one write with the head
# A body that nobody reads is still received after the answer, within these bounds: closing a socket with unread data
# sends a reset, which can destroy the answer before the client has read it (RFC 9112, 9.6).
_LINGER_S = 5.0
_LINGER_BYTES = 64 << 20

PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


class Carrier(FlowControl):
    """What an exchange needs of its connection."""

    app: ASGIApp
    tasks: set[asyncio.Task[None]]
    tunnel: Tunnel | None  # set after a request that offers an upgrade: what follows may not be HTTP

    @property
    @abstractmethod
    def has_waiting(self) -> bool:
        """Whether a pipelined request waits for this exchange to end."""

    @abstractmethod
    def next(self) -> None:
        """The present exchange is over: answer the next request, or wait for one."""


class _Date:
    """The Date header's value, made once a second."""

    second = 0
    value = b""

    @classmethod
    def now(cls) -> bytes:
        second = int(time.time())
        if second != cls.second:
            cls.second = second
            cls.value = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(second)).encode()
        return cls.value


class Exchange:
    """One request and its answer: the ASGI `receive` and `send`."""

    __slots__ = (
        "answered",
        "body",
        "bodyless",
        "chunked",
        "connection",
        "discarded",
        "ended",
        "expects",
        "head",
        "keep_alive",
        "left",
        "scope",
        "started",
        "waiter",
    )

    def __init__(self, connection: Carrier, scope: Scope, *, keep_alive: bool) -> None:
        self.connection = connection
        self.scope = scope
        self.keep_alive = keep_alive
        self.body = bytearray()
        self.ended = False  # the request came in whole
        self.started = self.answered = False
        self.bodyless = scope["method"] == "HEAD"
        self.chunked = False
        self.head = b""  # of the answer, while it waits for its body
        self.left: int | None = None  # bytes of the promised Content-Length still to come
        self.discarded = 0
        self.expects = any(name == b"expect" and value.lower() == b"100-continue" for name, value in scope["headers"])
        self.waiter: asyncio.Future[None] | None = None

    def begin(self) -> None:
        """Run the app for this request, in a task of the server."""
        task = self.connection.loop.create_task(self.run())
        self.connection.tasks.add(task)
        task.add_done_callback(self.connection.tasks.discard)

    async def run(self) -> None:
        """Call the app; whatever it does, leave the connection in a known state."""
        try:
            await self.connection.app(self.scope, self.receive, self.send)
        except ClientGoneError:
            pass
        except Exception:
            traceback.print_exc(file=sys.stderr)
        finally:
            if not self.answered:  # nothing sensible can follow on this connection
                self.connection.transport.abort()

    def feed(self, data: bytes) -> None:
        """Add a piece of the body; after the answer it is counted and dropped."""
        if self.answered:
            self.discarded += len(data)
            if self.discarded > _LINGER_BYTES:
                self.connection.transport.abort()
            return
        self.body += data
        if len(self.body) > _HIGH_WATER_BYTES:
            self.connection.transport.pause_reading()
        self.wake()

    def feed_end(self) -> None:
        """Note that the body is complete."""
        self.ended = True
        self.wake()
        if self.answered:
            self.finish()

    def wake(self) -> None:
        """Wake a waiting `receive`, which then checks the state again."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def receive(self) -> dict[str, Any]:
        """ASGI's receive: the next piece of the body; once that is over, waits until the client leaves."""
        connection = self.connection
        delivered_end = self.scope.get("picod.delivered", False)
        if self.expects and not self.started and not self.ended and not connection.closed:
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.expects = False
        # After the end of the body this waits for the disconnect, as ASGI defines it: handlers use that to notice a
        # client that leaves while a command runs.
        while not (connection.closed or self.answered or self.body or (self.ended and not delivered_end)):
            self.waiter = connection.loop.create_future()
            await self.waiter
            self.waiter = None
        if connection.closed or self.answered:
            return {"type": "http.disconnect"}
        body, self.body = bytes(self.body), bytearray()
        if not connection.has_waiting:
            connection.transport.resume_reading()
        self.scope["picod.delivered"] = self.ended
        return {"type": "http.request", "body": body, "more_body": not self.ended}

    async def send(self, message: Any) -> None:
        """ASGI's send. Returns once the write buffer is below its high-water mark. Raises ClientGoneError."""
        if self.connection.closed:
            raise ClientGoneError
        if message["type"] == "http.response.start":
            self._send_head(message["status"], message["headers"])
            if not message.get("picod.body_follows", False):
                self._flush_head()
        else:
            self._send_body(message.get("body", b""), message.get("more_body", False))
        if self.connection.is_slow and not self.answered:
            await self.connection.drain()
            if self.connection.closed:
                raise ClientGoneError

    def _send_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        assert not self.started, "the answer has begun already"
        self.started = True
        if status in (204, 304):
            self.bodyless = True
        if self.expects and not self.ended:
            self.keep_alive = False  # it is unknown whether the client still sends its body: what follows is ambiguous
        lines = [b"HTTP/1.1 %d %s" % (status, PHRASES.get(status, b""))]
        for name, value in headers:
            if name == b"content-length":
                self.left = int(value)
            elif name == b"connection" and value.lower() == b"close":
                self.keep_alive = False
                continue
            lines.append(name + b": " + value)
        if self.left is None and not self.bodyless:
            if self.scope["http_version"] == "1.0":
                self.keep_alive = False  # it has no chunks: the end of the connection is the end of the body
            else:
                self.chunked = True
                lines.append(b"transfer-encoding: chunked")
        lines.append(b"date: " + _Date.now())
        if not self.keep_alive:
            lines.append(b"connection: close")
        self.head = b"\r\n".join(lines) + b"\r\n\r\n"

    def _flush_head(self) -> None:
        if self.head:
            self.connection.transport.write(self.head)
            self.head = b""

    def _send_body(self, body: bytes | memoryview, more: bool) -> None:
        assert self.started, "the answer's head comes first"
        write = self.connection.transport.write
        if self.bodyless or not body or (len(body) > _SMALL_BODY_BYTES and not self.chunked):
            self._flush_head()
        if self.bodyless:
            pass
        elif self.chunked:
            # As one: each write wakes who reads. A chunk is copied in any case, to have its size before it.
            head, self.head = self.head, b""
            chunk = (b"%x\r\n" % len(body), body, b"\r\n") if body else ()
            if data := b"".join((head, *chunk, b"" if more else b"0\r\n\r\n")):
                write(data)
        else:
            if self.left is not None:
                self.left -= len(body)
                assert self.left >= 0, "more than the promised Content-Length"
            if body:
                head, self.head = self.head, b""
                write(head + body if head else body)  # as one, the gateway wakes once for it
        if not more:
            assert self.bodyless or not self.left, "less than the promised Content-Length"
            self.answered = True
            self.finish()

    async def take_over(self, headers: Headers) -> Tunnel:
        """Answer 101 with these headers; from then on the connection is a tunnel. Raises ClientGoneError."""
        assert not self.started, "the answer has begun already"
        while not self.ended:  # the end of a body, if there is one, comes before the tunnel
            if (await self.receive())["type"] == "http.disconnect":
                raise ClientGoneError
        assert self.connection.tunnel is not None, "the parser reports the upgrade with the request's end"
        self.started = self.answered = True
        lines = [b"HTTP/1.1 101 Switching Protocols", *(name + b": " + value for name, value in headers)]
        self.connection.transport.write(b"\r\n".join(lines) + b"\r\n\r\n")
        return self.connection.tunnel

    def finish(self) -> None:
        """After the answer: serve the next request, receive the rest of the body for a while, or close."""
        connection = self.connection
        if self.ended and self.keep_alive:
            connection.next()
        elif self.ended or self.expects:
            connection.transport.close()
        else:
            self.body.clear()
            connection.transport.resume_reading()
            connection.arm(_LINGER_S)
