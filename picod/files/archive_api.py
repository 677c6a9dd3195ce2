"""/api/fs/archive: send a directory as an archive, or unpack an archive into a directory.

Both are streamed. An upload is unpacked into a temporary folder inside the target and moved into place when it is
complete: a broken archive, a full disk or a client that leaves changes nothing.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from typing import TYPE_CHECKING

from picod.archive.formats import FORMATS, read_tar, write_archive
from picod.archive.merge import ConflictError, merge
from picod.archive.source import ReadInto, Source, TooLargeArchiveError, counted, reader
from picod.archive.tar_members import TarballError
from picod.archive.unpack import unpack
from picod.archive.zip_format import is_zip, zip_as_tar
from picod.files.listing import disposition
from picod.files.manage import required_path
from picod.filesystem.paths import PathError
from picod.filesystem.safe_walk import remove
from picod.http.request import Request, RequestError, os_failure, query_flag
from picod.http.thread_stream import ThreadStream, in_thread, settled

if TYPE_CHECKING:
    from picod.files.services import FileServices

_MAX_FILES = 500_000
_MAGIC_BYTES = 4  # at the start, enough to recognise the format
_PIECE_BYTES = 256 << 10


async def send_archive(services: FileServices, request: Request) -> None:
    """GET ?path=.&format=tar.gz: send a directory. A file that shrinks while it is read cuts the archive off."""
    path, form = request.query("path") or ".", request.query("format") or "tar.gz"
    if form not in FORMATS:
        raise RequestError(400, f"format: expected one of {', '.join(FORMATS)}, not {form[:40]!r}")
    root = _open(services, path, make=False)
    pieces = write_archive(root, form)
    name = os.path.basename(path.strip("/")).strip(".") or "workspace"
    try:
        # The first piece before the status: a directory that cannot be read is then an error and not a cut-off archive.
        piece = await in_thread(lambda: next(pieces, None))
        await request.start(
            200,
            (
                (b"content-type", FORMATS[form].encode()),
                (b"content-disposition", disposition(f"{name}.{form}")),
            ),
        )
        while piece is not None:
            await request.write(piece, more=True)
            piece = await in_thread(lambda: next(pieces, None))
        await request.write(b"", more=False)
    except OSError as error:
        raise os_failure(error, f"Failed to read {path}") from error
    finally:
        await in_thread(pieces.close)  # restores the mode of directories that had to be made readable
        os.close(root)  # after it: the walk goes up through it


async def receive_archive(services: FileServices, request: Request) -> None:
    """PUT ?path=.&overwrite=false: unpack the body, a tar (plain, gzip or zstd) or a zip, into a directory.

    400 for an archive that is broken or leads out of the directory, 409 when a file exists already, 413 when it
    unpacks to too much.
    """
    path, overwrite = required_path(request), query_flag(request, "overwrite")
    target = _open(services, path, make=True)
    name = f".wakegate-{os.urandom(8).hex()}.part"  # pack.py leaves such names out of snapshots
    try:
        os.mkdir(name, 0o700, dir_fd=target)
        try:
            files, size = await _unpack(services, request, target, name, overwrite)
        finally:
            await in_thread(lambda: remove(name.encode(), target))
    except OSError as error:
        raise os_failure(error, f"Failed to unpack into {path}") from error
    finally:
        os.close(target)
    await request.answer_json(200, {"path": path, "files": files, "size": size})


def _open(services: FileServices, path: str, *, make: bool) -> int:
    try:
        return services.workspace.open_directory(path, make=make)
    except PathError as error:
        raise RequestError(400, str(error)) from error
    except OSError as error:
        raise os_failure(error, f"Failed to open {path}") from error


async def _unpack(services: FileServices, request: Request, target: int, name: str, overwrite: bool) -> tuple[int, int]:
    upload = ThreadStream(asyncio.get_running_loop())
    limit = services.config.max_unpack
    work = asyncio.ensure_future(asyncio.to_thread(_unpack_and_merge, target, name, upload, limit, overwrite))
    try:
        async for chunk in request.chunks():
            if work.done() or not await upload.put(chunk):
                break  # it has failed: the rest of the body is not needed
        upload.end()
        return await asyncio.shield(work)
    finally:
        upload.abort()
        await settled(work)


def _unpack_and_merge(target: int, name: str, upload: ThreadStream, limit: int, overwrite: bool) -> tuple[int, int]:
    """The part of receive_archive that touches files, for a thread. Raises RequestError, OSError."""
    staged = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=target)
    spool = -1
    try:
        first = b""
        while len(first) < _MAGIC_BYTES and (more := upload.read(_PIECE_BYTES)):
            first += more
        if is_zip(first):
            spool = _spool(staged, first, upload, limit)
            stream = reader(zip_as_tar(spool))
        else:
            stream = read_tar(first, upload.read)
        stream = counted(stream, limit)
        # Counted after decompression: a gzip of 8 MB can hold 8 GB of zeros.
        counts = unpack(staged, Source(stream), max_files=_MAX_FILES)
        _drain(stream)
        merge(staged, target, overwrite=overwrite)
        return counts
    except TooLargeArchiveError as error:
        raise RequestError(413, f"the archive is refused: {error}") from error
    except (TarballError, zlib.error) as error:
        raise RequestError(400, f"the archive is refused: {error}") from error
    except ConflictError as error:
        raise RequestError(
            409, f"{error} is there already; nothing was unpacked. ?overwrite=true replaces files", code="EXISTS"
        ) from error
    except Exception as error:
        if type(error).__name__ != "ZstdError":  # by name: the library is imported for zstd archives only
            raise
        raise RequestError(400, f"the archive is refused: {error}") from error
    finally:
        upload.close()
        os.close(staged)
        if spool >= 0:
            os.close(spool)


def _spool(staged: int, first: bytes, upload: ThreadStream, limit: int) -> int:
    """Write the upload to an unlinked file: a zip is read from its end. Raises OSError, TooLargeArchiveError."""
    fd = os.open(".zip", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=staged)
    try:
        os.unlink(".zip", dir_fd=staged)  # code cannot open or change it, and an end of picod leaves nothing
        size, data = 0, memoryview(first)
        while data:
            size += len(data)
            if size > limit:
                raise TooLargeArchiveError(f"it is larger than {limit} bytes")
            while data:
                data = data[os.write(fd, data) :]
            data = memoryview(upload.read(_PIECE_BYTES))
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _drain(stream: ReadInto) -> None:
    """Read what follows the archive's end, mostly zeros: many clients read an answer only after sending everything."""
    buffer = memoryview(bytearray(_PIECE_BYTES))
    while stream(buffer):
        pass
