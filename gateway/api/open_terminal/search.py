"""Searches in a chat's sandbox: by names, by wildcards, and through contents.

Names are matched here, over picod's listing; contents by the sandbox's own grep, so that no pattern of a stranger's
runs in the gateway.
"""

from __future__ import annotations

import asyncio
import fnmatch
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler, ParamError
from gateway.api.http import JSON
from gateway.api.open_terminal import query
from gateway.api.open_terminal.chats import Chats, naming_session
from gateway.api.open_terminal.files import cwd_of, files_of, inner
from gateway.api.sandbox_json import MAX_ANSWER_BYTES, text_of
from gateway.api.sandbox_paths import FilePath
from gateway.api.sessions import while_connected
from gateway.api.workspace_files import Entry, checked
from gateway.core.errors import BadRequestError, NotFoundError
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import Session

_MAX_DEPTH = 64
_MAX_RESULTS = 500
_MAX_PATTERN_CHARS = 256
_MAX_STARS = 16  # each may make a match as much longer as the path is long
_TYPES = ("any", "file", "directory")
_GREP_S = 60.0
_GREP_BYTES = 1 << 20  # of matches
_LINE_CHARS = 2000  # of a line that is shown
# The paths come NUL-terminated, so that a colon in a name is no separator. head ends grep by SIGPIPE.
_GREP = 'grep "$@" | head -c "$LIMIT"; exit "${PIPESTATUS[0]}"'


class SearchAPI:
    """Searching files by their text, by a pattern of names, and by parts of names, in the sandbox of a chat."""

    def __init__(self, chats: Chats, caller: SandboxCaller) -> None:
        self._chats = chats
        self._caller = caller

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return naming_session({
            "open_terminal_grep_search": self._grep,
            "open_terminal_glob_search": self._glob,
            "open_terminal_search_files": self._search,
        })  # fmt: skip

    async def _glob(self, request: Request) -> Response:
        pattern, excluded = query.text(request, "pattern"), query.texts(request, "exclude")
        _check_patterns([pattern, *excluded])
        most, kind = query.count(request, "max_results", 50, most=_MAX_RESULTS), _kind(request)
        path, entries = await self._below(request)
        matches = await asyncio.to_thread(_globbed, entries, path, pattern, excluded, kind)
        return JSON({
            "pattern": pattern, "path": path.absolute, "matches": matches[:most], "truncated": len(matches) > most,
        })  # fmt: skip

    async def _search(self, request: Request) -> Response:
        wanted = query.text(request, "query", "").strip().lower()
        most, kind = query.count(request, "limit", 20, most=100), _kind(request)
        hidden = query.flag(request, "show_hidden")
        path, entries = await self._below(request)
        return JSON({"results": await asyncio.to_thread(_ranked, entries, path, wanted, kind, most, hidden)})

    async def _below(self, request: Request) -> tuple[FilePath, list[Entry]]:
        """The folder of a search, and all that is below it. Raises NotFoundError."""
        session, path = await self._folder(request)
        if session is None:
            return path, []
        entries = await files_of(self._caller, session, path).list(inner(path), depth=_MAX_DEPTH)
        return path, entries

    async def _folder(self, request: Request) -> tuple[Session | None, FilePath]:
        session = await self._chats.find(request)
        path = query.located("path", query.text(request, "path", "."), cwd_of(session))
        absent = NotFoundError("Search directory not found")
        if session is None:
            if path.root != "workspace" or path.inner != ".":
                raise absent
            return None, path
        try:
            await files_of(self._caller, session, path).stat(inner(path))
        except NotFoundError:
            raise absent from None
        return session, path

    async def _grep(self, request: Request) -> Response:
        wanted, include = query.text(request, "query"), query.texts(request, "include")
        if not wanted or "\0" in wanted:
            raise ParamError("query", "expected text without NUL")
        per_line = query.flag(request, "match_per_line", default=True)
        most = query.count(request, "max_results", 50, most=_MAX_RESULTS)
        options = ["-rIZ", "-P" if query.flag(request, "regex", default=True) else "-F"]
        options += ["-i"] if query.flag(request, "case_insensitive") else []
        # -m: of each file no more than can be shown.
        options += ["-Hn", "-m", str(most + 1)] if per_line else ["-l"]
        options += [f"--include={each}" for each in include]
        session, path = await self._folder(request)
        answer = {"query": wanted, "path": path.absolute}
        if session is None:
            return JSON({**answer, "matches": [], "truncated": False})
        # By a path that is there in every image, and with what is found shown by the path that was asked for.
        below = path.inner if path.root == "workspace" else path.absolute
        output = await while_connected(request, self._run(session, [*options, "-e", wanted, "--", below]), "a search")
        matches, cut = await asyncio.to_thread(_matches, output, path, below, most, per_line)
        return JSON({**answer, "matches": matches, "truncated": cut})

    async def _run(self, session: Session, arguments: Sequence[str]) -> str:
        body: Mapping[str, Any] = {
            "command": ["bash", "-c", _GREP, "grep", *arguments],
            "env": {"LIMIT": str(_GREP_BYTES), "LC_ALL": "C.UTF-8"},
            "timeout": f"{_GREP_S:g}s",
        }
        reply = await self._caller.call(
            session.id,
            "POST",
            "/api/execute",
            headers={"content-type": "application/json"},
            body=orjson.dumps(body),
            timeout=_GREP_S + 30,
            limit=2 * MAX_ANSWER_BYTES,
        )
        document = await checked(reply)
        output, code = text_of(document, "stdout", ""), document.get("exit_code")
        # 0 and 1: something, nothing found; 141: head had enough. With 2 some files may have been unreadable.
        if code not in (0, 1, 141) and not output:
            said = text_of(document, "stderr", "")[:500].strip()
            raise BadRequestError(f"Invalid regex: {said or f'grep ended with {code}'}")
        return output


def _check_patterns(patterns: Sequence[str]) -> None:
    if any(len(each) > _MAX_PATTERN_CHARS for each in patterns):
        raise ParamError("pattern", f"expected at most {_MAX_PATTERN_CHARS} characters")
    if sum(each.count("*") for each in patterns) > _MAX_STARS:
        raise ParamError("pattern", f"expected at most {_MAX_STARS} stars in all patterns together")


def _kind(request: Request) -> str:
    kind = query.text(request, "type", "any")
    if kind not in _TYPES:
        raise ParamError("type", f"expected {', '.join(_TYPES)}")
    return kind


def _named(entries: Sequence[Entry], path: FilePath, kind: str) -> Iterator[tuple[str, Entry]]:
    """Entries of a kind, with their paths relative to the folder of the search."""
    root = inner(path).rstrip("/")
    for each in entries:
        if kind == "any" or (kind == "directory") == each.is_dir:
            yield each.path[len(root) + 1 :] if root or path.root == "system" else each.path, each


def _globbed(
    entries: Sequence[Entry], path: FilePath, pattern: str, excluded: Sequence[str], kind: str
) -> list[dict[str, Any]]:
    found = []
    for relative, each in _named(entries, path, kind):
        names = (each.name, relative)
        if any(fnmatch.fnmatchcase(name, one) for one in excluded for name in names):
            continue
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            found.append({"path": relative, **_described(each)})
    return found


def _ranked(
    entries: Sequence[Entry], path: FilePath, wanted: str, kind: str, most: int, hidden: bool
) -> list[dict[str, Any]]:
    """Names that contain a text: those that are it first, then those that begin with it; of these the short ones."""
    found = []
    for relative, each in _named(entries, path, kind):
        name = each.name.lower()
        if wanted not in name or (not hidden and any(part.startswith(".") for part in relative.split("/"))):
            continue
        rank = 0 if name == wanted else 1 if name.startswith(wanted) else 2
        found.append(((rank, len(name), relative.lower()), relative, each))
    found.sort(key=lambda one: one[0])
    return [
        {"path": posixpath.join(path.absolute, relative), "name": each.name, **_described(each)}
        for _, relative, each in found[:most]
    ]


def _described(entry: Entry) -> dict[str, Any]:
    try:
        modified = datetime.fromisoformat(entry.modified).timestamp()
    except (ValueError, OverflowError):
        modified = 0.0
    return {"type": "directory" if entry.is_dir else "file", "size": entry.size, "modified": modified}


def _matches(output: str, path: FilePath, below: str, most: int, per_line: bool) -> tuple[list[dict[str, Any]], bool]:
    """What grep printed, as matches: `file NUL line:content`, or files that each end with NUL. Pure."""
    found: list[dict[str, Any]] = []
    for record in output.split("\n") if per_line else output.split("\0"):
        if not record:
            continue
        file, _, rest = record.partition("\0")
        number, colon, content = rest.partition(":")
        if per_line and not (colon and number.isdecimal()):
            continue  # the last, which head cut
        if len(found) == most:
            return found, True
        shown = path.absolute if file == below else posixpath.join(path.absolute, posixpath.relpath(file, below))
        line = {"line": int(number[:9]), "content": content[:_LINE_CHARS].rstrip("\r")} if per_line else {}
        found.append({"file": shown, **line})
    return found, len(output) >= _GREP_BYTES
