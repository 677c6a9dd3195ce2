"""Our side of the conversation with a sandbox: keep-alive HTTP/1.1 over TCP or a unix socket.

One pool per endpoint, as one pool shared by many origins searches all of its connections at every request. Written on
asyncio.Protocol and httptools because this is the hot path; docs/performance.md has the numbers beside httpx.

A connection carries one exchange at a time: `begin` and `write` send, `response_head` and `read` receive, and whoever
took the connection gives it back with `finish` (reusable) or `abort` (not).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httptools

from gateway.core.errors import UpstreamBrokenError, UpstreamConnectError
from gateway.core.model import Endpoint
from gateway.routing.batch import WriteBatch

_HIGH_WATER = 256 * 1024  # bytes of response held for a slow client before reading from the sandbox stops
_LOW_WATER = 64 * 1024
_MAX_HEAD = 128 * 1024  # bytes of response head; a hostile sandbox must not fill our memory
_IDLE_S = 30.0  # below picod's own keep-alive of 75 s, so that we close first and never write into a closing socket


class UpstreamConnection(asyncio.Protocol):
    """One connection, used by one exchange at a time."""

    __slots__ = (
        "_body", "_body_size", "_complete", "_drained", "_error", "_head_done", "_head_size", "_is_head", "_keep_alive",
        "_loop", "_parser", "_paused", "_until_close", "_waiter", "headers", "idle_since", "on_answer", "pool",
        "progress", "status", "transport",
    )  # fmt: skip

    def __init__(self, pool: UpstreamPool, loop: asyncio.AbstractEventLoop) -> None:
        self.pool = pool
        self._loop = loop
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set before anyone sees us
        self.idle_since = 0.0
        self.progress = 0.0  # loop time of the last byte either way
        self._parser: Any = httptools.HttpResponseParser(self)
        self._paused = False
        self._drained: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self.on_answer: Callable[[], None] | None = None  # called once, when the response's head or its failure is here
        self._reset(is_head=False)

    def __repr__(self) -> str:
        state = "closed" if self._error else "complete" if self._complete else "busy"
        return f"<UpstreamConnection {self.pool.endpoint} {state}>"

    # The exchange, from the caller's side.

    def begin(self, data: bytes, *, is_head: bool = False, batch: WriteBatch | None = None) -> None:
        """Send a request's head (and what of its body is there). Raises UpstreamBrokenError on a closed connection.

        With `batch` the request is whole, and goes out with the other writes of this turn of the loop.
        """
        if self._error is not None:
            raise self._error
        self._reset(is_head=is_head)
        self.progress = self._loop.time()
        if batch is None:
            self.transport.write(data)
        else:
            batch.write(self.transport, data)

    async def write(self, data: bytes) -> None:
        """Send more of the body; waits while the sandbox does not take it. Raises UpstreamBrokenError."""
        if self._error is not None:
            raise self._error
        self.transport.write(data)
        if self._drained is not None:
            await self._drained
        self.progress = self._loop.time()

    def push(self, data: memoryview) -> asyncio.Future[None] | None:
        """Write without waiting; `data` may be changed once the future that is returned is done, at once if None.

        Between `buffer_nothing` and `buffer_as_ever` only. Raises UpstreamBrokenError.
        """
        if self._error is not None:
            raise self._error
        self.transport.write(data)
        self.progress = self._loop.time()
        return self._drained

    def buffer_nothing(self) -> None:
        """Say of each byte that the socket did not take that it waits."""
        if self._error is None:
            self.transport.set_write_buffer_limits(high=0)

    def buffer_as_ever(self) -> None:
        """The transport's own limits again."""
        if self._error is None:
            self.transport.set_write_buffer_limits()

    async def response_head(self) -> None:
        """Wait until `status` and `headers` hold the final response's head. Raises UpstreamBrokenError."""
        while not self._head_done:
            if self._error is not None:
                raise self._error
            await self._wait()

    @property
    def failed(self) -> bool:
        """Whether the connection is lost or broken."""
        return self._error is not None

    @property
    def is_whole(self) -> bool:
        """Whether all of the response is here."""
        return self._complete

    def whole_body(self) -> bytes:
        """The body of a whole response. It stays: `read` gives it too."""
        body = self._body
        return body[0] if len(body) == 1 else b"".join(body)

    @property
    def has_body(self) -> bool:
        """Whether `read` would answer at once."""
        return bool(self._body) or self._complete

    async def read(self) -> tuple[bytes, bool]:
        """The next piece of the body, and whether more may come. Raises UpstreamBrokenError on a cut-off body."""
        while not self._body and not self._complete:
            if self._error is not None:
                raise self._error
            await self._wait()
        body = self._body
        data = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        self._body_size = 0
        if self._paused:
            self._paused = False
            self.transport.resume_reading()
        return data, not self._complete

    def finish(self) -> None:
        """The exchange is over: keep the connection if both sides may go on, else close it."""
        if (
            self._complete
            and not self._until_close
            and self._error is None
            and self._keep_alive
            and self._drained is None
            and not self.pool.closed
        ):
            if self._is_head:
                # llhttp was waiting for the body that Content-Length told of; a fresh parser is not.
                self._parser = httptools.HttpResponseParser(self)
            self.idle_since = self._loop.time()
            self.pool.idle.append(self)
        else:
            self.abort()

    def abort(self) -> None:
        """Cut the connection; picod sees a client that left and ends what it runs."""
        if self._error is None:
            self._error = UpstreamBrokenError("the connection to the sandbox was given up")
        self.transport.abort()

    def _reset(self, *, is_head: bool) -> None:
        self._is_head = is_head
        self._head_done = False
        self._complete = False
        self._keep_alive = False
        self._until_close = False
        self._head_size = 0
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._body_size = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self.on_answer is not None:
            callback, self.on_answer = self.on_answer, None
            callback()
            return
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        if self._drained is not None and not self._drained.done():
            self._drained.set_exception(self._error)
            self._drained = None
        self._wake()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.progress = self._loop.time()
        if not self._head_done:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._complete:  # bytes that nobody asked for: the answer that is here stands, the connection does not
                self._keep_alive = False
                self._wake()
                self.transport.close()
                return
            self._fail(UpstreamBrokenError(f"the sandbox's answer is not HTTP/1.1: {error or type(error).__name__}"))
            self.transport.abort()
            return
        if not self._head_done and self._head_size > _MAX_HEAD:
            self._fail(UpstreamBrokenError(f"the head of the sandbox's answer is longer than {_MAX_HEAD} bytes"))
            self.transport.abort()
            return
        if self._head_done:
            self._wake()
            if self._body_size > _HIGH_WATER and not self._paused and not self._complete:
                self._paused = True
                self.transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self.pool.idle:
            self.pool.idle.remove(self)
        self.pool.open -= 1
        if self._head_done and self._until_close and not self._complete and exc is None:
            self._complete = True  # RFC 9112 6.3 case 8: such a body ends where the connection does
        if self._error is None and not self._complete:
            self.pool.broke()
        self._fail(UpstreamBrokenError("the sandbox closed the connection before its answer was complete"))

    def pause_writing(self) -> None:
        if self._drained is None:
            self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None

    # httptools

    def on_message_begin(self) -> None:
        if self._complete:
            raise UpstreamBrokenError("the sandbox sent an answer to no request")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_done:  # else a trailer, which RFC 9110 6.5.1 forbids to merge into the header
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        if status > 599:
            raise UpstreamBrokenError(f"the sandbox's answer has the status {status}")
        self.status = status
        self._head_done = True
        self._keep_alive = self._parser.should_keep_alive()  # asked now: llhttp forgets it with the message's end
        if self._is_head:
            self._complete = True
            self._keep_alive = b"close" not in [v.lower() for n, v in self.headers if n.lower() == b"connection"]
        elif not self._keep_alive and status not in (204, 304):
            # Only an answer that ends the connection can lack a length.
            names = {name.lower() for name, _ in self.headers}
            self._until_close = b"content-length" not in names and b"transfer-encoding" not in names

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._body_size += len(body)

    def on_message_complete(self) -> None:
        if self._head_done:
            self._complete = True
        else:  # an interim 1xx answer: forget it and wait for the final one
            self.headers = []


class UpstreamPool:
    """Keep-alive connections to one endpoint. State: the idle list, the count of open ones, and whether one broke.

    A process that is killed closes its listener after the connections that it has, so a client that was told of a
    broken one and asks again at once may still be let in, to be cut off a second time. With `proof`, a path that is
    answered at once and without effect, that is asked for before the first request after a break is sent.
    """

    def __init__(self, endpoint: Endpoint, *, connect_timeout: float, proof: bytes = b"") -> None:
        self.endpoint = endpoint
        self._proof = proof
        self._doubtful = False
        self.idle: list[UpstreamConnection] = []
        self.open = 0
        self.dialled = 0
        self._connect_timeout = connect_timeout
        self.closed = False
        host = endpoint.host or ""
        self.host = (
            b"sandbox" if endpoint.uds else (f"[{host}]" if ":" in host else host).encode() + b":%d" % endpoint.port
        )

    def __repr__(self) -> str:
        return f"<UpstreamPool {self.endpoint} open={self.open} idle={len(self.idle)}>"

    def take(self) -> UpstreamConnection | None:
        """An idle connection, the one used last first, or None."""
        while self.idle:
            connection = self.idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    def broke(self) -> None:
        """The other side cut a connection off in the middle of an answer: perhaps it is about to end."""
        if self._proof:
            self._doubtful = True
            for connection in self.idle:
                connection.transport.abort()  # `take` passes it over
            self.idle.clear()

    async def dial(self) -> UpstreamConnection:
        """A new connection. Raises UpstreamConnectError; nothing of a request was sent then."""
        if self._doubtful:
            await self._prove()
            self._doubtful = False
        return await self._connect()

    async def _prove(self) -> None:
        """Wait until it answers, whatever it says. Raises UpstreamConnectError when it ends instead."""
        connection = await self._connect()
        try:
            connection.begin(b"GET %b HTTP/1.1\r\nhost: %b\r\n\r\n" % (self._proof, self.host))
            async with asyncio.timeout(self._connect_timeout):
                await connection.response_head()
        except UpstreamBrokenError as error:
            raise UpstreamConnectError("the sandbox has ended", gone=True) from error
        except TimeoutError:
            pass  # it lives, as far as one can tell, and is busy
        finally:
            connection.abort()

    async def _connect(self) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        protocol = UpstreamConnection(self, loop)
        endpoint = self.endpoint
        connecting: Any
        if endpoint.uds:
            connecting = loop.create_unix_connection(lambda: protocol, endpoint.uds)
        else:
            connecting = loop.create_connection(lambda: protocol, endpoint.host or "", endpoint.port)
        try:
            async with asyncio.timeout(self._connect_timeout):
                await connecting
        except TimeoutError:
            raise UpstreamConnectError(
                f"the sandbox did not accept a connection within {self._connect_timeout:g} s"
            ) from None
        except OSError as error:
            gone = isinstance(error, ConnectionRefusedError | FileNotFoundError | ConnectionResetError)
            raise UpstreamConnectError(
                f"the sandbox cannot be reached: {error.strerror or error}", gone=gone
            ) from error
        self.open += 1
        self.dialled += 1
        return protocol

    def trim(self, now: float) -> None:
        """Close connections that have been idle for long. `now` in loop time."""
        while self.idle and now - self.idle[0].idle_since > _IDLE_S:
            self.idle.pop(0).abort()

    def close(self) -> None:
        """Close the idle connections; those in use are closed by their users."""
        self.closed = True
        for connection in list(self.idle):
            connection.abort()
        self.idle.clear()
