"""HTTP/1.1 for one ASGI app: httptools parses, an asyncio.Protocol carries.

The bottom of picod. uvicorn would do, but its import alone brings click, logging.config and multiprocessing: 80 ms and
6 MB in each sandbox, for options a sandbox never uses. Flow control goes both ways: the socket is not read while the
app has a quarter of a megabyte of body to eat, and `send` waits while the client does not take what was written.
"""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections import deque
from http import HTTPStatus
from typing import Any

import httptools

from picod.http.request import ASGIApp, ClientGoneError, Headers, Scope

_BODY_HIGH_WATER = 256 << 10
_MAX_HEAD = 256 << 10
_KEEP_ALIVE = 600.0  # seconds; longer than the gateway keeps a connection, so that it is the one who closes
_WRITE_IDLE = 300.0  # seconds a client may take nothing before it counts as gone
_SMALL_BODY = 16 << 10  # bytes that go out with the head
_LINGER = 5.0  # seconds, and
_LINGER_BYTES = 64 << 20  # bytes of an unwanted body we still take, lest a reset eat the answer on its way

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


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


class Connection(asyncio.Protocol):
    """One client. Pipelined requests are answered in order, one at a time."""

    def __init__(self, app: ASGIApp, tasks: set[asyncio.Task[None]]) -> None:
        self.app = app
        self.tasks = tasks
        self.loop = asyncio.get_running_loop()
        self.parser: Any = httptools.HttpRequestParser(self)
        self.transport: asyncio.Transport
        self.closed = False
        self.writable: asyncio.Future[None] | None = None  # set while the client does not take what we wrote
        self.exchange: Exchange | None = None  # the one being answered
        self.incoming: Exchange | None = None  # the one whose body is being read
        self.waiting: deque[Exchange] = deque()
        self.timer: asyncio.TimerHandle | None = None
        self.head_bytes = 0
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.tunnel: Tunnel | None = None  # set behind a request that offers an upgrade: what follows is no HTTP

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.arm(_KEEP_ALIVE)

    def connection_lost(self, exc: Exception | None) -> None:
        """It left, or we closed: let everything that waits for it look up."""
        self.closed = True
        self.arm(None)
        for exchange in (self.exchange, self.incoming, *self.waiting):
            if exchange is not None:
                exchange.wake()
        if self.tunnel is not None:
            self.tunnel.wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        """Too much is written and not taken."""
        if self.writable is None:
            self.writable = self.loop.create_future()

    def resume_writing(self) -> None:
        """The client takes again."""
        if self.writable is not None:
            if not self.writable.done():
                self.writable.set_result(None)
            self.writable = None

    async def drain(self) -> None:
        """Wait until the client takes what was written; one who takes nothing for too long is left."""
        if self.writable is not None:
            try:
                async with asyncio.timeout(_WRITE_IDLE):
                    await asyncio.shield(self.writable)
            except TimeoutError:
                self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse; what is no HTTP is refused."""
        if self.tunnel is not None:
            self.tunnel.feed(data)
            return
        if self.incoming is None:
            self.head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # The request was handed on as it stands. Unless its handler takes the offer up (Exchange.take_over), the
            # connection ends after its answer.
            self.tunnel = Tunnel(self)
            self.tunnel.feed(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.refuse(400, b"Invalid HTTP request received.")
        else:
            if self.incoming is None and self.head_bytes > _MAX_HEAD:
                self.refuse(431, b"The request's head is too large.")

    def refuse(self, status: int, text: bytes) -> None:
        """Say why, if no other answer is under way, and close."""
        if self.exchange is None:
            head = b"HTTP/1.1 %d %s\r\ncontent-type: text/plain; charset=utf-8\r\n" % (status, _PHRASES[status])
            self.transport.write(head + b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text))
        self.transport.close()

    def arm(self, seconds: float | None) -> None:
        """Close the connection after so many seconds; None: not at all."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    # The parser's side.

    def on_message_begin(self) -> None:
        """A request begins."""
        self.url = b""
        self.headers = []

    def on_url(self, url: bytes) -> None:
        """A piece of its target."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Its head is there: answer it, or queue it behind the one being answered."""
        raw_path, _, query = self.url.partition(b"?")
        version = self.parser.get_http_version()
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": version,
            "method": self.parser.get_method().decode("ascii"),
            "scheme": "http",
            "path": raw_path.decode("latin-1"),
            "raw_path": raw_path,
            "query_string": query.partition(b"#")[0],
            "root_path": "",
            "headers": self.headers,
        }
        # After an offered upgrade, which we never take up, the parser reads no further request.
        keep_alive = version != "1.0" and self.parser.should_keep_alive() and not self.parser.should_upgrade()
        self.arm(None)
        self.head_bytes = 0
        self.incoming = Exchange(self, scope, keep_alive=keep_alive)
        if self.parser.should_upgrade():
            scope["picod.take_over"] = self.incoming.take_over
        if self.exchange is None:
            self.exchange = self.incoming
            self.exchange.begin()
        else:
            self.waiting.append(self.incoming)
            self.transport.pause_reading()

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        assert self.incoming is not None
        self.incoming.feed(body)

    def on_message_complete(self) -> None:
        """It is there in whole."""
        assert self.incoming is not None
        exchange, self.incoming = self.incoming, None
        exchange.feed_end()

    # The exchange's side.

    def next(self) -> None:
        """The present exchange is over: answer the next request, or wait for one."""
        self.exchange = None
        if self.waiting:
            self.exchange = self.waiting.popleft()
            self.exchange.begin()
        if not self.waiting:
            self.transport.resume_reading()
        if self.exchange is None:
            self.arm(_KEEP_ALIVE)


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

    def __init__(self, connection: Connection, scope: Scope, *, keep_alive: bool) -> None:
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
        """Start to answer."""
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
        """More of the body came."""
        if self.answered:
            self.discarded += len(data)
            if self.discarded > _LINGER_BYTES:
                self.connection.transport.abort()
            return
        self.body += data
        if len(self.body) > _BODY_HIGH_WATER:
            self.connection.transport.pause_reading()
        self.wake()

    def feed_end(self) -> None:
        """The body is complete."""
        self.ended = True
        self.wake()
        if self.answered:
            self.finish()

    def wake(self) -> None:
        """Let a waiting `receive` look again."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def receive(self) -> dict[str, Any]:
        """ASGI's receive: the next piece of the body; once that is over, waits until the client leaves."""
        connection = self.connection
        delivered_end = self.scope.get("picod.delivered", False)
        if self.expects and not self.started and not self.ended and not connection.closed:
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.expects = False
        while not (connection.closed or self.answered or self.body or (self.ended and not delivered_end)):
            self.waiter = connection.loop.create_future()
            await self.waiter
            self.waiter = None
        if connection.closed or self.answered:
            return {"type": "http.disconnect"}
        body, self.body = bytes(self.body), bytearray()
        if not connection.waiting:
            connection.transport.resume_reading()
        self.scope["picod.delivered"] = self.ended
        return {"type": "http.request", "body": body, "more_body": not self.ended}

    async def send(self, message: Any) -> None:
        """ASGI's send. Returns when the client's share of the buffer has room again. Raises ClientGoneError."""
        if self.connection.closed:
            raise ClientGoneError
        if message["type"] == "http.response.start":
            self._send_head(message["status"], message["headers"])
            if not message.get("picod.body_follows", False):
                self._flush_head()
        else:
            self._send_body(message.get("body", b""), message.get("more_body", False))
        if self.connection.writable is not None and not self.answered:
            await self.connection.drain()
            if self.connection.closed:
                raise ClientGoneError

    def _send_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        assert not self.started, "the answer has begun already"
        self.started = True
        if status in (204, 304):
            self.bodyless = True
        if self.expects and not self.ended:
            self.keep_alive = False  # the client holds its body back, or not: what comes next cannot be told
        lines = [b"HTTP/1.1 %d %s" % (status, _PHRASES.get(status, b""))]
        for name, value in headers:
            if name == b"content-length":
                self.left = int(value)
            elif name == b"connection" and value.lower() == b"close":
                self.keep_alive = False
                continue
            lines.append(name + b": " + value)
        if self.left is None and not self.bodyless:
            if self.scope["http_version"] == "1.0":
                self.keep_alive = False
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
        if self.bodyless or not body or len(body) > _SMALL_BODY or self.chunked:
            self._flush_head()
        if self.bodyless:
            pass
        elif self.chunked:
            if body:
                write(b"%x\r\n%b\r\n" % (len(body), bytes(body)))
            if not more:
                write(b"0\r\n\r\n")
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
        assert self.connection.tunnel is not None, "the parser tells of the upgrade with the request's end"
        self.started = self.answered = True
        lines = [b"HTTP/1.1 101 Switching Protocols", *(name + b": " + value for name, value in headers)]
        self.connection.transport.write(b"\r\n".join(lines) + b"\r\n\r\n")
        return self.connection.tunnel

    def finish(self) -> None:
        """Both directions are done, or only the answer: go on, linger, or close."""
        connection = self.connection
        if self.ended and self.keep_alive:
            connection.next()
        elif self.ended or self.expects:
            connection.transport.close()
        else:
            self.body.clear()
            connection.transport.resume_reading()
            connection.arm(_LINGER)


class Tunnel:
    """Bytes both ways on a connection that was upgraded, with flow control both ways."""

    __slots__ = ("_buffer", "_connection", "_waiter")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._buffer = bytearray()
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, data: bytes) -> None:
        """More came from the client."""
        self._buffer += data
        if len(self._buffer) > _BODY_HIGH_WATER:
            self._connection.transport.pause_reading()
        self.wake()

    def wake(self) -> None:
        """Let a waiting `read` look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self) -> bytes:
        """What came since the last time, at least one byte; nothing once the client has left."""
        connection = self._connection
        while not self._buffer and not connection.closed:
            self._waiter = connection.loop.create_future()
            await self._waiter
            self._waiter = None
        data, self._buffer = bytes(self._buffer), bytearray()
        if not connection.closed:
            connection.transport.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        """Send, and wait until the client takes it. Raises ClientGoneError."""
        connection = self._connection
        if not connection.closed:
            connection.transport.write(data)
            await connection.drain()
        if connection.closed:
            raise ClientGoneError

    def close(self) -> None:
        """End it once what was written is sent."""
        self._connection.transport.close()
