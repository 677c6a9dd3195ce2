"""The files of one session, for surfaces of other products: stat, list, read, write, move and delete.

Clients name a file by its absolute path below /workspace or relative to it. picod resolves links, so the check here is
by the text alone and decides only between "outside" and "not found". Of the whole sandbox's files (`SYSTEM`) paths are
absolute.
"""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson

from gateway.api.sandbox_json import MAX_ANSWER_BYTES, BadAnswerError, count_of, objects_of, parse_object, text_of
from gateway.core.errors import BadRequestError, ConflictError, NotFoundError, TooLargeError, WakegateError
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import SandboxReply, SessionId

WORKSPACE = "/workspace"
SYSTEM = "system"  # picod's name for the root of the sandbox's whole file system
MAX_LISTED = 20_000  # entries of one list
_PER_PAGE = 5000
_MAX_PATH_BYTES = 4096
_MAX_ERROR_CHARS = 500
_TRANSFER_TIMEOUT_S = 3600.0  # 5 GiB at 1.5 MB/s
_JSON = {"content-type": "application/json"}


class OutsideWorkspaceError(WakegateError):
    """A path leads out of the workspace."""

    status = 403
    code = "OUTSIDE_WORKSPACE"


class NoSpaceError(WakegateError):
    """The workspace's disk limit leaves no room for it."""

    status = 507
    code = "WORKSPACE_FULL"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder. `path` is relative to the workspace, empty for itself; `size` in bytes, `modified` RFC 3339."""

    path: str
    type: str
    size: int
    modified: str
    mode: str = ""

    @property
    def name(self) -> str:
        """The last component of the path."""
        return posixpath.basename(self.path)

    @property
    def is_dir(self) -> bool:
        """Whether it is a folder, and not a link to one."""
        return self.type == "directory"


def inner_path(path: str) -> str:
    """The path relative to the workspace, empty for itself. Raises OutsideWorkspaceError, BadRequestError. Pure."""
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise BadRequestError("path: it is not valid Unicode") from None
    if size > _MAX_PATH_BYTES or "\0" in path:
        raise BadRequestError(f"path: expected at most {_MAX_PATH_BYTES} bytes, without NUL")
    absolute = "/" + posixpath.normpath(posixpath.join(WORKSPACE, path)).lstrip("/")  # normpath keeps two slashes
    if absolute != WORKSPACE and not absolute.startswith(WORKSPACE + "/"):
        raise OutsideWorkspaceError(f"path: {path[:200]} is outside of {WORKSPACE}")
    return absolute[len(WORKSPACE) + 1 :]


def absolute_path(inner: str) -> str:
    """The path as clients see it, e.g. /workspace/a for a."""
    if inner.startswith("/"):
        return inner  # of the whole sandbox
    return f"{WORKSPACE}/{inner}" if inner else WORKSPACE


class WorkspaceFiles:
    """The verbs; paths are those of `inner_path`.

    All raise NotFoundError, ConflictError, BadRequestError and NoSpaceError in picod's words, BadAnswerError, and what
    SandboxCaller raises.
    """

    def __init__(self, caller: SandboxCaller, session_id: SessionId, root: str = "workspace") -> None:
        self._caller = caller
        self._session_id = session_id
        self._root = root

    async def stat(self, path: str) -> Entry:
        """Describe a file; of a link, what it leads to."""
        document = await self._ask(
            "GET", f"/api/fs/stat?path={quote(path or '.', safe='')}&follow=true&root={self._root}"
        )
        return _entry(document, path)

    async def list(self, path: str, *, depth: int = 1, most: int = MAX_LISTED) -> list[Entry]:
        """What is below a folder, parents first, sorted by name, `most` entries; links are not followed."""
        entries: list[Entry] = []
        after = ""
        while len(entries) < most:
            limit = min(_PER_PAGE, most - len(entries))
            target = f"/api/fs/tree?path={quote(path or '.', safe='')}&depth={depth}&limit={limit}&root={self._root}"
            page = await self._ask("GET", f"{target}&after={after}")
            listed = objects_of(page, "entries")
            entries += [_entry(each, posixpath.join(path, text_of(each, "path"))) for each in listed]
            after = quote(text_of(page, "next", "")[:8192], safe="")
            if not after or not listed:  # a sandbox that promises more and sends none would be asked for ever
                break
        return entries[:most]

    async def read(self, path: str, most: int) -> bytes:
        """A whole file. Raises TooLargeError if it has more than `most` bytes."""
        # One byte more than may come, so that of a file of 10 GB no more leaves the sandbox than shows its size.
        reply = await self._caller.call(
            self._session_id,
            "GET",
            target_of(path, self._root),
            headers={"range": f"bytes=0-{most}"},
            limit=most + (64 << 10),
        )
        if reply.status == 416:  # of an empty file no byte can be asked for
            return b""
        if reply.status not in (200, 206):
            await checked(reply)
        if len(reply.body) > most:
            raise TooLargeError(f"path: {absolute_path(path)} is larger than {most} bytes")
        return reply.body

    async def write(self, path: str, body: bytes | AsyncIterator[bytes]) -> None:
        """Write a file, with the folders that lead to it; the old one is replaced once the new one is whole."""
        await checked(
            await self._caller.call(
                self._session_id,
                "PUT",
                target_of(path, self._root),
                body=body,
                timeout=_TRANSFER_TIMEOUT_S,
                limit=MAX_ANSWER_BYTES,
            )
        )

    async def make_directory(self, path: str) -> bool:
        """Make a folder with its parents. False: it was there."""
        if not path:
            return False
        reply = await self._call("POST", f"/api/fs/mkdir?root={self._root}", {"path": path, "parents": True})
        await checked(reply)
        return reply.status == 201

    async def move(self, source: str, target: str, *, replace: bool = False) -> None:
        """Rename a file or folder. Raises ConflictError if the target is there; `replace`: a file there is lost."""
        body = {"from": source or ".", "to": target or ".", "overwrite": replace}
        await self._ask("POST", f"/api/fs/move?root={self._root}", body)

    async def delete(self, path: str) -> None:
        """Delete a file, or a folder with all that is in it."""
        await self._ask("DELETE", f"{target_of(path, self._root)}&recursive=true")

    async def _ask(self, method: str, target: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        return await checked(await self._call(method, target, body))

    async def _call(self, method: str, target: str, body: Mapping[str, Any] | None = None) -> SandboxReply:
        data = b"" if body is None else orjson.dumps(body)
        return await self._caller.call(
            self._session_id, method, target, headers=_JSON, body=data, limit=MAX_ANSWER_BYTES
        )


def target_of(path: str, root: str = "workspace") -> str:
    """picod's target of a file, with a query. Raises BadRequestError for the workspace itself."""
    if not path:
        raise BadRequestError("path: this is the workspace itself; name a file in it")
    return f"/api/files/{quote(path.lstrip('/'))}?root={root}"


def _entry(document: Mapping[str, Any], path: str) -> Entry:
    return Entry(
        path,
        text_of(document, "type", ""),
        count_of(document, "size"),
        text_of(document, "modified", ""),
        text_of(document, "mode", ""),
    )


async def checked(reply: SandboxReply) -> Mapping[str, Any]:
    """picod's document. Raises its error as one of ours."""
    if reply.status < 400:
        return await parse_object(reply.body) if reply.body else {}
    try:
        text = text_of(await parse_object(reply.body[:MAX_ANSWER_BYTES]), "error", "")[:_MAX_ERROR_CHARS]
    except BadAnswerError:
        text = ""
    text = text or f"the sandbox answered {reply.status}"
    errors: Mapping[int, type[WakegateError]] = {
        403: OutsideWorkspaceError, 404: NotFoundError, 409: ConflictError, 413: TooLargeError,
        429: ConflictError, 507: NoSpaceError,
    }  # fmt: skip
    if reply.status >= 500 and reply.status != 507:
        raise BadAnswerError(text)
    raise errors.get(reply.status, BadRequestError)(text)
