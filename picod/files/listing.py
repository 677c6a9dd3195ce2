"""GET /api/files lists a directory; GET and HEAD /api/files/{path} send a file, or a range of it."""

from __future__ import annotations

import asyncio
import mimetypes
import os
import stat
import time
from email.utils import parsedate_tz
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from picod.compat.go_format import format_mode, format_time
from picod.files.names import name_fields
from picod.filesystem.paths import PathError
from picod.http.request import Request, RequestError, os_failure

if TYPE_CHECKING:
    from picod.files.services import FileServices
    from picod.filesystem.paths import Workspace

_CHUNK_BYTES = 1 << 20
_INLINE_BYTES = 128 << 10  # that the loop reads itself: the switch to a thread would cost more than the read
_MIME = mimetypes.MimeTypes(filenames=())  # the built-in table: the same answer on every system
_PACKED = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "br": "application/x-brotli",
}


class ByteRange(NamedTuple):
    """A part of a file: the offset of its first byte, and its length."""

    start: int
    length: int


async def list_files(services: FileServices, request: Request) -> None:
    """Answer the entries of one directory, sorted by name, not recursive."""
    path = request.query("path")
    if not path:
        raise RequestError(400, "Missing 'path' query parameter")
    try:
        entries = await asyncio.to_thread(_entries, services.tree(request), path)
    except PathError as error:
        raise RequestError(400, str(error)) from error
    except FileNotFoundError as error:
        raise RequestError(404, "Directory not found") from error
    except OSError as error:
        raise os_failure(error, f"Failed to read directory: open {path}") from error
    await request.answer_json(200, {"files": entries})


def _entries(workspace: Workspace, path: str) -> list[dict[str, object]]:
    # scandir of the descriptor, never of the path, which code could have replaced with a link since.
    with workspace.resolve(path) as place:
        folder = place.open(os.O_RDONLY | os.O_DIRECTORY)
    found: list[tuple[bytes, dict[str, object]]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # deleted since scandir read its name
                name = os.fsencode(entry.name)
                found.append((name, describe(status, name)))
    finally:
        os.close(folder)
    return [described for _, described in sorted(found, key=lambda pair: pair[0])]


def describe(status: os.stat_result, name: bytes) -> dict[str, object]:
    """A file in AgentCube's form: name, size, time, mode, whether it is a directory."""
    return {
        **name_fields("name", name),
        "size": status.st_size,
        "modified": format_time(status.st_mtime_ns),
        "mode": format_mode(status.st_mode),
        "is_dir": stat.S_ISDIR(status.st_mode),
    }


def decode_path(raw: bytes) -> str:
    """The path in a URL, already percent-decoded. Raises RequestError 400 if it is not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(400, "the path is not valid UTF-8") from error


async def download(services: FileServices, request: Request) -> None:
    """Send a file, or the part of it that was asked for."""
    path = decode_path(request.tail)
    fd = _open_file(services.tree(request), path)
    try:
        await _send_file(request, fd, os.path.basename(path.rstrip("/")))
    finally:
        os.close(fd)


def _open_file(workspace: Workspace, path: str) -> int:
    try:
        with workspace.resolve(path) as place:
            # Non-blocking: opening a FIFO would otherwise wait for its writer.
            fd = place.open(os.O_RDONLY | os.O_NONBLOCK)
    except PathError as error:
        raise RequestError(400, str(error)) from error
    except FileNotFoundError as error:
        raise RequestError(404, "File not found") from error
    except OSError as error:
        raise os_failure(error, f"Failed to read file: open {path}") from error
    kind = stat.S_IFMT(os.fstat(fd).st_mode)
    if kind != stat.S_IFREG:
        os.close(fd)
        what = "Path is a directory, not a file" if kind == stat.S_IFDIR else "Path is not a regular file"
        raise RequestError(400, what)
    return fd


async def _send_file(request: Request, fd: int, name: str) -> None:
    status = os.fstat(fd)
    # As nginx makes it: time and size. A hash of the content would be exact and would read the whole file first.
    size, etag = status.st_size, b'"%x-%x"' % (status.st_mtime_ns, status.st_size)
    headers = [
        (b"accept-ranges", b"bytes"),
        (b"last-modified", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(status.st_mtime)).encode()),
        (b"etag", etag),
    ]
    if _is_unchanged(request, etag.decode(), int(status.st_mtime)):
        await request.start(304, headers)
        await request.write(b"", more=False)
        return
    headers += [
        (b"content-description", b"File Transfer"),
        (b"content-transfer-encoding", b"binary"),
        (b"content-disposition", disposition(name)),
        (b"content-type", content_type(name).encode("latin-1")),
    ]
    part = None
    if _range_applies(request, etag.decode(), int(status.st_mtime)):
        try:
            part = parse_range(request.header(b"range"), size)
        except LookupError:
            await request.answer(416, b"", [*headers, (b"content-range", b"bytes */%d" % size)])
            return
    code = 200
    if part is not None:
        code = 206
        headers.append((b"content-range", b"bytes %d-%d/%d" % (part.start, part.start + part.length - 1, size)))
    start, length = part or ByteRange(0, size)
    await request.start(code, [*headers, (b"content-length", b"%d" % length)])
    if request.method != "HEAD":
        await _send_bytes(request, fd, start, length)
    await request.write(b"", more=False)


async def _send_bytes(request: Request, fd: int, start: int, length: int) -> None:
    end = start + length
    while start < end:
        want = min(_CHUNK_BYTES, end - start)
        data = (
            os.pread(fd, want, start) if length <= _INLINE_BYTES else await asyncio.to_thread(os.pread, fd, want, start)
        )
        if not data:
            # Content-Length was sent: only a broken connection tells the client that the file is not whole.
            raise OSError(f"the file became shorter while it was sent: {end - start} bytes are missing")
        start += len(data)
        await request.write(data, more=True)


def parse_range(header: str, size: int) -> ByteRange | None:
    """The part that a Range header asks for (RFC 9110, 14.2); None, for all of it, if it is malformed or a list.

    Raises LookupError when the range lies beyond the file.
    """
    unit, _, ranges = header.partition("=")
    first, dash, last = (text.strip() for text in ranges.partition("-"))
    # Malformed ranges are ignored, and the whole file is sent, as the RFC asks. So are lists: a multipart answer would
    # let a short header ask for the same bytes a thousand times.
    if unit.strip().lower() != "bytes" or not dash or not _is_number(first) or not _is_number(last) or not first + last:
        return None
    if not first:  # `-500`: the last 500 bytes
        length = min(int(last), size)
        if length == 0:
            raise LookupError
        return ByteRange(size - length, length)
    start, end = int(first), min(int(last), size - 1) if last else size - 1
    if last and int(last) < start:
        return None
    if start >= size:
        raise LookupError
    return ByteRange(start, end - start + 1)


def _is_number(text: str) -> bool:
    return not text or (text.isascii() and text.isdigit() and len(text) < 20)


def _is_unchanged(request: Request, etag: str, modified: int) -> bool:
    known = request.header(b"if-none-match")
    if known:
        return known.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in known.split(","))
    since = _parse_date(request.header(b"if-modified-since"))
    return since is not None and modified <= since


def _range_applies(request: Request, etag: str, modified: int) -> bool:
    if not request.header(b"range"):
        return False
    condition = request.header(b"if-range").strip()
    # The same date and no later: a client that has half of another version must not get the other half of this one.
    return not condition or condition == etag or _parse_date(condition) == modified


def _parse_date(text: str) -> int | None:
    fields = parsedate_tz(text) if text else None
    if fields is None:
        return None
    import calendar  # on demand: few requests have dates, and each sandbox would hold the module

    return calendar.timegm((*fields[:6], 0, 0, 0)) - (fields[9] or 0)


def content_type(name: str) -> str:
    """The media type for a file name's extension, `application/octet-stream` if that is unknown."""
    kind, packed = _MIME.guess_type("x/" + name)  # otherwise a name such as `data:,x` would be read as a URL
    if packed:
        return _PACKED.get(packed, "application/octet-stream")
    kind = kind or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def disposition(name: str) -> bytes:
    """Content-Disposition for any name (RFC 6266): in ASCII, and exactly in `filename*` where they differ."""
    plain = "".join(letter if " " <= letter <= "~" and letter not in '"\\%' else "_" for letter in name)
    value = f'attachment; filename="{plain}"'
    if plain != name:
        value += f"; filename*=UTF-8''{quote(name, safe='')}"
    return value.encode("ascii")
