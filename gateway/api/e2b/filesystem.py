"""envd's filesystem service: stat, list, make, move, remove. Watching is in `watching`.

Source: github.com/e2b-dev/infra, packages/envd/spec/filesystem/filesystem.proto.
"""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from gateway.api.e2b.connect import ConnectError, number_of, text_of
from gateway.api.e2b.sandbox import SandboxClient, error_text
from gateway.api.sandbox_json import count_of, objects_of
from gateway.api.sandbox_json import text_of as answer_text
from gateway.api.sandbox_paths import FilePath, PathError, resolve

Message = Mapping[str, Any]

_TYPES = {"file": "FILE_TYPE_FILE", "directory": "FILE_TYPE_DIRECTORY", "symlink": "FILE_TYPE_SYMLINK"}
_PER_PAGE = 5000
_MAX_PAGES = 20  # so a list has at most 100,000 entries
_MAX_DEPTH = 10_000
# From left to right as `ls -l` shows them: of the owner, the group, and all others.
_MODE_BITS = (0o400, 0o200, 0o100, 0o040, 0o020, 0o010, 0o004, 0o002, 0o001)


def path_of(message: Message, name: str = "path") -> FilePath:
    """The file that a field of a message names. Raises ConnectError."""
    try:
        return resolve(text_of(message, name))
    except PathError as error:
        raise ConnectError("invalid_argument", str(error)) from None


async def get_entry(sandbox: SandboxClient, message: Message) -> Message:
    """Stat: type, size, mode and time of a file; a link itself. `not_found` where there is none."""
    path = path_of(message)
    return {"entry": await entry_of(sandbox, path)}


async def entry_of(sandbox: SandboxClient, path: FilePath) -> dict[str, Any]:
    """A file as E2B describes it. Raises ConnectError."""
    document = await sandbox.require("GET", f"/api/fs/stat?{path.query}")
    return describe(document, path.absolute)


async def list_directory(sandbox: SandboxClient, message: Message) -> Message:
    """ListDir: what is below a directory, down to a depth; 0 is 1. Links are not followed."""
    path = path_of(message)
    depth = min(number_of(message, "depth") or 1, _MAX_DEPTH)
    entries: list[dict[str, Any]] = []
    after = ""
    for _ in range(_MAX_PAGES):
        target = f"/api/fs/tree?{path.query}&depth={depth}&limit={_PER_PAGE}&after={after}"
        page = await sandbox.require("GET", target)
        for each in objects_of(page, "entries"):
            entries.append(describe(each, posixpath.join(path.absolute, answer_text(each, "path"))))
        after = quote(answer_text(page, "next", "")[:8192], safe="")
        if not after:
            break
    return {"entries": entries}


async def make_directory(sandbox: SandboxClient, message: Message) -> Message:
    """MakeDir, with its parents."""
    path = path_of(message)
    status, document = await sandbox.call(
        "POST", f"/api/fs/mkdir?root={path.root}", {"path": path.inner, "parents": True}
    )
    if status == 200:  # it was there; picod takes that for a success, as `mkdir -p` does
        raise ConnectError("already_exists", f"directory already exists: {path.absolute}")
    if status == 409:
        raise ConnectError("invalid_argument", f"path already exists but it is not a directory: {path.absolute}")
    if status != 201:
        raise _error(status, document)
    return {"entry": describe(document, path.absolute)}


async def move(sandbox: SandboxClient, message: Message) -> Message:
    """Move a file or a folder; a file that is there is replaced."""
    source, target = path_of(message, "source"), path_of(message, "destination")
    if source.root == target.root:
        body = {"from": source.inner, "to": target.inner, "overwrite": True}
        status, document = await sandbox.call("POST", f"/api/fs/move?root={source.root}", body)
        if status != 200:
            raise _error(status, document)
        return {"entry": describe(document, target.absolute)}
    await entry_of(sandbox, source)  # `not_found` in the words of the API, not in those of mv
    # Between two file systems a move is a copy, which mv does as the session's own user.
    folder = posixpath.dirname(target.absolute)
    # -T: onto a directory the source would be moved into it, under its old name.
    for command in (["mkdir", "-p", "--", folder], ["mv", "-fT", "--", source.absolute, target.absolute]):
        answer = await sandbox.require("POST", "/api/execute", {"command": command, "timeout": "60s"})
        if answer.get("exit_code") != 0:
            raise ConnectError("failed_precondition", answer_text(answer, "stderr", "")[:500] or "mv failed")
    return {"entry": await entry_of(sandbox, target)}


async def remove(sandbox: SandboxClient, message: Message) -> Message:
    """Remove a file or a folder with all that is in it; what is absent is removed already."""
    path = path_of(message)
    status, document = await sandbox.call("DELETE", f"{path.target}&recursive=true")
    if status not in (200, 204, 404):
        raise _error(status, document)
    return {}


def describe(document: Mapping[str, Any], absolute: str) -> dict[str, Any]:
    """picod's description of a file as an EntryInfo. Raises BadAnswerError."""
    kind, shown = answer_text(document, "type", ""), answer_text(document, "mode", "")
    entry: dict[str, Any] = {
        "name": posixpath.basename(absolute) or "/",
        "type": _TYPES.get(kind, "FILE_TYPE_UNSPECIFIED"),
        "path": absolute,
        # proto3's JSON writes 64 bits as text.
        "size": str(count_of(document, "size")),
        "mode": mode_bits(shown),
        "permissions": stat.filemode(mode_bits(shown) | _FORMATS.get(kind, 0)),
        "owner": "user",
        "group": "user",
        "modifiedTime": answer_text(document, "modified"),
    }
    target = answer_text(document, "target", "")
    if kind == "symlink" and target:
        entry |= {"symlinkTarget": target, "isSymlink": True}
    return entry


_FORMATS = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK, "fifo": stat.S_IFIFO}


def mode_bits(shown: str) -> int:
    """The permissions in a mode as `ls -l` shows it, e.g. 0o644 for -rw-r--r--."""
    letters = shown[-9:].rjust(9, "-")
    # S and T stand where a set-id or sticky bit hides that nobody may execute.
    return sum(bit for bit, letter in zip(_MODE_BITS, letters, strict=True) if letter not in "-ST")


def _error(status: int, document: Mapping[str, Any]) -> ConnectError:
    codes = {400: "invalid_argument", 403: "permission_denied", 404: "not_found", 409: "invalid_argument"}
    codes |= {507: "resource_exhausted", 429: "resource_exhausted"}
    return ConnectError(codes.get(status, "internal"), error_text(document, status))
