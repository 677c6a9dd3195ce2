"""One keep-alive HTTP/1.1 connection to a sandbox, over TCP or a unix socket.

On asyncio.Protocol and httptools because this is the hot path; docs/performance.md has the numbers beside httpx. A
connection carries one exchange at a time: `begin` and `write` send, `response_head` and `read` receive, and the user
ends it with `finish` (kept if both sides may go on) or `abort`. What a sandbox answers is hostile input: every part of
it that is held in memory has a bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import httptools

from gateway.core.errors import UpstreamBrokenError
from gateway.core.model import Endpoint
from gateway.routing.batch import WriteBatch

CHUNKED = -1  # as `owed`: the body ends with `end_body`, not after a number of bytes

_HIGH_WATER_BYTES = 256 * 1024  # of response held for a slow client before reading from the sandbox stops
# Of a response's head, and of what comes without a byte of body after it: chunk extensions, trailers. httptools joins
# the pieces of a field until the field ends, so a trailer that never ends would grow without this.
_MAX_HEAD_BYTES = 128 * 1024
_MAX_FIELDS = 256
_TRANSFER_ENCODING = b"transfer-encoding"


class ConnectionOwner(Protocol):
    """The pool of a connection, as the connection sees it."""

    endpoint: Endpoint
    host: bytes

    def keep(self, connection: UpstreamConnection) -> bool:
        """Take an idle connection that may be used again. False: the pool is closed."""
        ...

    def lost(self, connection: UpstreamConnection, *, broke: bool) -> None:
        """The connection is closed; `broke`: in the middle of an exchange."""
        ...


class UpstreamConnection(asyncio.Protocol):
    """One connection, used by one exchange at a time."""

    __slots__ = (
        "_body", "_body_size", "_drained", "_head_size", "_is_head", "_keep_alive", "_loop", "_owed", "_owner",
        "_parser", "_paused", "_until_close", "_waiter", "error", "headers", "is_whole", "on_answer", "progress",
        "status", "transport",
    )  # fmt: skip

    def __init__(self, owner: ConnectionOwner, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._loop = loop
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set by connection_made, before the pool hands the connection out
        self.progress = 0.0  # loop time of the last byte either way
        self.error: Exception | None = None  # why the connection can carry nothing more
        self.on_answer: Callable[[], None] | None = None  # called once, when the response's head or a failure is here
        self.status = 0  # 0 until the head of the final response is here
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_whole = False  # all of the response is here
        self._parser: Any = httptools.HttpResponseParser(self)
        self._is_head = False
        self._head_size = 0
        self._body: list[bytes] = []
        self._body_size = 0
        self._owed = 0
        self._keep_alive = False
        self._until_close = False
        self._paused = False
        self._drained: asyncio.Future[None] | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def host(self) -> bytes:
        """The Host field of requests on it."""
        return self._owner.host

    def __repr__(self) -> str:
        state = "closed" if self.error else "complete" if self.is_whole else "busy"
        return f"<UpstreamConnection {self._owner.endpoint} {state}>"

    # The exchange, from the caller's side.

    def begin(self, data: bytes, *, owed: int = 0, is_head: bool = False, batch: WriteBatch | None = None) -> None:
        """Send a request's head, and what of its body is there. Raises UpstreamBrokenError on a closed connection.

        `owed`: bytes of the body that the head promises and that follow by `write` or `push`, or CHUNKED. With `batch`
        the request is whole, and goes out with the other writes of this turn of the loop.
        """
        if self.error is not None:
            raise self.error
        # What an exchange leaves as it found it, or as `finish` requires it, is not set again: this is the hot path.
        self.status = self._head_size = self._body_size = 0
        self.headers = []
        self._body = []
        self.is_whole = False
        self._is_head = is_head
        self._owed = owed
        self.progress = self._loop.time()
        if batch is None:
            self.transport.write(data)
        else:
            batch.write(self.transport, data)

    async def write(self, data: bytes) -> None:
        """Send more of the body; waits while the sandbox does not take it. Raises UpstreamBrokenError."""
        if self.error is not None:
            raise self.error
        self.transport.write(data)
        if self._owed > 0:
            self._owed -= len(data)
        if self._drained is not None:
            await self._drained
        self.progress = self._loop.time()

    def end_body(self) -> None:
        """The last chunk of a chunked body has been written."""
        self._owed = 0

    def push(self, data: memoryview) -> asyncio.Future[None] | None:
        """Write without waiting; `data` may be changed once the future that is returned is done, at once if None.

        Between `buffer_nothing` and `buffer_normally` only, and not for a chunked body. Raises UpstreamBrokenError.
        """
        if self.error is not None:
            raise self.error
        self.transport.write(data)
        self._owed -= len(data)
        self.progress = self._loop.time()
        return self._drained

    def buffer_nothing(self) -> None:
        """Have `push` return a future as soon as one byte was not taken by the socket."""
        if self.error is None:
            self.transport.set_write_buffer_limits(high=0)

    def buffer_normally(self) -> None:
        """Go back to the transport's own limits."""
        if self.error is None:
            self.transport.set_write_buffer_limits()

    async def response_head(self) -> None:
        """Wait until `status` and `headers` hold the final response's head. Raises UpstreamBrokenError."""
        while not self.status:
            if self.error is not None:
                raise self.error
            await self._wait()

    def whole_body(self) -> bytes:
        """The body of a whole response. It stays: `read` gives it too."""
        body = self._body
        return body[0] if len(body) == 1 else b"".join(body)

    @property
    def has_body(self) -> bool:
        """Whether `read` would answer at once."""
        return bool(self._body) or self.is_whole

    async def read(self) -> tuple[bytes, bool]:
        """The next piece of the body, and whether more may come. Raises UpstreamBrokenError on a cut-off body."""
        while not self._body and not self.is_whole:
            if self.error is not None:
                raise self.error
            await self._wait()
        body = self._body
        data = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        self._body_size = 0
        if self._paused:
            self._paused = False
            self.transport.resume_reading()
        return data, not self.is_whole

    def finish(self) -> None:
        """End the exchange: keep the connection if both sides may go on, else close it.

        Never kept: one on which fewer bytes of a request went than its head promised. The sandbox would read the head
        of the next request as the rest of that body.
        """
        if (
            self.is_whole
            and self._keep_alive
            and not self._owed
            and not self._until_close
            and self.error is None
            and self._drained is None
            and self._owner.keep(self)
        ):
            if self._is_head:
                # llhttp was waiting for the body that Content-Length announced; a fresh parser is not.
                self._parser = httptools.HttpResponseParser(self)
        else:
            self.abort()

    def abort(self) -> None:
        """Cut the connection; picod sees a client that left and ends what it runs."""
        if self.error is None:
            self.error = UpstreamBrokenError("the gateway closed its connection to the sandbox")
        self.transport.abort()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        """Tell whoever waits that there is something new: the fast path by its callback, the slow one by its future.

        The callback is dropped first: it may hand the request on, which then waits by a future.
        """
        if self.on_answer is not None:
            callback, self.on_answer = self.on_answer, None
            callback()
            return
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self.error is None:
            self.error = error
        if self._drained is not None and not self._drained.done():
            self._drained.set_exception(self.error)
            self._drained = None
        self._wake()

    def _break_off(self, error: UpstreamBrokenError) -> None:
        self._fail(error)
        self.transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.progress = self._loop.time()
        self._head_size += len(data)  # set to 0 by each piece of body
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self.is_whole:  # bytes beyond the answer: the answer stands, the connection does not
                self._keep_alive = False
                self._wake()
                self.transport.close()
                return
            self._break_off(_parser_problem(error))
            return
        if self._head_size > _MAX_HEAD_BYTES and not self.is_whole:
            self._break_off(
                UpstreamBrokenError(f"more than {_MAX_HEAD_BYTES} bytes of the sandbox's answer are head or framing")
            )
            return
        if self.status:  # else the head is still to come, and nobody can do anything with a part of one
            self._wake()
            if self._body_size > _HIGH_WATER_BYTES and not self._paused and not self.is_whole:
                self._paused = True
                self.transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self.status and self._until_close and not self.is_whole and exc is None:
            self.is_whole = True  # RFC 9112 6.3 case 8: such a body ends where the connection does
        self._owner.lost(self, broke=self.error is None and not self.is_whole)
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
        if self.is_whole:
            raise UpstreamBrokenError("the sandbox sent an answer to no request")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status:  # a trailer, which RFC 9110 6.5.1 forbids to merge into the header
            return
        # Compared by length (17) first: this runs for each field of each answer.
        if len(name) == 17 and name.lower() == _TRANSFER_ENCODING and value.lower() != b"chunked":
            # The field ends here, hop by hop; a coding other than chunked would reach the client without its name.
            raise UpstreamBrokenError("the sandbox's answer has a Transfer-Encoding other than chunked")
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        if status > 599:
            raise UpstreamBrokenError(f"the sandbox's answer has the status {status}")
        # What came with the head may be a body, so the head itself is measured.
        if self._head_size > _MAX_HEAD_BYTES and sum(len(n) + len(v) + 4 for n, v in self.headers) > _MAX_HEAD_BYTES:
            raise UpstreamBrokenError(f"the head of the sandbox's answer is larger than {_MAX_HEAD_BYTES} bytes")
        if len(self.headers) > _MAX_FIELDS:
            raise UpstreamBrokenError(f"the sandbox's answer has more than {_MAX_FIELDS} header fields")
        self.status = status
        # Asked now: llhttp forgets it with the message's end. An answer before the request's end means that the sandbox
        # did not read the body, so what it does with the rest of it is not known.
        self._keep_alive = self._parser.should_keep_alive() and not self._owed
        if self._is_head:
            self.is_whole = True
            self._keep_alive = not self._owed and b"close" not in [
                v.lower() for n, v in self.headers if n.lower() == b"connection"
            ]
        elif status == 204:
            self._drop_framing()
        elif not self._keep_alive and status != 304:
            # Only an answer that ends the connection can lack a length.
            names = {name.lower() for name, _ in self.headers}
            self._until_close = b"content-length" not in names and _TRANSFER_ENCODING not in names

    def _drop_framing(self) -> None:
        """RFC 9110 8.6, RFC 9112 6.1: a 204 has neither length nor coding. One that has may be followed by a body."""
        framing = (b"content-length", _TRANSFER_ENCODING)
        kept = [field for field in self.headers if field[0].lower() not in framing]
        if len(kept) < len(self.headers):
            self.headers, self._keep_alive = kept, False

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._body_size += len(body)
        self._head_size = 0

    def on_message_complete(self) -> None:
        if self.status:
            self.is_whole = True
        else:  # an interim 1xx answer: forget it and wait for the final one
            self.headers = []


def _parser_problem(error: Exception) -> UpstreamBrokenError:
    cause = error.__context__
    if isinstance(cause, UpstreamBrokenError):  # raised by one of our callbacks
        return cause
    return UpstreamBrokenError(f"the sandbox's answer is not HTTP/1.1: {error or type(error).__name__}")
