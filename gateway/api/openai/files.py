"""The files of a container: `client.containers.files` of the `openai` SDK, over picod's files.

An id is the file's path (file_ids.py), so files that code wrote have one as well. Whether a user put a file there is
kept beside it in the workspace, so that it survives sleep and every gateway knows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.api.errors import ErrorShape, Handler, ParamError, error_response
from gateway.api.file_links import file_id, path_of
from gateway.api.http import JSON, session_headers
from gateway.api.openai.containers import page_of, read_page, require_container
from gateway.api.restored import current_note
from gateway.api.sandbox_json import MAX_ANSWER_BYTES, BadAnswerError, count_of, objects_of, parse_object, text_of
from gateway.core.errors import (
    BadRequestError,
    NotFoundError,
    RequestTimeoutError,
    TooLargeError,
    WakegateError,
)
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import SandboxReply, SessionId
from gateway.sessions.lifecycle import Lifecycle

MAX_UPLOAD_BYTES = 512 << 20  # as at OpenAI
_RESERVED_FOLDER = ".wakegate"  # a folder of the workspace that holds the gateway's own files
_UPLOADED = f"{_RESERVED_FOLDER}/uploaded"  # one empty file for each that a user put there, named by its id
_PER_PAGE = 1000  # entries that picod is asked for at once
_MAX_PAGES = 20
_PIECE_BYTES = 1 << 20
_UPLOAD_TIMEOUT_S = 3600.0
_MAX_ERROR_CHARS = 500
_MAX_PATH_CHARS = 4096
_FORWARDED_HEADERS = ("content-type", "content-length", "content-range", "accept-ranges", "etag", "last-modified")


class FileNotFoundHereError(NotFoundError):
    """The container has no file with that id."""

    code = "FILE_NOT_FOUND"


class WorkspaceFullError(WakegateError):
    """The upload does not fit into the workspace's disk limit."""

    status = 507
    code = "WORKSPACE_FULL"


@dataclass(frozen=True, slots=True)
class File:
    """One file. `path` is relative to the workspace, `created_at` in seconds since the epoch."""

    path: str
    size: int
    created_at: int


class ContainerFilesAPI:
    """The handlers of a container's files, over picod's /api/files and /api/fs."""

    def __init__(self, lifecycle: Lifecycle, caller: SandboxCaller) -> None:
        self._lifecycle = lifecycle
        self._caller = caller

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {
            "create_container_file": self._create,
            "list_container_files": self._list,
            "get_container_file": self._retrieve,
            "delete_container_file": self._delete,
            "get_container_file_content": self._content,
        }

    async def _create(self, request: Request) -> Response:
        session = await require_container(self._lifecycle, request)
        request.state.session_id = session.id
        await self._caller.ready(session.id)  # before the upload is taken in
        upload = await _read_upload(request)
        try:
            path = _file_name(upload.filename)
            reply = await self._caller.call(
                session.id,
                "PUT",
                f"/api/files/{quote(path)}",
                body=_pieces(upload),
                timeout=3600.0,
                limit=MAX_ANSWER_BYTES,
            )
        finally:
            await upload.close()
        file = _file(path, await _require_ok(reply, path))
        marked = await self._ask(session.id, "PUT", f"/api/files/{_UPLOADED}/{file_id(path)}")
        await _require_ok(marked, path)
        return JSON(_document(session.id, file, from_user=True))

    async def _list(self, request: Request) -> Response:
        after, limit, order = read_page(request)
        session = await require_container(self._lifecycle, request)
        request.state.session_id = session.id
        files = await self._walk(session.id)
        files.sort(key=lambda each: (each.created_at, each.path), reverse=order == "desc")
        uploaded = await self._uploaded(session.id)
        documents = [_document(session.id, each, from_user=file_id(each.path) in uploaded) for each in files]
        return JSON(page_of(documents, after, limit))

    async def _retrieve(self, request: Request) -> Response:
        session_id, path = await self._named(request)
        reply = await self._ask(session_id, "GET", f"/api/fs/stat?path={quote(path, safe='')}")
        found = await _require_ok(reply, path) if reply.status != 404 else {}
        if found.get("type") != "file":
            raise _no_file(request)
        from_user = file_id(path) in await self._uploaded(session_id)
        return JSON(_document(session_id, _file(path, found), from_user=from_user))

    async def _content(self, request: Request) -> Response:
        session_id, path = await self._named(request)
        asked = {name: request.headers[name] for name in ("range", "if-none-match") if name in request.headers}
        return _Download(self._caller, session_id, path, asked, _no_file(request))

    async def _delete(self, request: Request) -> Response:
        session_id, path = await self._named(request)
        reply = await self._ask(session_id, "DELETE", f"/api/files/{quote(path)}")
        if reply.status == 404:
            raise _no_file(request)
        if reply.status not in (200, 204):
            await _require_ok(reply, path)
        await self._ask(session_id, "DELETE", f"/api/files/{_UPLOADED}/{file_id(path)}")  # absent is fine
        return JSON({"id": file_id(path), "object": "container.file.deleted", "deleted": True})

    async def _named(self, request: Request) -> tuple[SessionId, str]:
        """The session and the path that a request's path names. Raises NotFoundError."""
        session = await require_container(self._lifecycle, request)
        request.state.session_id = session.id
        path = path_of(request.path_params["file_id"])
        if path is None:
            raise _no_file(request)
        return session.id, path

    async def _walk(self, session_id: SessionId) -> list[File]:
        """All files of the workspace, within bounds; links are not followed."""
        files: list[File] = []
        after = ""
        for _ in range(_MAX_PAGES):
            reply = await self._ask(session_id, "GET", f"/api/fs/tree?limit={_PER_PAGE}&after={after}")
            page = await _require_ok(reply, "the workspace")
            for entry in objects_of(page, "entries"):
                path = text_of(entry, "path")
                if entry.get("type") == "file" and not path.startswith(f"{_RESERVED_FOLDER}/"):
                    files.append(_file(path, entry))
            after = quote(text_of(page, "next", "")[:_MAX_PATH_CHARS], safe="")
            if not after:
                break
        return files

    async def _uploaded(self, session_id: SessionId) -> frozenset[str]:
        reply = await self._ask(session_id, "GET", f"/api/files?path={quote(_UPLOADED, safe='')}")
        if reply.status != 200:
            return frozenset()
        return frozenset(text_of(each, "name") for each in objects_of(await _require_ok(reply, _UPLOADED), "files"))

    async def _ask(self, session_id: SessionId, method: str, target: str) -> SandboxReply:
        """A request whose answer is a small JSON object."""
        return await self._caller.call(session_id, method, target, limit=MAX_ANSWER_BYTES)


class _Download(Response):
    """Streams a file's bytes out of the sandbox; its connection is released however this ends."""

    def __init__(
        self, caller: SandboxCaller, session_id: SessionId, path: str, asked: Mapping[str, str], absent: WakegateError
    ) -> None:
        super().__init__()
        self._caller = caller
        self._session_id = session_id
        self._target = f"/api/files/{quote(path)}"
        self._name = path.rpartition("/")[2]
        self._asked = asked
        self._absent = absent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            opened = self._caller.stream(self._session_id, "GET", self._target, headers=self._asked)
            async with opened as (reply, chunks):
                if reply.status not in (200, 206, 304, 416):
                    raise self._absent
                fields = {name: reply.headers[name] for name in _FORWARDED_HEADERS if name in reply.headers}
                fields |= {**session_headers(self._session_id), **_download_headers(self._name)}
                fields |= current_note().headers()
                headers = [(name.encode(), value.encode("latin-1")) for name, value in fields.items()]
                started = True
                await send({"type": "http.response.start", "status": reply.status, "headers": headers})
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except WakegateError as error:
            if started:
                raise  # it can only be cut off, so that the client sees that it is not whole
            response = error_response(error, ErrorShape.OPENAI)
            response.headers.update(current_note().headers())
            await response(scope, receive, send)


def _download_headers(name: str) -> dict[str, str]:
    """What keeps a file from acting as a page of this gateway: code in a sandbox writes HTML and names its type.

    Browsers save it; one that renders it nevertheless (a frame, a plug-in) gives it an opaque origin and no scripts.
    The name is encoded as RFC 6266 and RFC 8187 have it.
    """
    return {
        "content-disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        "x-content-type-options": "nosniff",
        "content-security-policy": "sandbox",
    }


async def _read_upload(request: Request) -> UploadFile:
    """The `file` of a multipart form, on disk if it is large. Raises ParamError, TooLargeError, RequestTimeoutError."""
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise ParamError("file", "missing; send the file itself, as multipart/form-data (there is no Files API here)")
    try:
        form = await MultiPartParser(request.headers, _bounded_body(request), max_files=1, max_fields=16).parse()
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        raise BadRequestError(f"the body is not a multipart form: {getattr(error, 'message', error)}") from None
    except ClientDisconnect:
        raise BadRequestError("the client left while sending its request") from None
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise ParamError("file", "missing; expected a part with that name and a file name")
    return upload


async def _bounded_body(request: Request) -> AsyncGenerator[bytes, None]:
    """The body as it comes. Raises RequestTimeoutError after the idle timeout, TooLargeError beyond the limit."""
    idle: float = request.app.state.body_idle
    stream, size = request.stream(), 0
    while True:
        try:
            async with asyncio.timeout(idle):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise RequestTimeoutError(f"no byte of the request's body came for {idle:g} s") from None
        if chunk is None:
            return
        size += len(chunk)
        if size > MAX_UPLOAD_BYTES:
            raise TooLargeError(f"the file is larger than {MAX_UPLOAD_BYTES} bytes")
        yield chunk


async def _pieces(upload: UploadFile) -> AsyncIterator[bytes]:
    while piece := await upload.read(_PIECE_BYTES):
        yield piece


def _file_name(name: str | None) -> str:
    """The last part of an upload's name. Raises ParamError."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    if last in ("", ".", "..", _RESERVED_FOLDER) or "\0" in last or len(last.encode("utf-8", "replace")) > 255:
        raise ParamError("file", "its file name cannot be that of a file; expected 1 to 255 bytes, e.g. data.csv")
    return last


async def _require_ok(reply: SandboxReply, path: str) -> Mapping[str, Any]:
    """picod's JSON. Raises what its refusal means, BadAnswerError for what is none of picod's answers."""
    value = await parse_object(reply.body)
    if reply.status == 200:
        return value
    message = f"{path}: {text_of(value, 'error', '')[:_MAX_ERROR_CHARS] or f'status {reply.status}'}"
    raise WorkspaceFullError(message) if reply.status == 507 else BadRequestError(message)


def _file(path: str, entry: Mapping[str, Any]) -> File:
    """Of an entry with `size` and `modified`. Raises BadAnswerError."""
    return File(path, count_of(entry, "size"), _seconds(text_of(entry, "modified")))


def _seconds(moment: str) -> int:
    try:
        return int(datetime.fromisoformat(moment).timestamp())
    except (ValueError, OverflowError):
        raise BadAnswerError("the sandbox's answer: modified is not a time") from None


def _document(session_id: SessionId, file: File, *, from_user: bool) -> dict[str, Any]:
    return {
        "id": file_id(file.path),
        "object": "container.file",
        "container_id": session_id,
        "created_at": file.created_at,
        "bytes": file.size,
        "path": f"/workspace/{file.path}",
        "source": "user" if from_user else "assistant",
    }


def _no_file(request: Request) -> FileNotFoundHereError:
    return FileNotFoundHereError(f"Container file with id '{request.path_params['file_id'][:128]}' not found.")
