"""GET and PUT /api/snapshot: send the workspace as one stream, and restore it from one.

The stream is a zstd-compressed tar (its format is in tar_members.py). GET freezes the session's processes while it
reads, so the files belong to one point in time. PUT answers success only when every byte was checked and every file was
created; any failure leaves the workspace empty.

A thread does all work on files, in turns with the loop: memory is flat both ways, whatever the size.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Collection, Generator
from dataclasses import dataclass, field
from typing import IO, cast

from picod.commands.processes import Children
from picod.filesystem.paths import Workspace
from picod.http.request import Request, RequestError, os_failure
from picod.http.thread_stream import ThreadStream, in_thread, settled

# zstandard and the modules that do the work are imported where they are used: 8 ms that a start need not take.

_LEVEL = 1  # of zstd: three times as fast as its default 3 on text, for a tenth more bytes
_MAX_WINDOW_BYTES = 8 << 20  # of memory that an archive can make us allocate; `zstd -19` needs that much
# The thread's turn ends after this many compressed bytes, or bytes of the workspace: well-compressed files must not
# keep a client that has left unnoticed.
_TURN_OUT_BYTES = 256 << 10
_TURN_IN_BYTES = 8 << 20
_SENTINEL = b"wakegate:end"
_CONTENT_TYPE = (b"content-type", b"application/zstd")


@dataclass(frozen=True)
class SnapshotServices:
    """What a snapshot reads and which processes it freezes; `lock` allows one snapshot or restore at a time."""

    workspace: Workspace
    children: Children
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


def load() -> None:
    """Import what a snapshot or a restore needs: 8 ms and 0.4 MB. Blocking; an idle sandbox does it ahead."""
    import zstandard  # noqa: F401


async def send_snapshot(services: SnapshotServices, request: Request) -> None:
    """GET: send the workspace. An error after the first byte aborts the connection, so that the client notices it."""
    async with services.lock:  # two at a time would thaw each other's processes
        pieces = _compressed(services.workspace.fd, services.children.quiet)
        try:
            piece = await in_thread(lambda: next(pieces, None))
            await request.start(200, (_CONTENT_TYPE,))
            while piece is not None:
                await request.write(piece, more=True)
                piece = await in_thread(lambda: next(pieces, None))
            await request.write(b"", more=False)
        except OSError as error:
            raise _unreadable(error) from error
        finally:
            await in_thread(pieces.close)  # thaws


async def send_fingerprint(services: SnapshotServices, request: Request) -> None:
    """GET /api/snapshot/fingerprint: `{"fingerprint": HEX}`, the same as long as nothing in the workspace changes."""
    from picod.snapshot.fingerprint import fingerprint

    parts = fingerprint(services.workspace.fd)
    try:
        while not (digest := await in_thread(lambda: next(parts))):
            pass
    except OSError as error:
        raise _unreadable(error) from error
    await request.answer_json(200, {"fingerprint": digest})


async def restore_snapshot(services: SnapshotServices, request: Request) -> None:
    """PUT: unpack the body into the workspace, which must be empty; `?replace=true` empties it first.

    400 for an archive that is broken or leads out of the workspace, 409 if the workspace is not empty, 507 if the disk
    is full. After an error, and when the client leaves, the workspace is empty (after 409: unchanged).
    """
    replace = request.query("replace")
    if replace not in ("", "true", "false"):
        raise RequestError(400, f"replace must be true or false, not {replace!r}")
    async with services.lock:  # two at a time would thaw each other's processes
        upload = ThreadStream(asyncio.get_running_loop())
        root = services.workspace.fd
        work = asyncio.ensure_future(asyncio.to_thread(_restore, root, upload, replace == "true"))
        try:
            async for chunk in request.chunks():
                if work.done() or not await upload.put(chunk):
                    break  # it has failed: the rest of the body is not needed
            upload.end()
            files, size = await asyncio.shield(work)
        except OSError as error:
            raise os_failure(error, "Failed to restore the snapshot") from error
        finally:
            upload.abort()
            await settled(work)
        await request.answer_json(200, {"files": files, "size": size})


def _compressed(root: int, spared: Collection[int]) -> Generator[bytes, None, None]:
    """The snapshot in pieces, some of them empty, so that the loop gets its turn."""
    import zstandard

    from picod.archive.pack import pack
    from picod.snapshot.freeze import Frozen

    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
    out = bytearray()
    taken = 0
    with Frozen(spared):
        for piece in pack(root):
            out += compressor.compress(piece)
            taken += len(piece)
            if len(out) >= _TURN_OUT_BYTES or taken >= _TURN_IN_BYTES:
                yield bytes(out)
                out.clear()
                taken = 0
    out += compressor.flush()
    yield bytes(out)


def _restore(root: int, upload: ThreadStream, replace: bool) -> tuple[int, int]:
    """The part of PUT that touches files, for a thread. Raises RequestError, OSError."""
    import zstandard

    from picod.archive.source import Source
    from picod.archive.tar_members import TarballError
    from picod.archive.unpack import unpack
    from picod.filesystem.safe_walk import clear, is_empty

    try:
        if replace:
            clear(root)
        elif not is_empty(root):
            raise RequestError(409, "the workspace is not empty; ?replace=true replaces what is there")
        try:
            # For a frame that is cut off zstandard reports no error, only the end. So another frame is appended after
            # the last byte: its content is read back after a complete frame, but not after a broken one.
            upload.tail = zstandard.ZstdCompressor().compress(_SENTINEL)
            stream = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).stream_reader(
                cast("IO[bytes]", upload), read_across_frames=True
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
        upload.close()


def _unreadable(error: OSError) -> RequestError:
    if error.errno == errno.ESTALE:
        return RequestError(409, f"the workspace changed while it was read: {error.strerror}")
    return os_failure(error, "Failed to read the workspace")
