"""HTTP/1.1 for one ASGI app: an asyncio.Protocol around httptools' parser.

docs/adr/0010-picod-server.md says why this is not uvicorn. Flow control goes both ways: the socket is not read while
256 KiB of the body wait for the app, and `send` waits while the transport's buffer is full.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import httptools

from picod.http.exchange import PHRASES, Carrier, Exchange
from picod.http.request import ASGIApp, Scope
from picod.http.tunnel import Tunnel

_MAX_HEAD_BYTES = 256 << 10
_KEEP_ALIVE_S = 600.0  # longer than the gateway keeps idle connections: it closes them, never while it sends a request


class Connection(Carrier):
    """One client. Pipelined requests are answered in order, one at a time."""

    def __init__(self, app: ASGIApp, tasks: set[asyncio.Task[None]]) -> None:
        super().__init__()
        self.app = app
        self.tasks = tasks
        self.tunnel = None
        self.parser: Any = httptools.HttpRequestParser(self)
        self.exchange: Exchange | None = None  # the one being answered
        self.incoming: Exchange | None = None  # the one whose body is being read
        self.waiting: deque[Exchange] = deque()
        self.head_bytes = 0
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client connected; it has _KEEP_ALIVE_S for its first request."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.arm(_KEEP_ALIVE_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection ended, from either side; wakes everything that waits for it."""
        self.closed = True
        self.arm(None)
        for exchange in (self.exchange, self.incoming, *self.waiting):
            if exchange is not None:
                exchange.wake()
        if self.tunnel is not None:
            self.tunnel.wake()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        """asyncio: parse what came; 400 for what is not HTTP, 431 for a head that is too large."""
        if self.tunnel is not None:
            self.tunnel.feed(data)
            return
        # Only bytes of heads count: a body has its own limits, in the handlers.
        if self.incoming is None:
            self.head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # The request is being handled already. Unless its handler accepts the upgrade (Exchange.take_over), the
            # connection is closed after the answer.
            self.tunnel = Tunnel(self)
            self.tunnel.feed(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.refuse(400, b"Invalid HTTP request received.")
        else:
            if self.incoming is None and self.head_bytes > _MAX_HEAD_BYTES:
                self.refuse(431, b"The request's head is too large.")

    def refuse(self, status: int, text: bytes) -> None:
        """Answer with the reason, unless another answer has begun, and close."""
        if self.exchange is None:
            head = b"HTTP/1.1 %d %s\r\ncontent-type: text/plain; charset=utf-8\r\n" % (status, PHRASES[status])
            self.transport.write(head + b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text))
        self.transport.close()

    # Called by httptools.

    def on_message_begin(self) -> None:
        """httptools: a request begins."""
        self.url = b""
        self.headers = []

    def on_url(self, url: bytes) -> None:
        """httptools: a piece of the request's target."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: a header, its name made lower case as ASGI has it."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """httptools: the head is complete. Begin the exchange, or queue it behind the one being answered."""
        raw_path, _, query = self.url.partition(b"?")
        version = self.parser.get_http_version()
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": version,
            "method": self.parser.get_method().decode("ascii"),
            "scheme": "http",
            "path": raw_path.decode("latin-1"),  # not percent-decoded, other than ASGI has it: handlers use raw_path
            "raw_path": raw_path,
            "query_string": query.partition(b"#")[0],
            "root_path": "",
            "headers": self.headers,
        }
        # After an offered upgrade the parser reads no further request, whether or not the offer is accepted.
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
            # Reading stops with the first queued request: otherwise a client could queue as many as memory holds.
            self.waiting.append(self.incoming)
            self.transport.pause_reading()

    def on_body(self, body: bytes) -> None:
        """httptools: a piece of the request's body."""
        assert self.incoming is not None
        self.incoming.feed(body)

    def on_message_complete(self) -> None:
        """httptools: the request is complete."""
        assert self.incoming is not None
        exchange, self.incoming = self.incoming, None
        exchange.feed_end()

    # Called by the exchange.

    @property
    def has_waiting(self) -> bool:
        """Whether a pipelined request is waiting for its turn."""
        return bool(self.waiting)

    def next(self) -> None:
        """Begin the next exchange, or wait for a request; the present one is complete."""
        self.exchange = None
        if self.waiting:
            self.exchange = self.waiting.popleft()
            self.exchange.begin()
        if not self.waiting:
            self.transport.resume_reading()
        if self.exchange is None:
            self.arm(_KEEP_ALIVE_S)
