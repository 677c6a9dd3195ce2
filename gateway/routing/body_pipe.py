"""The rest of a large request body, from the client's socket to the sandbox's with no stop in between.

Ordinarily a piece of a body passes through the HTTP parser, the cycle's buffer and a task, and is copied at the first
two. Once a body's length is known none of them has anything to say about it: while it lasts, a `BodyPipe` takes the
place of the client's protocol, reads into one buffer of its own and hands that to the sandbox's socket. It reads no
byte beyond the body's end, so what follows finds the protocol where it left off (docs/performance.md has the figures).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from gateway.core.errors import WakegateError

PIPE_FROM_BYTES = 256 * 1024  # bytes still to come from which the change of protocols pays
_BUFFER_BYTES = 1024 * 1024  # 0.38 s of CPU per GB; with 256 KB 0.46 s. Only what a read fills is ever real memory

Write = Callable[[memoryview], "asyncio.Future[None] | None"]  # the future: until then no more of it


class Owner(Protocol):
    """Whose place the pipe takes."""

    def body_is_over(self) -> None:
        """The last byte has been read: the transport is the owner's again."""
        ...

    def connection_lost(self, exc: Exception | None) -> None:
        """As of asyncio.Protocol, like the two below."""
        ...

    def pause_writing(self) -> None:
        """The client does not take its answer."""
        ...

    def resume_writing(self) -> None:
        """The reader takes bytes again."""
        ...


class BodyPipe(asyncio.BufferedProtocol):
    """Reads `left` bytes from `source` and writes them on.

    `waits_for` is told whose turn it is: "client body" or "sandbox". `done` has the outcome: True when all was handed
    on, False when the client left before; it raises what `write` raised.
    """

    def __init__(
        self, owner: Owner, source: asyncio.Transport, left: int, write: Write, waits_for: Callable[[str], None]
    ) -> None:
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._owner = owner
        self._source = source
        self._left = left
        self._write: Write | None = write
        self._waits_for = waits_for
        self._view = memoryview(bytearray(min(left, _BUFFER_BYTES)))

    def __repr__(self) -> str:
        return f"<BodyPipe {self._left} bytes left>"

    def discard(self) -> None:
        """Nobody wants the rest: it is read and dropped, so that a client that sends all first can read its answer."""
        self._write = None
        self._source.resume_reading()

    # asyncio.BufferedProtocol

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view if self._left >= len(self._view) else self._view[: self._left]

    def buffer_updated(self, nbytes: int) -> None:
        self._left -= nbytes
        full: asyncio.Future[None] | None = None
        if self._write is not None:
            try:
                full = self._write(self._view[:nbytes])
            except WakegateError as error:
                self._broken(error)
            else:
                self._waits_for("client body" if full is None and self._left else "sandbox")
        if full is not None:
            self._source.pause_reading()  # the buffer is the socket's until then
            full.add_done_callback(self._drained)
        elif not self._left:
            self._end()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._write = None
        self._owner.connection_lost(exc)
        if not self.done.done():
            self.done.set_result(False)

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()

    # Its own

    def _drained(self, full: asyncio.Future[None]) -> None:
        if full.cancelled() or self._write is None:
            return
        error = full.exception()
        if error is not None:
            self._broken(error)
        elif self._left:
            self._waits_for("client body")
            self._source.resume_reading()
        if not self._left:
            self._end()

    def _broken(self, error: BaseException) -> None:
        self._write = None
        if not self.done.done():
            self.done.set_exception(error)
        self._source.resume_reading()

    def _end(self) -> None:
        if self._source.is_closing():
            return  # connection_lost follows
        self._owner.body_is_over()
        self._source.resume_reading()
        if not self.done.done():
            self.done.set_result(True)
