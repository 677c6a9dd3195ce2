"""POST and PUT /api/files: write a file whole or not at all.

The bytes go to a temporary file first, in the directory where they will stay when that is known, and a rename puts
them in place. So a reader never sees half a file, and a client that leaves or a disk that fills leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import binascii
import errno
import functools
import os
import re
import stat
from types import TracebackType
from typing import TYPE_CHECKING, Self

from picod.compat.go_format import format_mode, format_time
from picod.files.listing import decode_path
from picod.filesystem.paths import PathError, Place
from picod.http.json_fields import missing, parse_object, text_field
from picod.http.request import Request, RequestError, os_failure, reason_of

if TYPE_CHECKING:
    from picod.app import Picod

_STRUCT = "UploadFileRequest"
_BATCH = 1 << 20  # bytes collected before a thread writes them
_INLINE = 256 << 10  # bytes the loop writes itself; they only reach the page cache
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]")


class Staged:
    """A temporary file in an open directory. Leaving the context without `commit` removes it."""

    def __init__(self, dir_fd: int) -> None:
        self._dir_fd = os.dup(dir_fd)
        self._name = f".wakegate-{os.urandom(8).hex()}.part"
        try:
            self._fd = os.open(
                self._name,
                os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
                dir_fd=self._dir_fd,
            )
        except OSError:
            os.close(self._dir_fd)
            raise
        self._committed = False
        self._pending = bytearray()

    def add(self, data: bytes | memoryview) -> bool:
        """Collect a piece; True when it is time to `flush`."""
        self._pending += data
        return len(self._pending) >= _BATCH

    async def flush(self) -> None:
        """Write what was collected. Raises OSError."""
        data, self._pending = self._pending, bytearray()
        if len(data) <= _INLINE:
            self._write(data)
        else:
            await asyncio.to_thread(self._write, data)

    def _write(self, data: bytearray) -> None:
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                done += os.write(self._fd, view[done:])

    def is_near(self, place: Place) -> bool:
        """Whether a rename gets it to `place`, or it takes a copy."""
        return os.fstat(self._dir_fd).st_dev == os.fstat(place.dir_fd).st_dev

    def commit(self, place: Place, mode: int) -> os.stat_result:
        """Put the file at `place`; a file that was there before hands on its mode. Raises OSError."""
        kept = _mode_at(place)
        os.fchmod(self._fd, kept if kept is not None else mode & ~_umask())
        try:
            os.rename(self._name, place.name, src_dir_fd=self._dir_fd, dst_dir_fd=place.dir_fd)
            self._committed = True
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            return self._copy_to(place, mode)
        return os.fstat(self._fd)

    def _copy_to(self, place: Place, mode: int) -> os.stat_result:
        """The place is on another file system (a mounted volume): stage once more over there."""
        with Staged(place.dir_fd) as nearer:
            os.lseek(self._fd, 0, os.SEEK_SET)
            while os.sendfile(nearer._fd, self._fd, None, 1 << 24):
                pass
            return nearer.commit(place, mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._committed:
                os.unlink(self._name, dir_fd=self._dir_fd)
        except FileNotFoundError:
            pass  # the session's own code was quicker
        finally:
            os.close(self._fd)
            os.close(self._dir_fd)


@functools.cache
def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


def _mode_at(place: Place) -> int | None:
    """The mode of the file at a place, None if there is none. Raises IsADirectoryError."""
    try:
        status = place.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return stat.S_IMODE(status.st_mode) & 0o777 if stat.S_ISREG(status.st_mode) else None


def parse_mode(text: str | None) -> int:
    """Octal permissions such as `0644` or `755`; anything else, or above 0777, is 0644 as with AgentCube."""
    if not text or not re.fullmatch(r"[0-7]{1,8}", text) or int(text, 8) > 0o777:
        return 0o644
    return int(text, 8)


def decode_base64(text: str) -> bytes:
    """Standard base64 with padding; line ends are ignored. Raises RequestError 400 with the place of the fault."""
    try:
        return binascii.a2b_base64(text.replace("\r", "").replace("\n", "").encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        fault = _NOT_BASE64.search(text.rstrip("=\r\n"))
        where = fault.start() if fault else len(text)
        raise RequestError(400, f"Invalid base64 content: illegal base64 data at input byte {where}") from error


async def upload(picod: Picod, request: Request) -> None:
    """POST: a form with a file part, or JSON with base64."""
    if request.header(b"content-type").lower().startswith("multipart/form-data"):
        from picod.files.upload_form import upload_form

        await upload_form(picod, request)
    else:
        await _upload_json(picod, request)


async def _upload_json(picod: Picod, request: Request) -> None:
    body = await request.body(picod.config.max_body)
    if len(body) <= _INLINE:
        path, content, mode = _parse_upload(body)
    else:
        path, content, mode = await asyncio.to_thread(_parse_upload, body)
    del body
    with open_place(picod, path) as place, stage(place.dir_fd, path) as staged:
        staged.add(content)
        del content
        await finish(request, staged, place, mode)


def _parse_upload(body: bytes) -> tuple[str, bytes, int]:
    fields = parse_object(body, _STRUCT)
    path, content = text_field(fields, _STRUCT, "path"), text_field(fields, _STRUCT, "content")
    mode = text_field(fields, _STRUCT, "mode")
    if not path:
        raise missing(_STRUCT, "path")
    if content is None:
        raise missing(_STRUCT, "content")
    return path, decode_base64(content), parse_mode(mode)


async def upload_raw(picod: Picod, request: Request) -> None:
    """PUT /api/files/{path}: the body is the file; `?mode=` as in the other forms."""
    path, mode = decode_path(request.tail), parse_mode(request.query("mode"))
    with open_place(picod, path) as place, stage(place.dir_fd, path) as staged:
        async for chunk in request.chunks():
            if staged.add(chunk):
                await flush(staged, path)
        await finish(request, staged, place, mode)


def open_place(picod: Picod, path: str) -> Place:
    """Where an upload goes; missing parents are made. Raises RequestError."""
    try:
        place = picod.workspace.resolve(path, make_parents=True)
    except PathError as error:
        raise RequestError(400, str(error)) from error
    except OSError as error:
        parent = os.path.dirname(path) or "."
        raise os_failure(error, f"Failed to create directory: mkdir {parent}") from error
    try:
        _mode_at(place)
    except OSError as error:
        place.close()
        raise os_failure(error, f"Failed to write file: open {path}") from error
    return place


def stage(dir_fd: int, path: str) -> Staged:
    """Begin a temporary file. Raises RequestError."""
    try:
        return Staged(dir_fd)
    except OSError as error:
        raise os_failure(error, f"Failed to create destination file: open {path}") from error


async def flush(staged: Staged, path: str) -> None:
    """Write out. Raises RequestError: 507 when the disk or the quota is full."""
    try:
        await staged.flush()
    except OSError as error:
        raise os_failure(error, f"Failed to save file content: write {path}") from error


async def finish(request: Request, staged: Staged, place: Place, mode: int) -> None:
    """Write the rest, put the file in its place, answer."""
    await flush(staged, place.path)
    try:
        if staged.is_near(place):
            status = staged.commit(place, mode)
        else:
            status = await asyncio.to_thread(staged.commit, place, mode)
    except OSError as error:
        raise RequestError(
            os_failure(error, "").status, f"Failed to write file: open {place.path}: {reason_of(error)}"
        ) from error
    await request.answer_json(
        200,
        {
            "path": place.path,
            "size": status.st_size,
            "mode": format_mode(status.st_mode),
            "modified": format_time(status.st_mtime_ns),
        },
    )
