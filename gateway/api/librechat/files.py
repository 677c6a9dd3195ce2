"""Files that LibreChat uploads, lists, asks about, downloads and deletes."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.downloads import Download
from gateway.api.errors import ErrorShape, Handler, ParamError
from gateway.api.http import JSON, chunks_of, read_chunks
from gateway.api.librechat.storage import Storage, Stored, file_id
from gateway.api.sessions import while_connected
from gateway.api.workspace_files import inner_path
from gateway.core.errors import BadRequestError, NotFoundError, WakegateError, public_message
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import Session

_MAX_UPLOAD_BYTES = 1 << 30  # of a form; LibreChat's own bound is 150 MiB
_MAX_FILES = 256
_KINDS = ("user", "agent", "skill")


class FilesAPI:
    """Uploads, downloads and lists of the files that programs read and write."""

    def __init__(self, storage: Storage, caller: SandboxCaller) -> None:
        self._storage = storage
        self._caller = caller

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {
            "librechat_upload": self._upload,
            "librechat_upload_batch": self._upload_batch,
            "librechat_list_files": self._list,
            "librechat_get_object": self._object,
            "librechat_download": self._download,
            "librechat_delete_file": self._delete,
        }

    async def _upload(self, request: Request) -> Response:
        """Store one file, or the files of older clients' forms, in a storage session of its own."""
        form = await _form(request)
        try:
            parts, names = _parts(form)
            async with self._storage.made(request, shared=_is_shared(form)) as session:
                await while_connected(request, self._write_all(session, parts, names), "an upload")
        finally:
            await form.close()
        files = [{"fileId": file_id(name), "filename": name} for name in names]
        # Both names of the same thing: clients before 0.8.5 read the first, later ones the second.
        return JSON({
            "message": "success", "session_id": session.id, "storage_session_id": session.id, "files": files,
        })  # fmt: skip

    async def _upload_batch(self, request: Request) -> Response:
        """Store the files of a form in one storage session; one that fails does not stop the others."""
        form = await _form(request)
        try:
            parts, names = _parts(form)
            async with self._storage.made(request, shared=_is_shared(form)) as session:
                files = await while_connected(request, self._write_each(session, parts, names), "an upload")
        finally:
            await form.close()
        failed = sum(each["status"] == "error" for each in files)
        message = "error" if failed == len(files) else "success" if not failed else "partial"
        return JSON({
            "message": message, "session_id": session.id, "storage_session_id": session.id, "files": files,
            "succeeded": len(files) - failed, "failed": failed,
        })  # fmt: skip

    async def _write_all(self, session: Session, parts: Sequence[UploadFile], names: Sequence[str]) -> None:
        for part, name in zip(parts, names, strict=True):
            await self._storage.files(session).write(name, chunks_of(part))

    async def _write_each(
        self, session: Session, parts: Sequence[UploadFile], names: Sequence[str]
    ) -> list[dict[str, Any]]:
        files: list[dict[str, Any]] = []
        for part, name in zip(parts, names, strict=True):
            try:
                await self._storage.files(session).write(name, chunks_of(part))
                files.append({"status": "success", "fileId": file_id(name), "filename": name})
            except WakegateError as error:
                files.append({"status": "error", "filename": name, "error": public_message(error)})
        return files

    async def _list(self, request: Request) -> Response:
        session = await self._storage.require(request, request.path_params["session_id"])
        return JSON([_describe(each) for each in await self._storage.list(session)])

    async def _object(self, request: Request) -> Response:
        return JSON(_describe(await self._named(request)))

    async def _download(self, request: Request) -> Response:
        stored = await self._named(request)
        absent = NotFoundError(f"{stored.path} is not there any more")
        return Download(self._caller, stored.session_id, stored.path, {}, absent, shape=ErrorShape.NATIVE)

    async def _delete(self, request: Request) -> Response:
        session = await self._storage.require(request, request.path_params["session_id"])
        stored = await self._storage.find(session, request.path_params["file_id"])
        await self._storage.files(session).delete(stored.path)
        return JSON({"message": "success"})

    async def _named(self, request: Request) -> Stored:
        session = await self._storage.require(request, request.path_params["session_id"])
        return await self._storage.find(session, request.path_params["file_id"])


async def _form(request: Request) -> FormData:
    try:
        # All of it before a session is made: a form that breaks off makes none.
        body = read_chunks(request, _MAX_UPLOAD_BYTES)
        return await MultiPartParser(request.headers, body, max_files=_MAX_FILES, max_fields=16).parse()
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        raise BadRequestError(f"the body is not a multipart form: {getattr(error, 'message', error)}") from None


def _parts(form: FormData) -> tuple[Sequence[UploadFile], Sequence[str]]:
    """The files of a form, and where each goes. Raises ParamError, BadRequestError, OutsideWorkspaceError."""
    parts = [each for name in ("file", "files") for each in form.getlist(name) if isinstance(each, UploadFile)]
    if not parts:
        raise ParamError("file", "the form has no such part with a filename")
    names = [inner_path(posixpath.normpath("/workspace/" + (each.filename or "").lstrip("/"))) for each in parts]
    if not all(names):
        raise ParamError("file", "a part has no filename")
    return parts, names


def _is_shared(form: FormData) -> bool:
    """Whether the files are an agent's or a skill's. Raises ParamError."""
    kind = form.get("kind")
    if kind is None:
        return bool(form.get("entity_id"))  # of older clients: the agent
    if kind not in _KINDS:
        raise ParamError("kind", f"expected one of {', '.join(_KINDS)}")
    return kind != "user"


def _describe(stored: Stored) -> dict[str, Any]:
    extension = posixpath.splitext(stored.path)[1]
    return {
        "id": stored.id,
        "name": f"{stored.session_id}/{stored.id}{extension}",
        "session_id": stored.session_id,
        "storage_session_id": stored.session_id,
        "size": stored.entry.size,
        "lastModified": stored.entry.modified,
        "originalFilename": stored.path,
        "metadata": {"original-filename": stored.path},
    }
