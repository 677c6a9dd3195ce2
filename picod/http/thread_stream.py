"""A request body as a file that a thread reads, and threads that are waited for even when their caller is cancelled.

For handlers whose thread works on files while the body arrives or the answer is sent: snapshots and archives.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from picod.http.request import ClientGoneError

_MAX_QUEUED_CHUNKS = 8  # chunks of a body that wait for the thread
_T = TypeVar("_T")


class ThreadStream:
    """Chunks of a body on their way from the loop to the thread, which reads them as a file."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.tail = b""  # read after the last chunk
        self._loop = loop
        self._chunks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(_MAX_QUEUED_CHUNKS)
        self._rest = memoryview(b"")
        self._ended = False
        self._aborted = threading.Event()
        self._closed = False

    # Called on the loop.

    async def put(self, chunk: bytes) -> bool:
        """Queue a chunk, waiting while the queue is full. Returns whether the thread still reads."""
        await self._room.acquire()
        self._chunks.put(chunk)
        return not self._closed

    def end(self) -> None:
        """Mark the end of the body: `read` returns nothing after the last chunk and `tail`."""
        self._chunks.put(None)

    def abort(self) -> None:
        """Mark the body as cut off: `read` raises ClientGoneError. Without effect after `end` was read."""
        self._aborted.set()
        self._chunks.put(None)

    # Called on the thread.

    def read(self, size: int) -> bytes | memoryview:
        """Up to `size` bytes; none at the end. Raises ClientGoneError when the body was cut off."""
        if not self._rest and not self._ended:
            chunk = self._chunks.get()
            if self._aborted.is_set():
                raise ClientGoneError
            if chunk is None:
                self._ended = True
                chunk = self.tail
            else:
                self._loop.call_soon_threadsafe(self._room.release)
            self._rest = memoryview(chunk)
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece

    def close(self) -> None:
        """Stop reading: a waiting `put` returns."""
        self._closed = True
        self._loop.call_soon_threadsafe(self._room.release)  # for a `put` that waits for room that nobody makes


async def in_thread(work: Callable[[], _T]) -> _T:
    """Like to_thread, but a cancelled caller waits for the thread, which uses the caller's descriptors."""
    future = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await settled(future)
        raise


async def settled(future: asyncio.Future[_T]) -> None:
    """Wait until a future is done, even if the caller is cancelled meanwhile; its exception counts as retrieved."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
    if not future.cancelled():
        future.exception()  # otherwise asyncio logs "exception was never retrieved"
