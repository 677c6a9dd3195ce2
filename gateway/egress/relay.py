"""Bytes from one socket to another, from callbacks of the event loop.

One buffer serves every connection of the process: what was read is sent in the same step, and what the other side does
not take is copied and waits, while nothing more is read. So a connection holds at most CHUNK_BYTES here, and an idle
one holds nothing. Measured against alternatives: docs/adr/0017-egress.md.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

CHUNK_BYTES = 256 << 10
# 1 MiB in a step takes 0.6 ms at 1.7 GB/s: with 500 busy connections each has its turn every 300 ms.
_TURNS = 4  # reads in one step: more would keep other connections waiting

_shared = memoryview(bytearray(CHUNK_BYTES))


async def paced(count: Callable[[int], float], amount: int) -> bool:
    """Count an amount (as Pipe has it counted), and wait until more may follow; False: none may."""
    delay = count(amount)
    while delay > 0:
        await asyncio.sleep(delay)
        delay = count(0)
    return delay == 0


class Pipe:
    """Bytes in one direction between two sockets.

    `done` resolves when the source has ended and everything is passed on, or a side has failed.

    `count(n)` is called with each amount that was read, and returns the seconds until more may be read; negative: the
    pipe ends. After a pause, and after a sink that was slow, `count(0)` says whether there is still something to wait
    for. `moved` counts bytes. `failed`: the other direction has no use any more either.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: socket.socket,
        sink: socket.socket,
        count: Callable[[int], float],
    ) -> None:
        self._loop, self._source, self._sink, self._count = loop, source, sink, count
        self._rest = b""
        self._ended = False
        self._reading = self._writing = False
        self._timer: asyncio.TimerHandle | None = None
        self._not_before = 0.0  # loop time until which nothing is read
        self.moved = 0
        self.failed = False
        self.done: asyncio.Future[None] = loop.create_future()

    def start(self, rest: bytes = b"") -> None:
        """Begin with `rest`, which was read (and counted) already."""
        self._rest = rest
        if rest:
            self._wait_for_sink()
        else:
            self._resume()

    def close(self) -> None:
        """Stop at once; what waits is dropped."""
        self._finish()

    def _fail(self) -> None:
        self.failed = True
        self._finish()

    def _go_on(self) -> None:
        """Read again, unless there is something to wait for: a sink that was slow takes away none of a pause."""
        self._timer = None
        if self.done.done():
            return
        left = self._not_before - self._loop.time()
        delay = left if left > 0 else self._count(0)
        if delay:
            self._pause(delay)
        else:
            self._resume()

    def _resume(self) -> None:
        if not self.done.done() and not self._reading:
            self._reading = True
            self._loop.add_reader(self._source.fileno(), self._readable)

    def _readable(self) -> None:
        # A few reads at a time: one that reads until its source is dry would keep all other connections waiting.
        for _ in range(_TURNS):
            try:
                count = self._source.recv_into(_shared)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._fail()
                return
            if not count:
                self._end()
                return
            self.moved += count
            delay = self._count(count)
            if delay > 0:
                self._not_before = self._loop.time() + delay
            # At once, from the buffer that all share: nothing else can run between the read and this, as there is no
            # await.
            if not self._send(_shared[:count]):
                return
            if delay:
                self._pause(delay)
                return
            if count < CHUNK_BYTES:
                return  # the source has no more for now: another read would only say so

    def _send(self, data: memoryview) -> bool:
        """Send; whether all of it went."""
        try:
            sent = self._sink.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._fail()
            return False
        if sent == len(data):
            return True
        self._rest = bytes(data[sent:])  # a copy: the buffer is every pipe's
        self._stop_reading()
        self._wait_for_sink()
        return False

    def _wait_for_sink(self) -> None:
        self._writing = True
        self._loop.add_writer(self._sink.fileno(), self._writable)

    def _writable(self) -> None:
        try:
            sent = self._sink.send(self._rest)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._fail()
            return
        self._rest = self._rest[sent:]
        if self._rest:
            return
        self._stop_writing()
        if self._ended:
            self._shut()
        else:
            self._go_on()

    def _pause(self, delay: float) -> None:
        self._stop_reading()
        if delay < 0:
            self._fail()
        else:
            self._timer = self._loop.call_later(delay, self._go_on)

    def _end(self) -> None:
        """The source has ended: so does the sink, once it has everything."""
        self._ended = True
        self._stop_reading()
        if not self._rest:
            self._shut()

    def _shut(self) -> None:
        try:
            # Half of the connection: a client that has sent all it has (git, rsync) still waits for its answer.
            self._sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other side was faster
        self._finish()

    def _finish(self) -> None:
        self._stop_reading()
        self._stop_writing()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.done.done():
            self.done.set_result(None)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._source.fileno())

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._sink.fileno())
