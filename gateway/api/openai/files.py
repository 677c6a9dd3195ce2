"""The files of a container: `client.containers.files` of the `openai` SDK, on top of picod's files.

An id encodes the file's path (api/file_links.py), so files written by code have ids too. Which files a user uploaded is
recorded in the workspace itself, so that it survives hibernation and is the same for every gateway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.downloads import Download
from gateway.api.errors import ErrorShape, Handler, ParamError
from gateway.api.file_links import file_id, path_of
from gateway.api.http import JSON, chunks_of
from gateway.api.openai.containers import page_of, read_page, require_container
from gateway.api.openai.transfers import read_upload
from gateway.api.sandbox_json import MAX_ANSWER_BYTES, BadAnswerError, count_of, objects_of, parse_object, text_of
from gateway.core.errors import BadRequestError, NotFoundError, WakegateError
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import SandboxReply, SessionId
from gateway.sessions.lifecycle import Lifecycle

_RESERVED_FOLDER = ".wakegate"  # a folder of the workspace that holds the gateway's own files
_UPLOADED = f"{_RESERVED_FOLDER}/uploaded"  # one empty file per upload, named by the uploaded file's id
_PER_PAGE = 1000  # entries per request to picod
_MAX_PAGES = 20  # so a list shows at most 20,000 files
_UPLOAD_TIMEOUT_S = 3600.0
_MAX_ERROR_CHARS = 500
_MAX_PATH_CHARS = 4096


class FileNotFoundHereError(NotFoundError):
    """The container has no file with that id."""

    code = "FILE_NOT_FOUND"


class WorkspaceFullError(WakegateError):
    """The upload does not fit into the workspace's disk limit."""

    status = 507
    code = "WORKSPACE_FULL"


@dataclass(frozen=True, slots=True)
class File:
    """A file. `path` is relative to the workspace, `created_at` in seconds since the epoch."""

    path: str
    size: int
    created_at: int


class ContainerFilesAPI:
    """Handlers for a container's files, which call picod's /api/files and /api/fs."""

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
        await self._caller.ready(session.id)  # first: an error now saves the client an upload of up to 512 MB
        upload = await read_upload(request)
        try:
            # After the upload: its name is in the body.
            path = _file_name(upload.filename)
            reply = await self._caller.call(
                session.id,
                "PUT",
                f"/api/files/{quote(path)}",
                body=chunks_of(upload),
                timeout=_UPLOAD_TIMEOUT_S,
                limit=MAX_ANSWER_BYTES,
            )
        finally:
            await upload.close()
        file = _file(path, await _require_ok(reply, path))
        # Second, so that a mark never names a file that does not exist. If it fails, the client's retry writes both
        # again.
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
        # A folder has an id too, by its path, but is no file of OpenAI's API.
        found = await _require_ok(reply, path) if reply.status != 404 else {}
        if found.get("type") != "file":
            raise _no_file(request)
        from_user = file_id(path) in await self._uploaded(session_id)
        return JSON(_document(session_id, _file(path, found), from_user=from_user))

    async def _content(self, request: Request) -> Response:
        session_id, path = await self._named(request)
        asked = {name: request.headers[name] for name in ("range", "if-none-match") if name in request.headers}
        return Download(self._caller, session_id, path, asked, _no_file(request), shape=ErrorShape.OPENAI)

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
        """The session and the file's path, from the request's path. Raises NotFoundError."""
        session = await require_container(self._lifecycle, request)
        request.state.session_id = session.id
        path = path_of(request.path_params["file_id"])
        if path is None:
            raise _no_file(request)
        return session.id, path

    async def _walk(self, session_id: SessionId) -> list[File]:
        """List all files of the workspace, up to _MAX_PAGES; links are not followed."""
        files: list[File] = []
        after = ""
        for _ in range(_MAX_PAGES):
            reply = await self._ask(session_id, "GET", f"/api/fs/tree?limit={_PER_PAGE}&after={after}")
            page = await _require_ok(reply, "the workspace")
            for entry in objects_of(page, "entries"):
                path = text_of(entry, "path")
                if entry.get("type") == "file" and not path.startswith(f"{_RESERVED_FOLDER}/"):
                    files.append(_file(path, entry))
            # From the sandbox, and bounded before it becomes part of a URL.
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
        """Send a request without a body to picod, and read its small JSON answer."""
        return await self._caller.call(session_id, method, target, limit=MAX_ANSWER_BYTES)


def _file_name(name: str | None) -> str:
    """The last component of an upload's file name, as browsers may send a whole path. Raises ParamError."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    if last in ("", ".", "..", _RESERVED_FOLDER) or "\0" in last or len(last.encode("utf-8", "replace")) > 255:
        raise ParamError("file", "invalid file name; expected 1 to 255 bytes, e.g. data.csv")
    return last


async def _require_ok(reply: SandboxReply, path: str) -> Mapping[str, Any]:
    """Decode picod's JSON answer. Raises WorkspaceFullError or BadRequestError for an error, BadAnswerError."""
    value = await parse_object(reply.body)
    if reply.status == 200:
        return value
    message = f"{path}: {text_of(value, 'error', '')[:_MAX_ERROR_CHARS] or f'status {reply.status}'}"
    raise WorkspaceFullError(message) if reply.status == 507 else BadRequestError(message)


def _file(path: str, entry: Mapping[str, Any]) -> File:
    """Make a File of picod's entry for it. Raises BadAnswerError."""
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
