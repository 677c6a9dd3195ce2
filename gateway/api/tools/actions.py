"""The tools themselves: one call of a model becomes a request to picod, and picod's answer a ToolResult.

Arguments come from a model, so each is checked here, and what is wrong with them is told to the model.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import orjson

from gateway.api.sandbox_json import (
    MAX_ANSWER_BYTES,
    BadAnswerError,
    count_of,
    objects_of,
    parse_object,
    parse_object_now,
    text_of,
)
from gateway.api.tools.catalogue import BUILT_IN, DEFAULT_TIMEOUT_S, MAX_TIMEOUT_S
from gateway.api.tools.results import IMAGE_TYPES, Image, ToolResult, failure, from_execute, from_run_code
from gateway.api.tools.run_events import MAX_EVENT_BYTES, Progress, collect
from gateway.core.errors import UpstreamTimeoutError
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import SandboxReply, SessionId

WORKSPACE = "/workspace"
MAX_READ = 256 << 10  # bytes of a text file; more does not fit into a model's answer
MAX_IMAGE = 8 << 20  # bytes of an image file
MAX_LISTED = 1000  # entries of a folder
_MAX_REFUSAL_BYTES = 64 << 10
_JSON = {"content-type": "application/json"}
_GRACE_S = 30.0  # beyond a command's own timeout, for the way there and back

Action = Callable[["Sandbox", Mapping[str, Any]], Awaitable[ToolResult]]


class ArgumentError(ValueError):
    """An argument of a model's call is wrong; the text is for the model."""


class Sandbox:
    """One session's picod, as tools see it. `progress` None: nobody looks on.

    With `once` what is started or written is so at most once under that key, and `replayed` tells whether it was so
    before: picod remembers, beside the session's files, so that it does not matter which gateway asks
    (picod/http/idempotency.py).
    """

    def __init__(
        self, caller: SandboxCaller, session_id: SessionId, progress: Progress | None = None, *, once: str = ""
    ) -> None:
        self._caller = caller
        self._session_id = session_id
        self._once = {"idempotency-key": once} if once else {}
        self.progress = progress
        self.replayed = False

    async def start(self, path: str, body: Mapping[str, Any], timeout: float) -> SandboxReply | Mapping[str, Any]:
        """Have something run to its end: picod's answer, or what it said instead. Followed if somebody looks on."""
        limit = timeout + _GRACE_S
        if self.progress is None:
            reply = await self._caller.call(
                self._session_id,
                "POST",
                path,
                headers=_JSON | self._once,
                body=orjson.dumps(body),
                timeout=limit,
                limit=MAX_EVENT_BYTES,
            )
            self._note(reply)
            if reply.headers.get("content-type", "").startswith("text/event-stream"):
                return await collect(_pieces(reply.body), _ignore)  # the first attempt was streamed
            return await parse_object(reply.body) if reply.status == 200 else reply
        try:
            async with asyncio.timeout(limit):
                return await self._follow(path, orjson.dumps({**body, "stream": True}), self.progress)
        except TimeoutError:
            raise UpstreamTimeoutError(f"the sandbox did not answer within {limit:g} s") from None

    async def _follow(self, path: str, body: bytes, progress: Progress) -> SandboxReply | Mapping[str, Any]:
        opened = self._caller.stream(self._session_id, "POST", path, headers=_JSON | self._once, body=body)
        async with opened as (reply, chunks):
            self._note(reply)
            if reply.status == 200 and not reply.headers.get("content-type", "").startswith("application/json"):
                return await collect(chunks, progress)
            body = await _read(chunks, MAX_EVENT_BYTES if reply.status == 200 else _MAX_REFUSAL_BYTES)
            # The first attempt was not streamed, or picod refuses.
            return await parse_object(body) if reply.status == 200 else replace(reply, body=body)

    def _note(self, reply: SandboxReply) -> None:
        self.replayed = self.replayed or "idempotency-replayed" in reply.headers

    async def get(
        self, path: str, headers: Mapping[str, str] | None = None, limit: int = MAX_ANSWER_BYTES
    ) -> SandboxReply:
        """A whole answer of at most `limit` bytes."""
        return await self._caller.call(self._session_id, "GET", path, headers=headers, limit=limit)

    async def put(self, path: str, body: bytes | AsyncIterator[bytes]) -> SandboxReply:
        """Write a file."""
        once = self._once if isinstance(body, bytes) else {}  # picod would read a stream whole
        reply = await self._caller.call(
            self._session_id, "PUT", path, headers=once, body=body, timeout=600.0, limit=MAX_ANSWER_BYTES
        )
        self._note(reply)
        return reply


async def run_python(sandbox: Sandbox, arguments: Mapping[str, Any]) -> ToolResult:
    """Code in the session's own context."""
    timeout = _timeout(arguments)
    body = {"code": _text(arguments, "code"), "language": "python", "timeout": f"{timeout:g}s"}
    answer = await sandbox.start("/api/run_code", body, timeout)
    return _refused(answer) if isinstance(answer, SandboxReply) else from_run_code(answer)


async def run_shell(sandbox: Sandbox, arguments: Mapping[str, Any]) -> ToolResult:
    """A command line in a shell of its own."""
    return await execute(sandbox, ["bash", "-c", _text(arguments, "command")], _timeout(arguments))


async def execute(sandbox: Sandbox, command: list[str], timeout: float) -> ToolResult:
    """A command by its argv."""
    answer = await sandbox.start("/api/execute", {"command": command, "timeout": f"{timeout:g}s"}, timeout)
    return _refused(answer) if isinstance(answer, SandboxReply) else from_execute(answer)


async def read_file(sandbox: Sandbox, arguments: Mapping[str, Any]) -> ToolResult:
    """A file, or a part of it; a picture as a picture."""
    path = _text(arguments, "path")
    offset, length = _whole(arguments, "offset", 0, 0), _whole(arguments, "length", MAX_READ, 1)
    wants_all = "offset" not in arguments and "length" not in arguments
    most = MAX_IMAGE if wants_all else min(length, MAX_READ)
    reply = await sandbox.get(file_target(path), {"range": f"bytes={offset}-{offset + most - 1}"}, MAX_IMAGE + 1)
    if reply.status == 416:
        total = reply.headers.get("content-range", "").rpartition("/")[2]
        return ToolResult("(empty file)") if total == "0" else failure("end_of_file", f"the file has {total} bytes")
    if reply.status not in (200, 206):
        return _refused(reply, path)
    kind = reply.headers.get("content-type", "").partition(";")[0]
    size = int(reply.headers.get("content-range", "").rpartition("/")[2] or len(reply.body))
    if kind in IMAGE_TYPES and wants_all and size == len(reply.body):
        return ToolResult("", (Image(kind, base64.b64encode(reply.body).decode()),))
    return _as_text(reply.body[:MAX_READ], offset, size, kind)


def _as_text(data: bytes, offset: int, size: int, kind: str) -> ToolResult:
    if b"\0" in data[:8192]:
        return failure("binary_file", f"{kind or 'the file'}, {size} bytes, is not text; open it with run_python")
    # A part may begin or end within a character; those bytes are no error of the file.
    text = data.decode("utf-8", "replace")
    end = offset + len(data)
    if end < size:
        text += f"\n[... bytes {offset} to {end} of {size}; read on with offset {end} ...]"
    return ToolResult(text or "(empty file)")


async def write_file(sandbox: Sandbox, arguments: Mapping[str, Any]) -> ToolResult:
    """A text file, whole or not at all."""
    path, content = _text(arguments, "path"), _text(arguments, "content", empty=True)
    try:
        data = content.encode("utf-8")
    except UnicodeEncodeError:
        raise ArgumentError("content: holds half of a surrogate pair, which is no character") from None
    reply = await sandbox.put(file_target(path), data)
    if reply.status not in (200, 201):
        return _refused(reply, path)
    return ToolResult(f"wrote {len(data)} bytes to {in_workspace(path)}")


async def list_files(sandbox: Sandbox, arguments: Mapping[str, Any]) -> ToolResult:
    """A folder's entries, one a line."""
    path = _text(arguments, "path") if arguments.get("path") not in (None, "") else "."
    reply = await sandbox.get(f"/api/files?path={quote(in_workspace(path) or '.', safe='')}")
    if reply.status != 200:
        return _refused(reply, path)
    entries = objects_of(await parse_object(reply.body), "files")
    lines = [
        f"{text_of(each, 'name')}/"
        if each.get("is_dir")
        else f"{text_of(each, 'name')}  {count_of(each, 'size')} bytes"
        for each in entries
    ]
    shown = [line for line in lines if not line.startswith(".wakegate")][:MAX_LISTED]
    if len(lines) > MAX_LISTED:
        shown.append(f"[... {len(lines) - MAX_LISTED} more ...]")
    return ToolResult("\n".join(shown) or "(empty folder)")


ACTIONS: Mapping[str, Action] = {
    "run_python": run_python,
    "run_shell": run_shell,
    "read_file": read_file,
    "write_file": write_file,
    "list_files": list_files,
}
_KNOWN = {tool.name: frozenset(tool.parameters["properties"]) for tool in BUILT_IN}


def check_names(tool: str, arguments: Mapping[str, Any]) -> None:
    """Raises ArgumentError for an argument that the built-in tool does not have."""
    for name in arguments:
        if name not in _KNOWN[tool]:
            expected = ", ".join(sorted(_KNOWN[tool]))
            raise ArgumentError(f"{name[:64]}: unknown argument; {tool} takes {expected}")


def in_workspace(path: str) -> str:
    """A path relative to the workspace, which models name in full as often as not. Raises ArgumentError for others."""
    relative = path.removeprefix(WORKSPACE).lstrip("/") if f"{path}/".startswith(f"{WORKSPACE}/") else path
    if relative.startswith("/"):
        raise ArgumentError(f"path: {path[:200]} is not below {WORKSPACE}; use run_shell for other places")
    return relative


def file_target(path: str) -> str:
    """The request target of a file. Raises ArgumentError."""
    relative = in_workspace(path)
    if not relative or "\0" in relative or len(relative) > 4096:
        raise ArgumentError("path: expected the path of a file in the workspace")
    try:
        return "/api/files/" + quote(relative)
    except UnicodeEncodeError:
        raise ArgumentError("path: holds half of a surrogate pair, which is no character") from None


def _text(arguments: Mapping[str, Any], name: str, *, empty: bool = False) -> str:
    value = arguments.get(name)
    if value is None:
        raise ArgumentError(f"{name}: missing; expected text")
    if not isinstance(value, str) or (not value and not empty):
        raise ArgumentError(f"{name}: expected text, got {_shown(value)}")
    return value


def _whole(arguments: Mapping[str, Any], name: str, default: int, low: int) -> int:
    value = arguments.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**60:
        raise ArgumentError(f"{name}: expected a whole number from {low} on, got {_shown(value)}")
    return value


def _timeout(arguments: Mapping[str, Any]) -> float:
    value = arguments.get("timeout")
    if value is None:
        return DEFAULT_TIMEOUT_S
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_TIMEOUT_S:
        raise ArgumentError(f"timeout: expected seconds above 0, at most {MAX_TIMEOUT_S}, got {_shown(value)}")
    return float(value)


def _shown(value: Any) -> str:
    return "nothing" if value == "" else orjson.dumps(value).decode()[:60]


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _read(chunks: AsyncIterator[bytes], limit: int) -> bytes:
    """The first `limit` bytes."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) >= limit:
            break
    return bytes(body[:limit])


async def _ignore(_: str, __: str) -> None:
    return None


def _refused(reply: SandboxReply, path: str = "") -> ToolResult:
    """What picod said no to."""
    try:
        document = parse_object_now(reply.body[:_MAX_REFUSAL_BYTES])
        said = text_of(document, "error", "")
    except BadAnswerError:
        document, said = {}, ""
    if document.get("code") == "INTERRUPTED":
        return failure("sandbox_lost", "the call began before and was cut off; it may or may not have run")
    if document.get("code") == "ANSWER_NOT_KEPT":
        return failure("too_large", f"the call was run before; {said}")
    kind = {400: "bad_request", 404: "not_found", 413: "too_large", 507: "disk_full"}.get(reply.status, "failed")
    message = said or f"the sandbox answered with status {reply.status}"
    return failure(kind, f"{path}: {message}" if path else message)
