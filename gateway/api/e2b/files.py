"""envd's /files: download one file, upload one or many. Bodies are streamed both ways.

Source: github.com/e2b-dev/infra, packages/envd/spec/envd.yaml.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any
from urllib.parse import quote

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.api.e2b.answers import error_answer
from gateway.api.e2b.sandbox import SandboxClient, error_text, read_error
from gateway.api.http import JSON, chunks_of, read_chunks
from gateway.api.sandbox_json import MAX_ANSWER_BYTES, parse_object
from gateway.api.sandbox_paths import FilePath, PathError, resolve
from gateway.core.errors import BadRequestError, TooLargeError

MAX_UPLOAD_BYTES = 5 << 30
_MAX_FILES = 1000  # of one upload
_CHUNK_BYTES = 1 << 20
_UPLOAD_TIMEOUT_S = 3600.0  # 5 GiB at 1.5 MB/s
# Of picod's answer. Others are left out: among them are those by which the gateway and picod understand each other.
_HEADERS = ("content-type", "content-length", "content-range", "accept-ranges", "etag", "last-modified")
_GZIP = 16 + zlib.MAX_WBITS  # 16: with gzip's header and checksum, not zlib's


class Download(Response):
    """Streams a file out of the sandbox, and releases the sandbox's connection also when the client leaves."""

    def __init__(self, sandbox: SandboxClient, path: FilePath, request: Request) -> None:
        super().__init__()
        self._sandbox = sandbox
        self._path = path
        self._asked = {name: request.headers[name] for name in ("range", "if-none-match") if name in request.headers}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, or an error as long as nothing has been sent."""
        async with self._sandbox.stream("GET", self._path.target, headers=self._asked) as (reply, chunks):
            if reply.status not in (200, 206, 304, 416):
                error = await read_error(reply, chunks)
                text = f"path '{self._path.absolute}' does not exist" if reply.status == 404 else str(error)
                await error_answer(reply.status, text)(scope, receive, send)
                return
            fields = {name: reply.headers[name] for name in _HEADERS if name in reply.headers}
            # Not `inline`, as envd says: a browser would show what code wrote as a page of the gateway's origin.
            fields |= {
                "content-disposition": f"attachment; filename*=UTF-8''{quote(self._path.name, safe='')}",
                "x-content-type-options": "nosniff",
                "content-security-policy": "sandbox",
            }
            headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
            await send({"type": "http.response.start", "status": reply.status, "headers": headers})
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def path_in_query(request: Request) -> FilePath:
    """The file that the query names. Raises BadRequestError."""
    return _resolve(request.query_params.get("path", ""))


async def upload(sandbox: SandboxClient, request: Request) -> Response:
    """Write the files of a form, or the body as one file.

    Raises BadRequestError, TooLargeError, RequestTimeoutError.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        return await _upload_form(sandbox, request)
    if content_type not in ("application/octet-stream", ""):
        raise BadRequestError(
            f"content type {content_type[:64]!r}: expected multipart/form-data or application/octet-stream"
        )
    path = path_in_query(request)
    if not request.query_params.get("path"):  # else it would be the home folder, which is no file
        raise BadRequestError("path: missing in the query")
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip"):
        raise BadRequestError(f"content-encoding {encoding[:32]!r}: expected gzip or none")
    body = read_chunks(request, MAX_UPLOAD_BYTES)
    written = await _write(sandbox, path, _unpacked(body) if encoding == "gzip" else body)
    return written if isinstance(written, Response) else JSON([written])


async def _upload_form(sandbox: SandboxClient, request: Request) -> Response:
    parser = MultiPartParser(
        request.headers, read_chunks(request, MAX_UPLOAD_BYTES), max_files=_MAX_FILES, max_fields=16
    )
    try:
        # All of it before anything is written, so that a form that breaks off in its third file writes none of them.
        # Parts over 1 MiB wait in files meanwhile.
        form = await parser.parse()
    except MultiPartException as error:
        raise BadRequestError(f"the form is malformed: {error.message}") from None
    try:
        uploads = [each for each in form.getlist("file") if isinstance(each, UploadFile)]
        if not uploads:
            raise BadRequestError("file: the form has no such part")
        named = request.query_params.get("path")
        if named and len(uploads) > 1:
            raise BadRequestError("path: leave it out where the form has several files; each is named by its filename")
        entries = []
        for each in uploads:
            written = await _write(sandbox, _resolve(named or each.filename or ""), chunks_of(each))
            if isinstance(written, Response):
                return written  # those before it stay, as with envd
            entries.append(written)
        return JSON(entries)
    finally:
        await form.close()


async def _write(sandbox: SandboxClient, path: FilePath, chunks: AsyncIterator[bytes]) -> dict[str, Any] | Response:
    """Write one file. Returns its entry, or the error's answer."""
    reply = await sandbox.caller.call(
        sandbox.session_id, "PUT", path.target, body=chunks, timeout=_UPLOAD_TIMEOUT_S, limit=MAX_ANSWER_BYTES
    )
    if reply.status != 200:
        text = error_text(await parse_object(reply.body), reply.status)
        # The SDKs know 507 as "no space left"; of the others, only whether to blame the request.
        return error_answer(507 if reply.status == 507 else 400 if reply.status < 500 else 500, text)
    return {"path": path.absolute, "name": path.name, "type": "file"}


async def _unpacked(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """What gzip packed, in pieces of a bounded size. Raises BadRequestError, TooLargeError."""
    unpack = zlib.decompressobj(_GZIP)
    size = 0
    try:
        async for chunk in chunks:
            while chunk:
                # Bounded in what comes out: a chunk of 1 MiB may unpack to 1 GiB.
                data = unpack.decompress(chunk, _CHUNK_BYTES)
                chunk = unpack.unconsumed_tail
                size += len(data)
                if size > MAX_UPLOAD_BYTES:
                    raise TooLargeError(f"the upload is larger than {MAX_UPLOAD_BYTES} bytes when it is unpacked")
                if data:
                    yield data
                await asyncio.sleep(0)  # a bomb of zeros would hold the loop
        rest = unpack.flush()
    except zlib.error as error:
        raise BadRequestError(f"the body is not gzip: {error}") from None
    if not unpack.eof:
        raise BadRequestError("the body is not whole: gzip's end is missing")
    if rest:
        yield rest


def _resolve(path: str) -> FilePath:
    try:
        return resolve(path)
    except PathError as error:
        raise BadRequestError(str(error)) from None
