"""Jupyter's contents API over the workspaces of kernels: /api/contents/KERNEL/PATH.

A Jupyter server has one tree of files, and here each kernel has its own. So the first component of a path is a kernel's
id, and the root lists the kernels as folders. Rejected: the files of the newest kernel at the root, which would become
others when a kernel is started.
Source: jupyter-server.readthedocs.io/en/latest/developers/contents.html, rest-api.html.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import mimetypes
import posixpath
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler, ParamError
from gateway.api.http import JSON, read_json, read_object
from gateway.api.jupyter.named import find_kernel, list_kernels
from gateway.api.sandbox_json import MAX_VALUES, BadAnswerError, count_values, parse_object
from gateway.api.workspace_files import Entry, WorkspaceFiles, inner_path
from gateway.core import json_depth
from gateway.core.errors import BadRequestError, ConflictError, NotFoundError
from gateway.core.interfaces import SandboxCaller, SessionStore
from gateway.core.model import Session
from gateway.core.units import rfc3339
from gateway.sessions.lifecycle import Lifecycle

MAX_FILE_BYTES = 16 << 20  # of one file, which is one JSON document in each direction
_MAX_BODY_BYTES = 24 << 20  # 16 MiB in base64 are 21.4 MiB
_MAX_LISTED = 5000  # entries of a folder
_MAX_UNTITLED = 100  # tries for a free name
_CHECKPOINT = "checkpoint"  # the only one that a file has, as with Jupyter's own FileCheckpoints
_CHECKPOINTS = ".ipynb_checkpoints"
_EMPTY_NOTEBOOK = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


class ContentsAPI:
    """The handlers of files and their checkpoints."""

    def __init__(self, lifecycle: Lifecycle, store: SessionStore, caller: SandboxCaller) -> None:
        self._lifecycle = lifecycle
        self._store = store
        self._caller = caller

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {
            "jupyter_list_contents": self._root,
            "jupyter_get_folder": self._get,
            "jupyter_get_file": self._get,
            "jupyter_save_file": self._save,
            "jupyter_create_in_folder": self._create,
            "jupyter_create_file": self._create,
            "jupyter_rename_file": self._rename,
            "jupyter_delete_file": self._delete,
            "jupyter_list_checkpoints": self._list_checkpoints,
            "jupyter_create_checkpoint": self._create_checkpoint,
            "jupyter_restore_checkpoint": self._restore_checkpoint,
            "jupyter_delete_checkpoint": self._delete_checkpoint,
        }

    async def _root(self, _: Request) -> Response:
        kernels = [_kernel_folder(each) for each in await list_kernels(self._store)]
        return JSON({**_model("", "", "directory", "", None), "format": "json", "content": kernels})

    async def _get(self, request: Request) -> Response:
        session, path = await self._named(request)
        query = request.query_params
        files = self._files(session)
        entry = await files.stat(path)
        model = describe(session, entry)
        if (wanted := query.get("type")) not in (None, "", model["type"]) and not (
            wanted == "file" and model["type"] == "notebook"
        ):
            raise BadRequestError(f"{model['path']} is a {model['type']}, not a {str(wanted)[:32]}")
        if query.get("content") == "0":
            return JSON(model)
        if entry.is_dir:
            found = await files.list(path, most=_MAX_LISTED)
            listed = [describe(session, each) for each in found if each.name != _CHECKPOINTS]
            return JSON({**model, "format": "json", "content": listed})
        data = await files.read(path, MAX_FILE_BYTES)
        kind = "notebook" if model["type"] == "notebook" and wanted != "file" else "file"
        return await _json({**model, "type": kind, **await _content(data, kind, query.get("format") or "")})

    async def _save(self, request: Request) -> Response:
        session, path = await self._named(request)
        body = await read_json(request, _MAX_BODY_BYTES, _loads)
        if not isinstance(body, dict):
            raise BadRequestError("the body must be a JSON object")
        if body.get("chunk") is not None:
            raise ParamError("chunk", f"a file comes whole here, up to {MAX_FILE_BYTES} bytes")
        files = self._files(session)
        if body.get("type") == "directory":
            made = await files.make_directory(path)
        else:
            data = await asyncio.to_thread(file_bytes, body)
            made = not await _is_there(files, path)
            await files.write(path, data)
        return JSON(describe(session, await files.stat(path)), 201 if made else 200)

    async def _create(self, request: Request) -> Response:
        """An untitled file, or a copy of one."""
        session, folder = await self._named(request)
        files, body = self._files(session), await read_object(request)
        copied = body.get("copy_from")
        if copied is not None:
            source = _same_kernel(session, copied, "copy_from")
            data = await files.read(source, MAX_FILE_BYTES)
            stem, extension = posixpath.splitext(posixpath.basename(source))
            path = await self._free_name(files, folder, f"{stem}-Copy", extension, first=1)
            await files.write(path, data)
        else:
            kind, extension = body.get("type") or "file", body.get("ext") or ""
            if kind not in ("directory", "notebook", "file"):
                raise ParamError("type", "expected directory, notebook or file")
            if not isinstance(extension, str) or len(extension) > 32 or "/" in extension:
                raise ParamError("ext", "expected an extension such as .txt")
            stem = {"directory": "Untitled Folder", "notebook": "Untitled", "file": "untitled"}[kind]
            path = await self._free_name(files, folder, stem, ".ipynb" if kind == "notebook" else extension, first=0)
            if kind == "directory":
                await files.make_directory(path)
            else:
                await files.write(path, orjson.dumps(_EMPTY_NOTEBOOK) if kind == "notebook" else b"")
        model = describe(session, await files.stat(path))
        return JSON(model, 201, {"location": f"/jupyter/api/contents/{session.id}"})

    async def _free_name(self, files: WorkspaceFiles, folder: str, stem: str, extension: str, *, first: int) -> str:
        taken = {each.name for each in await files.list(folder, most=_MAX_LISTED)}
        for number in range(first, first + _MAX_UNTITLED):
            name = f"{stem}{number or ''}{extension}"
            if name not in taken:
                return inner_path(posixpath.join(folder, name))
        raise ConflictError(f"there are {_MAX_UNTITLED} files named {stem}N{extension} already")

    async def _rename(self, request: Request) -> Response:
        session, path = await self._named(request)
        target = _same_kernel(session, (await read_object(request)).get("path"), "path")
        files = self._files(session)
        await files.move(path, target)
        return JSON(describe(session, await files.stat(target)))

    async def _delete(self, request: Request) -> Response:
        session, path = await self._named(request)
        await self._files(session).delete(path)
        return Response(status_code=204)

    async def _list_checkpoints(self, request: Request) -> Response:
        session, path = await self._named(request)
        try:
            entry = await self._files(session).stat(_checkpoint_of(path))
        except NotFoundError:
            return JSON([])
        return JSON([{"id": _CHECKPOINT, "last_modified": entry.modified}])

    async def _create_checkpoint(self, request: Request) -> Response:
        session, path = await self._named(request)
        entry = await self._copy(self._files(session), path, _checkpoint_of(path))
        return JSON({"id": _CHECKPOINT, "last_modified": entry.modified}, 201)

    async def _restore_checkpoint(self, request: Request) -> Response:
        session, path = await self._named(request)
        _require_checkpoint(request)
        await self._copy(self._files(session), _checkpoint_of(path), path)
        return Response(status_code=204)

    async def _delete_checkpoint(self, request: Request) -> Response:
        session, path = await self._named(request)
        _require_checkpoint(request)
        await self._files(session).delete(_checkpoint_of(path))
        return Response(status_code=204)

    async def _copy(self, files: WorkspaceFiles, source: str, target: str) -> Entry:
        # Through the gateway: picod has no copy, and a command would run as the user's code, which may have its own cp.
        await files.write(target, await files.read(source, MAX_FILE_BYTES))
        return await files.stat(target)

    async def _named(self, request: Request) -> tuple[Session, str]:
        """The kernel, and the path in its workspace."""
        session = await find_kernel(self._lifecycle, request)
        return session, inner_path(request.path_params.get("path", "").strip("/"))

    def _files(self, session: Session) -> WorkspaceFiles:
        return WorkspaceFiles(self._caller, session.id)


def describe(session: Session, entry: Entry) -> dict[str, Any]:
    """A file's model without its content. Pure."""
    kind = "directory" if entry.is_dir else "notebook" if entry.name.endswith(".ipynb") else "file"
    path = f"{session.id}/{entry.path}" if entry.path else session.id
    size = None if entry.is_dir else entry.size
    return _model(entry.name or session.id, path, kind, entry.modified, size)


def _kernel_folder(session: Session) -> dict[str, Any]:
    return _model(session.id, session.id, "directory", rfc3339(session.last_active_at), None)


def _model(name: str, path: str, kind: str, modified: str, size: int | None) -> dict[str, Any]:
    return {
        "name": name,
        "path": path,
        "type": kind,
        "last_modified": modified,
        "created": modified,  # picod knows no other time
        "size": size,
        "writable": True,
        "mimetype": mimetypes.guess_type(name)[0] if kind == "file" else None,
        "format": None,
        "content": None,
    }


async def _content(data: bytes, kind: str, asked: str) -> dict[str, Any]:
    """`content` and `format`. What is no text is base64, as Jupyter has it, unless text was asked for."""
    if kind == "notebook":
        try:
            return {"format": "json", "content": await parse_object(data)}
        except BadAnswerError:
            raise BadRequestError("the file is no notebook: it is not a JSON object, or too large a one") from None
    if asked not in ("", "text", "base64"):
        raise ParamError("format", "expected text or base64")
    if asked != "base64":
        try:
            return {"format": "text", "content": data.decode()}
        except UnicodeDecodeError:
            if asked == "text":
                raise BadRequestError("the file is not UTF-8; ask for it with format=base64") from None
    return {"format": "base64", "content": (await asyncio.to_thread(base64.b64encode, data)).decode()}


async def _json(document: Mapping[str, Any]) -> Response:
    try:
        body = await asyncio.to_thread(orjson.dumps, document)
    except orjson.JSONEncodeError:  # it writes 254 levels, and reads 1024
        raise BadRequestError("the notebook is nested too deeply") from None
    return Response(body, media_type="application/json")


def file_bytes(model: Mapping[str, Any]) -> bytes:
    """What a model's content is in the file. Raises ParamError, BadRequestError. Pure."""
    content, kind = model.get("content"), model.get("format")
    if model.get("type") == "notebook":
        if not isinstance(content, dict):
            raise ParamError("content", "expected a notebook, an object")
        try:
            return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        except orjson.JSONEncodeError:
            raise BadRequestError("content: the notebook is nested too deeply") from None
    if not isinstance(content, str):
        raise ParamError("content", "expected text")
    if kind == "base64":
        try:
            return base64.b64decode("".join(content.split()), validate=True)
        except (binascii.Error, ValueError):
            raise ParamError("content", "this is not base64") from None
    if kind not in (None, "text"):
        raise ParamError("format", "expected text or base64")
    return content.encode()


def _loads(data: bytes) -> Any:
    # 24 MiB of `[],` would be eight million lists, which take half a gigabyte.
    if count_values(data) > MAX_VALUES:
        raise ValueError(f"it holds more than {MAX_VALUES} values")
    return json_depth.loads(data)


async def _is_there(files: WorkspaceFiles, path: str) -> bool:
    try:
        await files.stat(path)
    except NotFoundError:
        return False
    return True


def _same_kernel(session: Session, value: Any, name: str) -> str:
    """A second path of a request, which has to be of the same kernel: the files of two are in two sandboxes."""
    if not isinstance(value, str) or not value:
        raise ParamError(name, "expected a path")
    kernel, _, path = value.strip("/").partition("/")
    if kernel != session.id:
        raise ParamError(name, f"expected a path of the same kernel, {session.id}/...")
    return inner_path(path)


def _checkpoint_of(path: str) -> str:
    """Where Jupyter keeps it: .ipynb_checkpoints/a-checkpoint.ipynb for a.ipynb."""
    folder, name = posixpath.split(path)
    stem, extension = posixpath.splitext(name)
    return inner_path(posixpath.join(folder, _CHECKPOINTS, f"{stem}-checkpoint{extension}"))


def _require_checkpoint(request: Request) -> None:
    if request.path_params["checkpoint"] != _CHECKPOINT:
        raise NotFoundError(f"there is no such checkpoint; a file has one, {_CHECKPOINT!r}")
