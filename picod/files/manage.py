"""Files beyond reading and writing: stat, mkdir, move, delete, and a recursive list in pages.

The paths of a request are resolved once (paths.py) and all work is done relative to the open directories found there,
so that code in the sandbox cannot redirect it out of the workspace by replacing a directory with a symlink meanwhile.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import re
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from picod.compat.go_format import format_mode, format_time
from picod.files.listing import decode_path
from picod.files.names import name_fields
from picod.files.tree import Entry, walk
from picod.filesystem import syscalls
from picod.filesystem.paths import PathError, Place
from picod.filesystem.safe_walk import remove
from picod.http.json_fields import flag_field, missing, parse_object, text_field
from picod.http.request import Request, RequestError, os_failure, query_flag

if TYPE_CHECKING:
    from picod.files.services import FileServices

_PAGE, _MAX_PAGE = 1000, 10_000
_MAX_DEPTH = 10_000
_MODE = re.compile(r"0?[0-7]{3}")
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_T = TypeVar("_T")


async def stat_file(services: FileServices, request: Request) -> None:
    """GET /api/fs/stat?path=: describe a file; a symlink itself, unless `follow=true`."""
    path, follow, tree = required_path(request), query_flag(request, "follow"), services.tree(request)

    def look() -> dict[str, object]:
        with tree.resolve(path, follow=follow) as place:
            return describe(place, place.stat())

    await request.answer_json(200, await guarded(look, f"Failed to look at {path}"))


async def make_directory(services: FileServices, request: Request) -> None:
    """POST /api/fs/mkdir {"path", "parents": true, "mode": "0755"}: 201, or 200 if the directory exists.

    Without `parents` a missing parent is 404 and an existing directory 409, as mkdir(1) does with and without -p.
    """
    fields = parse_object(await request.body(services.config.max_body), "MkdirRequest")
    path = _path_field(fields, "MkdirRequest", "path")
    parents = flag_field(fields, "MkdirRequest", "parents", default=True)
    text = text_field(fields, "MkdirRequest", "mode") or "0755"
    if not _MODE.fullmatch(text):
        raise RequestError(400, f"mode: expected octal permissions such as 0755, not {text[:40]!r}")
    mode, tree = int(text, 8), services.tree(request)

    def make() -> tuple[int, dict[str, object]]:
        with tree.resolve(path, make_parents=parents) as place:
            try:
                # Made first and looked at after: a look first would leave a moment in which another could make it.
                os.mkdir(place.name, mode, dir_fd=place.dir_fd)
                status = 201
            except FileExistsError:
                if not parents or not stat.S_ISDIR(place.stat().st_mode):
                    raise
                status = 200
            return status, describe(place, place.stat())

    status, made = await guarded(make, f"Failed to create directory: mkdir {path}")
    await request.answer_json(status, made)


async def move(services: FileServices, request: Request) -> None:
    """POST /api/fs/move {"from", "to", "overwrite": false}: rename atomically; `to` is the whole new path.

    409 when `to` exists and `overwrite` is not set, or is a directory that is not empty.
    """
    fields = parse_object(await request.body(services.config.max_body), "MoveRequest")
    old, new = _path_field(fields, "MoveRequest", "from"), _path_field(fields, "MoveRequest", "to")
    overwrite = flag_field(fields, "MoveRequest", "overwrite", default=False)
    tree = services.tree(request)

    def rename() -> dict[str, object]:
        with tree.resolve(old, follow=False) as source:
            _refuse_root(source)
            source.stat()  # raises if it does not exist, before the parents of `to` are made for nothing
            with tree.resolve(new, make_parents=True, follow=False) as target:
                _refuse_root(target)
                rename_place(source, target, overwrite=overwrite)
                return describe(target, target.stat())

    await request.answer_json(200, await guarded(rename, f"Failed to move {old} to {new}"))


async def delete(services: FileServices, request: Request) -> None:
    """DELETE /api/files/{path}: a file, a symlink or an empty directory; with `?recursive=true` any directory."""
    path, recursive = decode_path(request.tail), query_flag(request, "recursive")
    tree = services.tree(request)

    def drop() -> None:
        with tree.resolve(path, follow=False) as place:
            _refuse_root(place)
            if recursive:
                remove(place.name.encode(), place.dir_fd)
            elif stat.S_ISDIR(place.stat().st_mode):
                os.rmdir(place.name, dir_fd=place.dir_fd)
            else:
                os.unlink(place.name, dir_fd=place.dir_fd)

    await guarded(drop, f"Failed to delete {path}")
    await request.start(204, ())
    await request.write(b"", more=False)


async def list_tree(services: FileServices, request: Request) -> None:
    """GET /api/fs/tree?path=.&depth=&limit=1000&after=: everything below a directory, parents first, sorted by name.

    `next` in an answer is the `after` of the next page, null on the last one.
    """
    path, tree = request.query("path") or ".", services.tree(request)
    limit = read_number(request, "limit", _PAGE, most=_MAX_PAGE)
    depth = read_number(request, "depth", _MAX_DEPTH, most=_MAX_DEPTH)
    after = _read_cursor(request.query("after"))

    def look() -> list[Entry]:
        root = tree.open_directory(path)
        try:
            return walk(root, after, limit=limit + 1, depth=depth)  # one more shows whether there is a next page
        finally:
            os.close(root)

    found = await guarded(look, f"Failed to list {path}")
    more = len(found) > limit
    del found[limit:]
    following = base64.urlsafe_b64encode(found[-1].path).decode() if more else None
    await request.answer_json(200, {"entries": [_describe_entry(entry) for entry in found], "next": following})


def rename_place(source: Place, target: Place, *, overwrite: bool) -> None:
    """Rename atomically. Raises OSError; FileExistsError if the target exists and `overwrite` is not set."""
    if overwrite:
        os.rename(source.name, target.name, src_dir_fd=source.dir_fd, dst_dir_fd=target.dir_fd)
    else:
        syscalls.rename_new(source.name.encode(), source.dir_fd, target.name.encode(), target.dir_fd)


def describe(place: Place, status: os.stat_result) -> dict[str, object]:
    """A file of any kind as the API shows it, a symlink with its target."""
    name = place.path.rpartition("/")[2]
    target: dict[str, object] = {"target": None}
    if stat.S_ISLNK(status.st_mode):
        target = name_fields("target", os.fsencode(os.readlink(place.name, dir_fd=place.dir_fd)))
    return {"path": place.path, "name": name, **describe_status(status), **target}


def describe_status(status: os.stat_result) -> dict[str, object]:
    """The fields that come from a file's status alone: type, size, mode, time."""
    return {
        "type": _TYPES.get(stat.S_IFMT(status.st_mode), "other"),
        "is_dir": stat.S_ISDIR(status.st_mode),
        "size": status.st_size,
        "mode": format_mode(status.st_mode),
        "modified": format_time(status.st_mtime_ns),
    }


async def guarded(work: Callable[[], _T], doing: str) -> _T:
    """Run `work` on a thread. Raises RequestError for a PathError or OSError; its message begins with `doing`."""
    try:
        return await asyncio.to_thread(work)
    except PathError as error:
        raise RequestError(400, str(error)) from error
    except OSError as error:
        raise os_failure(error, doing) from error


def required_path(request: Request) -> str:
    """The query parameter `path`. Raises RequestError 400 if it is missing."""
    path = request.query("path")
    if not path:
        raise RequestError(400, "Missing 'path' query parameter")
    return path


def read_number(request: Request, name: str, default: int, *, most: int) -> int:
    """A query parameter that is a number from 1 to `most`. Raises RequestError 400."""
    text = request.query(name)
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise RequestError(400, f"{name}: expected a number from 1 to {most}, not {text[:40]!r}")
    return int(text)


def _read_cursor(text: str) -> list[bytes]:
    try:
        path = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise RequestError(400, "after: expected the `next` of the page before") from error
    return path.split(b"/") if path else []  # any bytes do: they only say where names begin to be listed


def _describe_entry(entry: Entry) -> dict[str, object]:
    shown: dict[str, object] = {
        **name_fields("path", entry.path),
        **describe_status(entry.status),
    }
    if entry.error:
        shown["error"] = entry.error
    return shown


def _path_field(fields: dict[str, Any], struct: str, name: str) -> str:
    path = text_field(fields, struct, name)
    if not path:
        raise missing(struct, name)
    return path


def _refuse_root(place: Place) -> None:
    if place.path == "." or place.name == ".":
        raise PathError("the workspace itself cannot be moved, replaced or deleted")
