"""Files of a chat's sandbox, of the workspace and of the rest: /open-terminal/files.

Before its first command a chat has no sandbox; then its home is an empty folder, and only what writes makes a sandbox.
So Open WebUI, which looks for AGENTS.md in the home on every turn, starts none by that.
"""

from __future__ import annotations

import asyncio
import mimetypes
import posixpath
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.downloads import Download
from gateway.api.errors import ErrorShape, Handler, ParamError
from gateway.api.http import JSON, chunks_of, read_chunks, read_json, read_object
from gateway.api.open_terminal import query
from gateway.api.open_terminal.chats import Chat, Chats, naming_session, record_of
from gateway.api.open_terminal.edits import edited, line_offset
from gateway.api.sandbox_paths import FilePath
from gateway.api.workspace_files import WORKSPACE, Entry, OutsideWorkspaceError, WorkspaceFiles
from gateway.core.errors import BadRequestError, ConflictError, NotFoundError, WakegateError
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import Session

MAX_TEXT_BYTES = 8 << 20  # of a file that is read, written or edited as text
_MAX_BODY_BYTES = 24 << 20  # 8 MiB of text, with escapes
_MAX_UPLOAD_BYTES = 5 << 30
_MAX_LISTED = 5000
_MAX_LINKS = 64  # of a folder's, that are looked behind
_MAX_LINE = 1 << 53


class UnsupportedFileError(WakegateError):
    """A file that no text can be made of."""

    status = 415
    code = "UNSUPPORTED_FILE"


class FilesAPI:
    """/files: reading, writing, listing, uploads, in the sandbox of a chat."""

    def __init__(self, chats: Chats, caller: SandboxCaller) -> None:
        self._chats = chats
        self._caller = caller

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return naming_session({
            "open_terminal_get_cwd": self._get_cwd,
            "open_terminal_set_cwd": self._set_cwd,
            "open_terminal_list_files": self._list,
            "open_terminal_read_file": self._read,
            "open_terminal_display_file": self._display,
            "open_terminal_view_file": self._view,
            "open_terminal_serve_file": self._serve,
            "open_terminal_write_file": self._write,
            "open_terminal_replace_file_content": self._replace,
            "open_terminal_make_directory": self._mkdir,
            "open_terminal_delete_entry": self._delete,
            "open_terminal_move_entry": self._move,
            "open_terminal_upload_file": self._upload,
        })  # fmt: skip

    async def _get_cwd(self, request: Request) -> Response:
        session = await self._chats.find(request)
        root = {"path": WORKSPACE, "label": "Home"}
        return JSON({"cwd": cwd_of(session), "home": WORKSPACE, "root": root})

    async def _set_cwd(self, request: Request) -> Response:
        path = query.located("path", query.field(await read_object(request), "path"), WORKSPACE)
        session = await self._chats.ensure(request)
        if not (await self._stat(session, path, "Directory not found")).is_dir:
            raise NotFoundError("Directory not found")
        await self._chats.move(session, path.absolute)
        return JSON({"cwd": path.absolute})

    async def _list(self, request: Request) -> Response:
        session = await self._chats.find(request)
        path = query.located("directory", query.text(request, "directory", "."), cwd_of(session))
        if session is None:
            if path.root != "workspace" or path.inner != ".":
                raise NotFoundError("Directory not found")
            return JSON({"dir": path.absolute, "writable": True, "entries": []})
        if not (await self._stat(session, path, "Directory not found")).is_dir:
            raise NotFoundError("Directory not found")
        files = files_of(self._caller, session, path)
        entries = await self._behind_links(files, await files.list(inner(path), most=_MAX_LISTED))
        return JSON({"dir": path.absolute, "writable": True, "entries": [_describe(each) for each in entries]})

    async def _behind_links(self, files: WorkspaceFiles, entries: Sequence[Entry]) -> list[Entry]:
        """The entries, of links what they lead to; one that leads nowhere is left out, as with their server."""
        links = [each for each in entries if each.type == "symlink"][:_MAX_LINKS]
        if not links:
            return list(entries)
        found = dict(
            zip(
                (each.path for each in links),
                await asyncio.gather(*(_target(files, each) for each in links)),
                strict=True,
            )
        )
        return [entry for each in entries if (entry := found.get(each.path, each)) is not None]

    async def _read(self, request: Request) -> Response:
        session, path = await self._in_query(request)
        first, last = query.count(request, "start_line", 1), query.count(request, "end_line", _MAX_LINE)
        if session is None or (await self._stat(session, path, "File not found")).is_dir:
            raise NotFoundError("File not found")
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        if kind.startswith("image/") and kind != "image/svg+xml":
            return self._download(session, path, kind)
        data = await files_of(self._caller, session, path).read(inner(path), MAX_TEXT_BYTES)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise UnsupportedFileError(f"Unsupported binary file type: {kind} ({len(data)} bytes)") from None
        return JSON({"path": path.absolute, **await asyncio.to_thread(_lines, text, first, last)})

    async def _display(self, request: Request) -> Response:
        """Whether a file is there. Open WebUI shows it when it sees this answer."""
        session, path = await self._in_query(request)
        try:
            exists = session is not None and not (await self._stat(session, path, "")).is_dir
        except NotFoundError:
            exists = False
        return JSON({"path": path.absolute, "exists": exists})

    async def _view(self, request: Request) -> Response:
        session, path = await self._in_query(request)
        return self._raw(session, path)

    async def _serve(self, request: Request) -> Response:
        path = query.located("path", "/" + request.path_params["path"], WORKSPACE)
        return self._raw(await self._chats.find(request), path)

    def _raw(self, session: Session | None, path: FilePath) -> Response:
        if session is None:
            raise NotFoundError("File not found")
        return self._download(session, path, mimetypes.guess_type(path.name)[0] or "application/octet-stream")

    def _download(self, session: Session, path: FilePath, kind: str) -> Response:
        absent = NotFoundError("File not found")
        return Download(
            self._caller, session.id, inner(path), {}, absent, shape=ErrorShape.OPEN_TERMINAL, content_type=kind,
            root=path.root,
        )  # fmt: skip

    async def _write(self, request: Request) -> Response:
        body = await _body(request)
        named, content = query.field(body, "path"), query.field(body, "content", empty=True)
        data = _encoded("content", content)
        session, path = await self._to_write(request, named)
        await files_of(self._caller, session, path).write(inner(path), data)
        return JSON({"path": path.absolute, "size": len(data)})

    async def _replace(self, request: Request) -> Response:
        body = await _body(request)
        named, wanted = query.field(body, "path"), body.get("replacements")
        session = await self._chats.find(request)
        path = query.located("path", named, cwd_of(session))
        if session is None or (await self._stat(session, path, "File not found")).is_dir:
            raise NotFoundError("File not found")
        files = files_of(self._caller, session, path)
        try:
            text = (await files.read(inner(path), MAX_TEXT_BYTES)).decode()
        except UnicodeDecodeError:
            raise BadRequestError(f"{path.absolute} is not UTF-8; an edit would damage it") from None
        data = _encoded("replacements", await asyncio.to_thread(edited, text, wanted, MAX_TEXT_BYTES))
        await files.write(inner(path), data)
        return JSON({"path": path.absolute, "size": len(data)})

    async def _mkdir(self, request: Request) -> Response:
        session, path = await self._to_write(request, query.field(await read_object(request), "path"))
        await files_of(self._caller, session, path).make_directory(inner(path))
        return JSON({"path": path.absolute})

    async def _delete(self, request: Request) -> Response:
        session, path = await self._in_query(request)
        if session is None:
            raise NotFoundError("Path not found")
        entry = await self._stat(session, path, "Path not found")
        await files_of(self._caller, session, path).delete(inner(path))
        return JSON({"path": path.absolute, "type": "directory" if entry.is_dir else "file"})

    async def _move(self, request: Request) -> Response:
        body = await read_object(request)
        named, wanted = query.field(body, "source"), query.field(body, "destination")
        session = await self._chats.find(request)
        source = query.located("source", named, cwd_of(session))
        target = query.located("destination", wanted, cwd_of(session))
        if session is None:
            raise NotFoundError("Source path not found")
        await self._stat(session, source, "Source path not found")
        if source.root != target.root:
            raise BadRequestError("a move between the workspace and the rest of the sandbox is a copy; use mv for it")
        try:
            await files_of(self._caller, session, source).move(inner(source), inner(target))
        except ConflictError:
            raise ConflictError("Destination already exists") from None
        return JSON({"source": source.absolute, "destination": target.absolute})

    async def _upload(self, request: Request) -> Response:
        directory = query.text(request, "directory")
        parser = MultiPartParser(request.headers, read_chunks(request, _MAX_UPLOAD_BYTES), max_files=1, max_fields=8)
        try:
            form = await parser.parse()
        except (MultiPartException, KeyError, UnicodeDecodeError) as error:
            raise BadRequestError(f"the body is not a multipart form: {getattr(error, 'message', error)}") from None
        try:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise ParamError("file", "the form has no such part with a filename")
            name = posixpath.basename(file.filename or "") or "upload"
            session, path = await self._to_write(request, posixpath.join(directory, name))
            files = files_of(self._caller, session, path)
            await files.write(inner(path), chunks_of(file))
            return JSON({"path": path.absolute, "size": file.size or 0})
        finally:
            await form.close()

    async def _in_query(self, request: Request) -> tuple[Session | None, FilePath]:
        named = query.text(request, "path")
        session = await self._chats.find(request)
        return session, query.located("path", named, cwd_of(session))

    async def _to_write(self, request: Request, named: str) -> tuple[Session, FilePath]:
        """The session, made now if need be, and the file in it. Raises ParamError before it is made."""
        query.located("path", named, WORKSPACE)
        session = await self._chats.ensure(request)
        path = query.located("path", named, cwd_of(session))
        if not inner(path):
            raise ParamError("path", "this is the home itself; name something in it")
        return session, path

    async def _stat(self, session: Session, path: FilePath, absent: str) -> Entry:
        """Describe a file. Raises NotFoundError in Open Terminal's words."""
        try:
            return await files_of(self._caller, session, path).stat(inner(path))
        except NotFoundError:
            raise NotFoundError(absent) from None


def files_of(caller: SandboxCaller, session: Session, path: FilePath) -> WorkspaceFiles:
    """The files among which a path is."""
    return WorkspaceFiles(caller, session.id, path.root)


def inner(path: FilePath) -> str:
    """The path as WorkspaceFiles has it: empty for the workspace itself."""
    return "" if path.root == "workspace" and path.inner == "." else path.inner


def cwd_of(session: Session | None) -> str:
    """Where the relative paths of a chat begin."""
    return ((record_of(session) if session is not None else None) or Chat("", "")).cwd


async def _target(files: WorkspaceFiles, link: Entry) -> Entry | None:
    try:
        return await files.stat(link.path)
    except (NotFoundError, BadRequestError, ConflictError, OutsideWorkspaceError):
        return None


def _describe(entry: Entry) -> dict[str, Any]:
    try:
        modified = datetime.fromisoformat(entry.modified).timestamp()
    except (ValueError, OverflowError):  # the sandbox says what it likes
        modified = 0.0
    kind = "directory" if entry.is_dir else "file"
    return {"name": entry.name, "type": kind, "size": entry.size, "modified": modified, "writable": True}


def _lines(text: str, first: int, last: int) -> dict[str, Any]:
    """Some lines of a text, and how many it has. Pure."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    content = text[line_offset(text, first - 1) : line_offset(text, last)]
    return {"total_lines": text.count("\n") + (not text.endswith("\n") if text else 0), "content": content}


def _encoded(name: str, text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise ParamError(name, "contains an unpaired surrogate, which is not a character") from None
    if len(data) > MAX_TEXT_BYTES:
        raise ParamError(name, f"expected at most {MAX_TEXT_BYTES} bytes; upload larger files")
    return data


async def _body(request: Request) -> Mapping[str, Any]:
    body = await read_json(request, _MAX_BODY_BYTES)
    if not isinstance(body, dict):
        raise BadRequestError("the body must be a JSON object")
    return body
