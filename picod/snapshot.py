"""GET and PUT /api/snapshot: the workspace as one stream, and back.

The stream is a zstd-compressed tar (tarball.py says which). GET holds the session's processes still while it reads, so
what is sent is one moment of the workspace. PUT answers success when every byte has been checked and every file is
there; anything else leaves the workspace empty.

All work on files is done by a thread, in turns with the loop: memory is flat both ways, whatever the size.
"""

from __future__ import annotations

import asyncio
import errno
import queue
import threading
from collections.abc import Callable, Generator
from typing import IO, TYPE_CHECKING, TypeVar, cast

from picod.web import ClientGoneError, Request, RequestError, os_failure

if TYPE_CHECKING:
    from picod.app import Picod

# zstandard and the rooms that do the work are imported where they are used: 8 ms that no start should take.

_LEVEL = 1  # of zstd: three times as fast as its default 3 on text, for a tenth more bytes
_MAX_WINDOW = 8 << 20  # bytes of memory an archive may make us take; `zstd -19` needs that much
_TURN_OUT = 256 << 10  # compressed bytes, or
_TURN_IN = 8 << 20  # bytes of the workspace after which the thread hands over
_QUEUED = 8  # chunks of a body that wait for the thread
_SENTINEL = b"wakegate:end"
_CONTENT_TYPE = (b"content-type", b"application/zstd")

_T = TypeVar("_T")


def load() -> None:
    """Import what a snapshot or a restore needs: 8 ms and 0.4 MB. Blocking; a sandbox that waits does it ahead."""
    import zstandard  # noqa: F401

    import picod.freeze
    import picod.pack
    import picod.unpack  # noqa: F401


async def send_snapshot(picod: Picod, request: Request) -> None:
    """GET: send the workspace. An error after the first byte ends the connection, so that nobody takes half for all."""
    async with picod.snapshots:  # two at a time would thaw each other's processes
        pieces = _compressed(picod.workspace.fd)
        try:
            piece = await _in_thread(lambda: next(pieces, None))
            await request.start(200, (_CONTENT_TYPE,))
            while piece is not None:
                await request.write(piece, more=True)
                piece = await _in_thread(lambda: next(pieces, None))
            await request.write(b"", more=False)
        except OSError as error:
            raise _unreadable(error) from error
        finally:
            await _in_thread(pieces.close)  # thaws


async def restore_snapshot(picod: Picod, request: Request) -> None:
    """PUT: make the body the workspace, which must be empty; `?replace=true` empties it first.

    400 for an archive that is broken or wants out of the workspace, 409 if the workspace is not empty, 507 if it is
    too small; after each of them, and when the client leaves, the workspace is empty (after 409: as it was).
    """
    replace = request.query("replace")
    if replace not in ("", "true", "false"):
        raise RequestError(400, f"replace must be true or false, not {replace!r}")
    async with picod.snapshots:  # two at a time would thaw each other's processes
        feed = _Feed(asyncio.get_running_loop())
        root = picod.workspace.fd
        work = asyncio.ensure_future(asyncio.to_thread(_restore, root, feed, replace == "true"))
        try:
            async for chunk in request.chunks():
                if work.done() or not await feed.put(chunk):
                    break  # it failed: the rest is not wanted
            feed.end()
            files, size = await asyncio.shield(work)
        except OSError as error:
            raise os_failure(error, "Failed to restore the snapshot") from error
        finally:
            feed.abort()
            await _settled(work)
        await request.answer_json(200, {"files": files, "size": size})


def _compressed(root: int) -> Generator[bytes, None, None]:
    """The snapshot in pieces; some are empty, to show that it goes on."""
    import zstandard

    from picod.freeze import Frozen
    from picod.pack import pack

    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
    out = bytearray()
    taken = 0
    with Frozen():
        for piece in pack(root):
            out += compressor.compress(piece)
            taken += len(piece)
            if len(out) >= _TURN_OUT or taken >= _TURN_IN:
                yield bytes(out)
                out.clear()
                taken = 0
    out += compressor.flush()
    yield bytes(out)


def _restore(root: int, feed: _Feed, replace: bool) -> tuple[int, int]:
    """All of PUT that touches files. Raises RequestError, OSError."""
    import zstandard

    from picod.cursor import clear, is_empty
    from picod.tarball import TarballError
    from picod.unpack import Source, unpack

    try:
        if replace:
            clear(root)
        elif not is_empty(root):
            raise RequestError(409, "the workspace is not empty; ?replace=true replaces what is there")
        try:
            # Of a frame that was cut short zstandard only says that there is no more. So a frame of our own follows
            # the last byte: behind a whole frame it comes out as it went in, inside a broken one it does not.
            feed.tail = zstandard.ZstdCompressor().compress(_SENTINEL)
            stream = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(
                cast("IO[bytes]", feed), read_across_frames=True
            )
            source = Source(stream.readinto)
            counts = unpack(root, source)
            source.expect_end(_SENTINEL)
            return counts
        except BaseException:
            clear(root)
            raise
    except (TarballError, zstandard.ZstdError) as error:
        raise RequestError(400, f"the archive is refused: {error}") from error
    finally:
        feed.close()


class _Feed:
    """Chunks of a body on their way from the loop to the thread, which reads them as a file."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.tail = b""  # read after the last chunk
        self._loop = loop
        self._chunks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(_QUEUED)
        self._rest = memoryview(b"")
        self._ended = False
        self._aborted = threading.Event()
        self._closed = False

    # The loop's side.

    async def put(self, chunk: bytes) -> bool:
        """Hand over a chunk, waiting while too many wait. False: the thread takes no more."""
        await self._room.acquire()
        self._chunks.put(chunk)
        return not self._closed

    def end(self) -> None:
        """The body is complete."""
        self._chunks.put(None)

    def abort(self) -> None:
        """Nothing more will come, and what came is not all. Without effect after `end` was read."""
        self._aborted.set()
        self._chunks.put(None)

    # The thread's side.

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
        """Take no more; whoever waits to put goes on."""
        self._closed = True
        self._loop.call_soon_threadsafe(self._room.release)


async def _in_thread(work: Callable[[], _T]) -> _T:
    """Like to_thread, but a cancelled caller waits until the thread is done with what they share."""
    future = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await _settled(future)
        raise


async def _settled(future: asyncio.Future[_T]) -> None:
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
    if not future.cancelled():
        future.exception()  # seen


def _unreadable(error: OSError) -> RequestError:
    if error.errno == errno.ESTALE:
        return RequestError(409, f"the workspace changed while it was read: {error.strerror}")
    return os_failure(error, "Failed to read the workspace")
