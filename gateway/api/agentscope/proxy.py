"""`sandbox.fs` of AgentScope Runtime 1.1: files of the workspace, below /agentscope/proxy/SANDBOX/workspace/.

Their manager passes such requests on to a server in the sandbox (box/shared/routers/workspace.py); here they are
answered out of picod's API. Nothing else below /proxy is served: their other paths belong to servers in their images.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.agentscope.named import find_sandbox
from gateway.api.downloads import Download
from gateway.api.errors import ErrorShape, Handler, ParamError
from gateway.api.http import JSON, chunks_of, read_chunks, read_object
from gateway.api.workspace_files import Entry, WorkspaceFiles, absolute_path, inner_path
from gateway.core.errors import BadRequestError, NotFoundError
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import SessionId
from gateway.sessions.lifecycle import Lifecycle

_MAX_UPLOAD_BYTES = 5 << 30
_MAX_FILES = 256  # of one form
_MAX_DEPTH = 64
_TYPES = {"file": "file", "directory": "dir", "symlink": "symlink"}


class WorkspaceProxy:
    """The handlers of the workspace's files."""

    def __init__(self, lifecycle: Lifecycle, caller: SandboxCaller) -> None:
        self._lifecycle = lifecycle
        self._caller = caller

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {
            "agentscope_read_file": self._read,
            "agentscope_write_file": self._write,
            "agentscope_write_files": self._write_many,
            "agentscope_list_directory": self._list,
            "agentscope_file_exists": self._exists,
            "agentscope_delete_entry": self._delete,
            "agentscope_move_entry": self._move,
            "agentscope_make_directory": self._mkdir,
        }

    async def _read(self, request: Request) -> Response:
        session_id, path = await self._sandbox(request), _in_query(request)
        kind = request.query_params.get("format", "text")
        if kind not in ("text", "bytes"):
            raise ParamError("format", "expected text or bytes")
        # With the charset: without one their client (requests) takes text for Latin-1.
        content_type = "text/plain; charset=utf-8" if kind == "text" else "application/octet-stream"
        absent = NotFoundError(f"not found: {absolute_path(path)}")
        return Download(
            self._caller, session_id, path, {}, absent, shape=ErrorShape.AGENTSCOPE, content_type=content_type
        )

    async def _write(self, request: Request) -> Response:
        files, path = await self._files(request), _in_query(request)
        await files.write(path, read_chunks(request, _MAX_UPLOAD_BYTES))
        return JSON(describe(await files.stat(path)))

    async def _write_many(self, request: Request) -> Response:
        files = await self._files(request)
        try:
            # All of it before anything is written: a form that breaks off in its third file writes none of them.
            body = read_chunks(request, _MAX_UPLOAD_BYTES)
            form = await MultiPartParser(request.headers, body, max_files=_MAX_FILES, max_fields=_MAX_FILES).parse()
        except (MultiPartException, KeyError, UnicodeDecodeError) as error:
            raise BadRequestError(f"the body is not a multipart form: {getattr(error, 'message', error)}") from None
        try:
            parts = [each for each in form.getlist("files") if isinstance(each, UploadFile)]
            names = [each for each in form.getlist("paths") if isinstance(each, str)]
            if names and len(names) != len(parts):
                raise ParamError("paths", "as many are expected as there are files")
            targets = [inner_path(each) for each in names or [part.filename or "" for part in parts]]
            entries = []
            for target, part in zip(targets, parts, strict=True):
                await files.write(target, chunks_of(part))
                entries.append(describe(await files.stat(target)))
            return JSON(entries)
        finally:
            await form.close()

    async def _list(self, request: Request) -> Response:
        files, path = await self._files(request), _in_query(request)
        depth = request.query_params.get("depth", "1")
        if not (depth.isascii() and depth.isdigit() and len(depth) < 9 and int(depth) > 0):
            raise ParamError("depth", "expected a whole number above zero")
        return JSON([describe(each) for each in await files.list(path, depth=min(int(depth), _MAX_DEPTH))])

    async def _exists(self, request: Request) -> Response:
        files, path = await self._files(request), _in_query(request)
        try:
            await files.stat(path)
        except NotFoundError:
            return JSON({"exists": False})
        return JSON({"exists": True})

    async def _delete(self, request: Request) -> Response:
        """Also 204 for what is absent: it is deleted already."""
        files, path = await self._files(request), _in_query(request)
        try:
            await files.delete(path)
        except NotFoundError:
            pass
        return Response(status_code=204)

    async def _move(self, request: Request) -> Response:
        files, body = await self._files(request), await read_object(request)
        source, target = _field(body, "source"), _field(body, "destination")
        await files.move(source, target, replace=True)
        return JSON(describe(await files.stat(target)))

    async def _mkdir(self, request: Request) -> Response:
        files, body = await self._files(request), await read_object(request)
        return JSON({"created": await files.make_directory(_field(body, "path"))})

    async def _files(self, request: Request) -> WorkspaceFiles:
        return WorkspaceFiles(self._caller, await self._sandbox(request))

    async def _sandbox(self, request: Request) -> SessionId:
        session, _ = await find_sandbox(self._lifecycle, request, request.path_params["session_id"])
        return session.id


def describe(entry: Entry) -> dict[str, Any]:
    """A file as their server describes it. Pure."""
    try:
        modified = int(datetime.fromisoformat(entry.modified).timestamp() * 1000)
    except (ValueError, OverflowError):  # the sandbox says what it likes
        modified = 0
    return {
        "path": absolute_path(entry.path),
        "name": entry.name,
        "type": _TYPES.get(entry.type, "other"),
        "size": entry.size if entry.type == "file" else None,
        "mtime_ms": modified,
    }


def _in_query(request: Request) -> str:
    value = request.query_params.get("path")
    if not value:
        raise ParamError("path", "missing in the query")
    return inner_path(value)


def _field(body: Any, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise ParamError(name, "expected text")
    return inner_path(value)
